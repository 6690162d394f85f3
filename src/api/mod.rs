//! What an embedder sees: a node inside of one's own process.
//!
//! ```no_run
//! use highwater::api::EngineBuilder;
//! use highwater::control::request::{NewTopic, Request};
//!
//! let engine = EngineBuilder::new().data_dir("./broker-data").set("cores.shards", "[1, 2]")?.start()?;
//! let client = engine.client();
//! let topic = NewTopic { name: "orders".into(), partitions: Some(8), ..NewTopic::default() };
//! client.ask_blocking(Request::CreateTopics {
//!     topics: vec![topic],
//!     validate_only: false,
//!     timeout: std::time::Duration::from_secs(5),
//! });
//! println!("Kafka clients: {:?}", engine.addresses().clients);
//! engine.stop()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A broker with a protocol of its own goes one floor deeper: it implements [`highwater_shards::front::Front`] and
//! starts its shards with [`highwater_shards::reactor::boot::start`].

use std::path::PathBuf;

use tokio::sync::{mpsc, watch};

use crate::cli::plan_cores;
use crate::config::{CoreClaims, Loaded, Setting, Sources, load};
use crate::control::request::{Reply, Request};
use crate::error::{ExitStatus, Failure};
use crate::runtime::boot::{Addresses, Node, ask, boot};
use crate::runtime::{Command, NodeError, Snapshot};

/// What a node is to be started with: the defaults, and what is set over them.
#[derive(Debug, Default)]
pub struct EngineBuilder {
    settings: Vec<Setting>,
}

impl EngineBuilder {
    /// A standalone node on built-in defaults.
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.settings.push(setting("storage.data_dir", path.into().display().to_string()));
        self
    }

    /// Sets any key of the configuration, as `--set` does. `highwater config show-default` prints them.
    ///
    /// # Errors
    /// When there is no such key, or the value is not one for it.
    pub fn set(mut self, key: &str, value: &str) -> Result<Self, Failure> {
        self.settings.push(setting(key, value.to_owned()));
        self.load()?;
        Ok(self)
    }

    fn load(&self) -> Result<Loaded, Failure> {
        let sources = Sources { flags: self.settings.clone(), ..Sources::default() };
        load(&sources).map_err(|problems| Failure::new(ExitStatus::Refused, problems.to_string()))
    }

    /// Starts the node and waits until it can serve.
    ///
    /// # Errors
    /// When the settings contradict each other, the host lacks what they ask for, or the storage cannot be used.
    pub fn start(self) -> Result<Engine, Failure> {
        Engine::start(&self.load()?)
    }
}

fn setting(path: &str, value: String) -> Setting {
    let flag = format!("{path}={value}");
    Setting { path: path.to_owned(), value, flag }
}

/// A running node. Dropping it stops it too, without telling how that went.
#[derive(Debug)]
pub struct Engine {
    /// Taken by [`Engine::stop`] and [`Engine::ended`].
    node: Option<Node>,
    addresses: Addresses,
    commands: mpsc::Sender<Command>,
    ready: watch::Receiver<bool>,
    _claims: CoreClaims,
}

impl Engine {
    /// Starts a node as configured and waits until it can serve.
    ///
    /// # Errors
    /// See [`EngineBuilder::start`].
    pub fn start(loaded: &Loaded) -> Result<Self, Failure> {
        let mut engine = Self::launch(loaded)?;
        match wait(engine.ready()) {
            true => Ok(engine),
            false => Err(engine.join().err().unwrap_or(NodeError::ControlPanicked).into()),
        }
    }

    /// Starts a node as configured, and leaves it to it when it can serve: a node of a cluster may wait for others, or for
    /// a leader, for as long as it takes. [`Engine::ready`] tells when.
    ///
    /// # Errors
    /// See [`EngineBuilder::start`].
    pub fn launch(loaded: &Loaded) -> Result<Self, Failure> {
        let (plan, claims) = plan_cores(loaded)?;
        tracing::info!(%plan, "starting");
        let node = boot(&loaded.config, &plan)?;
        Ok(Self {
            addresses: node.addresses.clone(),
            commands: node.commands.clone(),
            ready: node.ready.clone(),
            node: Some(node),
            _claims: claims,
        })
    }

