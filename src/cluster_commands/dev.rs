//! `highwater dev cluster`: several nodes as child processes on this machine.
//!
//! Driver; main thread. It restarts nothing: when one node ends, the others are stopped too, so that a failure is seen.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus as ProcessStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::cli::DevClusterArgs;
use crate::error::{ExitStatus, Failure};

/// From one node's ports to the next one's.
const PORT_STEP: u16 = 10;
/// For nodes to flush and end when they are told to; then they are killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(30);
const SECRET_BYTES: usize = 32;
/// Bytes of one line of a node's output that are kept in one piece.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Where a node listens, always on the loopback address.
struct Ports {
    clients: u16,
    peers: u16,
    admin: u16,
}

impl DevClusterArgs {
    /// Runs the nodes until a signal ends them.
    ///
    /// # Errors
    /// When a node ended by itself, or not cleanly.
    pub fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| environment(format!("no runtime: {e}")))?;
        runtime.block_on(self.supervise())
    }

    fn ports(&self, node: u16) -> Ports {
        let clients = self.port + PORT_STEP * (node - 1);
        Ports { clients, peers: clients + 1, admin: clients + 2 }
    }

    /// The arguments of one node; what the user set comes last and wins.
    fn arguments(&self, node: u16, secret: &Path) -> Vec<String> {
        let local = |port: u16| format!("127.0.0.1:{port}");
        let Ports { clients, peers, admin } = self.ports(node);
        let seeds: Vec<String> = (1..=self.nodes).map(|other| local(self.ports(other).peers)).collect();
        let mut arguments: Vec<String> = [
            "serve",
            "--profile",
            "dev",
            "--data-dir",
            &self.data_dir.join(format!("node-{node}")).display().to_string(),
            "--listen",
            &local(clients),
            "--admin",
            &local(admin),
        ]
        .map(str::to_owned)
        .into();
        let settings = [
            ("cluster.mode", "cluster".to_owned()),
            ("cluster.node_id", node.to_string()),
            ("cluster.cluster_addr", local(peers)),
            ("cluster.seeds", format!("[{}]", seeds.join(","))),
            ("security.cluster_secret_file", secret.display().to_string()),
        ];
        let set = self.set.iter().map(|(key, value)| (key.as_str(), value.clone()));
        for (key, value) in settings.into_iter().chain(set) {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        arguments
    }

    async fn supervise(&self) -> Result<(), Failure> {
        let no_signals = |e| environment(format!("signals cannot be handled: {e}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let secret = secret_file(&self.data_dir)?;
        let program =
            std::env::current_exe().map_err(|e| environment(format!("cannot find this program: {e}")))?;
        let mut nodes = JoinSet::new();
        let mut pids = Vec::new();
        let mut failure = None;
        for node in 1..=self.nodes {
            match start(&program, node, &self.arguments(node, &secret)) {
                Ok(child) => {
                    pids.extend(
                        child
                            .id()
                            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
                            .map(|pid| (node, pid)),
                    );
                    nodes.spawn(watch(node, child));
                }
                Err(e) => {
                    failure = Some(environment(format!("node {node} cannot be started: {e}")));
                    break;
                }
            }
        }
        if failure.is_none() {
            say(&self.greeting());
            failure = tokio::select! {
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
                ended = nodes.join_next() => ended.and_then(Result::ok).map(|(node, status)| {
                    pids.retain(|(other, _)| *other != node);
                    let words = format!("node {node} ended by itself ({}), so the others were stopped", told(&status));
                    Failure::new(exit_status(&status), words)
                }),
            };
        }
        self.stop(nodes, &pids, failure).await
    }

    /// Ends all nodes; what went wrong first is the result.
    async fn stop(
        &self,
        mut nodes: JoinSet<(u16, std::io::Result<ProcessStatus>)>,
        pids: &[(u16, Pid)],
        mut failure: Option<Failure>,
    ) -> Result<(), Failure> {
        // A child keeps its process id until it has been waited for, so none of these is somebody else's.
        let tell = |signal: Signal, gone: &[u16]| {
            for (_, pid) in pids.iter().filter(|(node, _)| !gone.contains(node)) {
                let _ = kill_process(*pid, signal);
            }
        };
        let mut gone = Vec::new();
        tell(Signal::TERM, &gone);
        let until = tokio::time::Instant::now() + STOP_TIME_MAX;
        loop {
            match tokio::time::timeout_at(until, nodes.join_next()).await {
                Ok(None) => break,
                Ok(Some(Err(_))) => {}
                Ok(Some(Ok((node, status)))) => {
                    gone.push(node);
                    if !status.as_ref().is_ok_and(ProcessStatus::success) {
                        let words = format!("node {node} did not stop cleanly ({})", told(&status));
                        failure.get_or_insert_with(|| Failure::new(exit_status(&status), words));
                    }
                }
                Err(_) => {
                    tell(Signal::KILL, &gone);
                    let words = format!(
                        "not all nodes stopped within {} s; they were killed",
                        STOP_TIME_MAX.as_secs()
                    );
                    failure.get_or_insert_with(|| Failure::new(ExitStatus::Storage, words));
                    break;
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn greeting(&self) -> String {
        let nodes = || (1..=self.nodes).map(|node| (node, self.ports(node)));
        let mut text = String::new();
        for (node, Ports { clients, peers, admin }) in nodes() {
            text += &format!(
                "node {node}: Kafka clients 127.0.0.1:{clients}, other nodes 127.0.0.1:{peers}, admin http://127.0.0.1:{admin}\n"
            );
        }
        let bootstrap: Vec<String> =
            nodes().map(|(_, ports)| format!("127.0.0.1:{}", ports.clients)).collect();
        text += &format!(
            "try:  highwater cluster status --admin 127.0.0.1:{}  and  kcat -b {} -L\n",
            self.ports(1).admin,
            bootstrap.join(",")
        );
        text
    }
}

fn environment(why: String) -> Failure {
    Failure::new(ExitStatus::Environment, why)
}

fn say(text: &str) {
    // A reader that has gone does not stop the nodes.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// The file with the nodes' secret; made at the first start, readable by its owner alone.
fn secret_file(folder: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(folder)
        .map_err(|e| environment(format!("{} cannot be made: {e}", folder.display())))?;
    let path = folder.join("cluster-secret");
    let mut bytes = [0u8; SECRET_BYTES];
    let drawn = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    if drawn != Ok(SECRET_BYTES) {
        return Err(environment("no entropy for the secret of the nodes".into()));
    }
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    match file.and_then(|mut file| file.write_all(format!("{text}\n").as_bytes())) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(environment(format!("{} cannot be written: {e}", path.display())))
        }
        _ => Ok(path),
    }
}

fn start(program: &Path, node: u16, arguments: &[String]) -> std::io::Result<Child> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(output) = child.stdout.take() {
        tokio::spawn(relay(node, output, false));
    }
    if let Some(output) = child.stderr.take() {
        tokio::spawn(relay(node, output, true));
    }
    Ok(child)
}

/// Waits for the end of one node.
async fn watch(node: u16, mut child: Child) -> (u16, std::io::Result<ProcessStatus>) {
    (node, child.wait().await)
}

/// Prints every line of a node's output behind the node's number.
async fn relay(node: u16, output: impl AsyncRead + Unpin, is_error: bool) {
    let mut output = BufReader::with_capacity(LINE_BYTES_MAX, output);
    let mut line = Vec::new();
    loop {
        let Ok(some) = output.fill_buf().await else { return };
        if some.is_empty() && line.is_empty() {
            return;
        }
        let end = some.iter().position(|byte| *byte == b'\n');
        let (taken, is_whole) = (end.map_or(some.len(), |end| end + 1), end.is_some() || some.is_empty());
        line.extend_from_slice(&some[..taken]);
        output.consume(taken);
        if is_whole || line.len() >= LINE_BYTES_MAX {
            let text = format!("{node} | {}\n", String::from_utf8_lossy(&line).trim_end());
            line.clear();
            // A reader that has gone does not stop the node.
            let _ = match is_error {
                true => std::io::stderr().lock().write_all(text.as_bytes()),
                false => std::io::stdout().lock().write_all(text.as_bytes()),
            };
        }
    }
}

fn told(status: &std::io::Result<ProcessStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(e) => e.to_string(),
    }
}

/// The status of the command when this is how a node ended.
fn exit_status(status: &std::io::Result<ProcessStatus>) -> ExitStatus {
    let code = status.as_ref().ok().and_then(ProcessStatus::code);
    let known = ExitStatus::ALL.into_iter().find(|known| code == Some(i32::from(*known as u8)));
    known.filter(|known| *known != ExitStatus::Ok).unwrap_or(ExitStatus::Environment)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::config::{Secret, Setting, Sources, load};

    fn args(nodes: u16, folder: &Path) -> DevClusterArgs {
        let set = vec![("log.level".to_owned(), "warn".to_owned())];
        DevClusterArgs { nodes, data_dir: folder.into(), port: 9092, set }
    }

    #[test]
    fn nodes_have_ports_of_their_own_and_the_same_seeds_and_secret() {
        let folder = std::env::temp_dir().join(format!("highwater-dev-{}", std::process::id()));
        let args = args(9, &folder);
        let secret = secret_file(&folder).unwrap();
        let made = Secret::read(&secret).unwrap();
        assert_eq!(
            secret_file(&folder).map(|path| Secret::read(&path).unwrap() == made),
            Ok(true),
            "made once"
        );
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        let mut ports = Vec::new();
        for node in 1..=9 {
            // What the command line would make of the arguments.
            let arguments = args.arguments(node, &secret);
            let set = arguments.windows(2).filter(|pair| pair[0] == "--set").map(|pair| {
                let (path, value) = pair[1].split_once('=').unwrap();
                Setting { path: path.into(), value: value.into(), flag: String::new() }
            });
            let named =
                [("--listen", "cluster.client_addr"), ("--admin", "admin.addr"), ("--profile", "profile")];
            let named = named.iter().map(|(flag, path)| {
                let at = arguments.iter().position(|argument| argument == flag).unwrap();
                Setting { path: (*path).into(), value: arguments[at + 1].clone(), flag: String::new() }
            });
            let loaded = load(&Sources { flags: named.chain(set).collect(), ..Sources::default() });
            let config = loaded.unwrap_or_else(|problems| panic!("{problems}")).config;
            assert_eq!(config.security.secret().unwrap().as_ref(), Some(&made));
            assert_eq!((config.cluster.node_id.0, config.log.level.as_str()), (u32::from(node), "warn"));
            assert_eq!(config.cluster.seeds.len(), 9);
            assert!(config.cluster.seeds.contains(&config.cluster.cluster_advertised()));
            ports.extend([
                config.cluster.client_addr,
                config.cluster.cluster_addr,
                config.admin.addr.unwrap(),
            ]);
        }
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), all);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_node_that_ends_by_itself_is_a_failure_whatever_its_status() {
        let status = |raw| exit_status(&Ok(ProcessStatus::from_raw(raw)));
        assert_eq!(status(5 << 8), ExitStatus::Storage);
        assert_eq!(status(0), ExitStatus::Environment, "it should not have ended");
        assert_eq!(status(9), ExitStatus::Environment, "killed");
        assert_eq!(status(77 << 8), ExitStatus::Environment);
    }

    #[tokio::test]
    async fn a_child_that_fails_is_told_by_its_status() {
        let child =
            start(Path::new("/bin/sh"), 7, &["-c".into(), "echo out; echo err >&2; exit 5".into()]).unwrap();
        let (node, status) = watch(7, child).await;
        assert_eq!(
            (node, exit_status(&status), told(&status).as_str()),
            (7, ExitStatus::Storage, "exit status: 5")
        );
    }
}