    /// Resolves to whether the node can serve, or has ended before it could.
    pub fn ready(&self) -> impl Future<Output = bool> + use<> {
        let mut ready = self.ready.clone();
        async move { ready.wait_for(|ready| *ready).await.is_ok() }
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// A handle to ask the node for things from any thread.
    pub fn client(&self) -> Client {
        Client { commands: self.commands.clone() }
    }

    /// Resolves when the node has ended by itself; [`Engine::stop`] then tells why.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ready = self.ready.clone();
        async move { while ready.changed().await.is_ok() {} }
    }

    /// Stops the node: what was taken in is flushed and answered, then connections close.
    ///
    /// # Errors
    /// Why it ended, when it had ended before or could not stop cleanly.
    pub fn stop(mut self) -> Result<(), NodeError> {
        // A node that has ended takes no commands any more; its end is told by `join`.
        let _ = self.commands.blocking_send(Command::Stop);
        self.join()
    }

    fn join(&mut self) -> Result<(), NodeError> {
        match self.node.take() {
            Some(node) => node.control.join().unwrap_or(Err(NodeError::ControlPanicked)),
            None => Ok(()),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.node.is_some() {
            let _ = self.commands.try_send(Command::Stop);
            if let Err(error) = self.join() {
                tracing::error!(%error, "the node did not stop cleanly");
            }
        }
    }
}

/// Asks a running node for things.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
}

impl Client {
    /// Creates topics, changes settings and the like; `None` when the node has ended.
    pub async fn ask(&self, request: Request) -> Option<Reply> {
        ask(&self.commands, |reply| Command::Request { request, reply }).await
    }

    /// [`Client::ask`] for a thread that may wait, outside of any async runtime.
    pub fn ask_blocking(&self, request: Request) -> Option<Reply> {
        wait(self.ask(request))
    }

    /// The node's metadata and counters.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        ask(&self.commands, |reply| Command::Snapshot { reply }).await
    }

    /// [`Client::snapshot`] for a thread that may wait, outside of any async runtime.
    pub fn snapshot_blocking(&self) -> Option<Snapshot> {
        wait(self.snapshot())
    }
}

/// Waits on this thread for something that other threads bring about.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without drivers needs nothing of the system").block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::request::NewTopic;

    /// An address that was free a moment ago.
    fn free_address() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("it is bound").to_string()
    }

    fn builder(folder: &std::path::Path) -> EngineBuilder {
        let settings = [
            ("cluster.client_addr", &*free_address()),
            ("admin.addr", "none"),
            ("cores.shard_count", "2"),
            ("cores.pin", "false"),
            ("storage.journal_file_bytes", "16MiB"),
            ("cluster.topic_defaults.batch_bytes_max", "1MiB"),
        ];
        let start = EngineBuilder::new().data_dir(folder);
        settings.iter().fold(start, |builder, (key, value)| builder.set(key, value).expect("a setting"))
    }

    #[test]
    fn an_embedded_node_serves_stops_and_comes_back_with_its_topics() {
        let folder = std::env::temp_dir().join(format!("highwater-engine-{}", std::process::id()));
        let engine = builder(&folder).start().expect("the node starts");
        let clients = engine.addresses().clients.expect("clients have an address");
        std::net::TcpStream::connect(clients).expect("clients can connect");
        let create = Request::CreateTopics {
            topics: vec![NewTopic { name: "orders".into(), partitions: Some(3), ..NewTopic::default() }],
            validate_only: false,
            timeout: std::time::Duration::from_secs(30),
        };
        let client = engine.client();
        let Some(Reply::CreateTopics(created)) = client.ask_blocking(create) else { panic!("a reply") };
        assert_eq!(created[0].as_ref().map(|topic| topic.partitions), Ok(3));
        let snapshot = client.snapshot_blocking().expect("the node runs");
        let owned = snapshot.shards.iter().filter_map(|(_, stats)| Some(stats.as_ref()?.partitions_total));
        assert_eq!(owned.sum::<u64>(), 3);
        assert!(builder(&folder).start().is_err(), "a second node on the same data is refused");
        engine.stop().expect("a clean end");
        assert!(client.snapshot_blocking().is_none(), "a node that has ended answers nothing");

        let engine = builder(&folder).start().expect("the node starts again");
        let snapshot = engine.client().snapshot_blocking().expect("the node runs");
        assert!(snapshot.ready && snapshot.image.topic("orders").is_some());
        drop(engine);
        std::fs::remove_dir_all(&folder).expect("the folder is free");
    }
}
