//! The node as a member among members: what it says of itself, whom it asks first, and what it hears, as hints for
//! [`crate::control`]. It begins when the node is in a cluster, whose id binds every datagram.
//!
//! Driver; control core. It decides nothing.

mod keys;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use highwater_shards::ids::NodeId;
use zeroize::Zeroizing;

use self::keys::{Key, KeyFile};
use crate::config::{self, HostPort, can_be_told};
use crate::control::forming::ClusterId;
use crate::control::liveness::{Hint, Sign};
use crate::control::metadata::image::{Endpoint, Image, Incarnation};
use crate::control::swim::{self, Event, KeyError, Keyring, Status, SwimConfig, SwimStats};
use crate::net::auth::Secret;
use crate::runtime::NodeError;
use crate::runtime::swim::{Names, Swim};

/// News are sent this many times in an interval between pings.
const GOSSIP_PER_PING: u32 = 5;
/// What members say of themselves beside their name: this, the program's version, and nothing else so far.
const METADATA_FORMAT: u8 = 1;

/// What a node needs for gossip, before it knows its cluster.
pub(in crate::runtime) struct GossipSetup {
    pub socket: UdpSocket,
    /// Where others reach it.
    pub advertised: HostPort,
    pub config: config::Swim,
    /// Where keys that are changed at run time are kept.
    pub data_dir: PathBuf,
}

/// See the module.
pub(super) struct Gossip {
    state: State,
    keys: KeyFile,
    seeds: Vec<HostPort>,
    /// The port of all nodes, when it is not that of their TCP.
    port: Option<u16>,
    /// What the image said when the seeds were last put together.
    nodes: Vec<Endpoint>,
}

enum State {
    /// Until the host name that others are told has an address.
    Finding {
        start: Box<Start>,
        names: Names,
        has_warned: bool,
    },
    Running(Box<Swim>),
    Over,
}

struct Start {
    socket: UdpSocket,
    config: SwimConfig,
    keys: Keyring,
}

/// A change of the keys under which datagrams are sealed.
#[derive(Debug)]
pub enum KeyChange {
    Install(KeySecret),
    Use(u8),
    Remove(u8),
}

/// What a key is made from; never printed.
pub struct KeySecret(Secret);

impl KeySecret {
    /// The caller wipes `bytes`.
    ///
    /// # Errors
    /// When they are too few.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        Secret::new(bytes).map(Self).map_err(|why| why.to_string())
    }
}

impl std::fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySecret(hidden)")
    }
}

/// The members as this node sees them, for people and metrics.
#[derive(Clone, Debug, Default)]
pub struct GossipView {
    /// This node first.
    pub members: Vec<MemberInfo>,
    pub stats: SwimStats,
    /// 0 is healthy, 8 is the worst.
    pub local_health: u32,
    pub send_failures: u64,
    /// Each key with the number of datagrams that arrived under it, the one in use first.
    pub keys: Vec<(u8, u64)>,
}

#[derive(Clone, Debug)]
pub struct MemberInfo {
    pub name: Arc<str>,
    pub addr: SocketAddr,
    pub status: Status,
    pub incarnation: swim::Incarnation,
    /// Of the program that the member runs; empty when it does not say.
    pub version: String,
}

impl Gossip {
    pub fn start(
        setup: GossipSetup,
        node: NodeId,
        incarnation: Incarnation,
        cluster: ClusterId,
        first: (u8, Zeroizing<[u8; 32]>),
        seeds: &[Endpoint],
    ) -> Result<Self, NodeError> {
        let GossipSetup { socket, advertised, config, data_dir } = setup;
        let first = Key { number: first.0, secret: first.1 };
        let (file, keys) = KeyFile::open(data_dir.join(keys::FILE_NAME), &cluster.to_string(), first)
            .map_err(|error| NodeError::Secret(error.to_string()))?;
        let port = config.port.map(|port| u16::try_from(port).expect("the key takes ports only"));
        // The address is put in when it is known.
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let swim = SwimConfig {
            metadata: metadata(),
            boot_count: u32::try_from(incarnation.0).unwrap_or(u32::MAX),
            ping_interval: config.ping_interval,
            ping_timeout: config.ping_timeout,
            indirect_probes: config.indirect_probes as usize,
            suspicion_multiplier: config.suspicion_multiplier,
            gossip_interval: config.ping_interval / GOSSIP_PER_PING,
            ..SwimConfig::new(&node.0.to_string(), nowhere)
        };
        let mut names = Names::new(vec![advertised], u64::from(node.0));
        names.ask();
        let start = Box::new(Start { socket, config: swim, keys });
        let mut gossip = Self {
            state: State::Finding { start, names, has_warned: false },
            keys: file,
            seeds: Vec::new(),
            port,
            nodes: Vec::new(),
        };
        gossip.seeds = seeds.iter().map(|seed| gossip.at(seed)).collect();
        Ok(gossip)
    }

    fn at(&self, node: &Endpoint) -> HostPort {
        HostPort { host: node.host.clone(), port: self.port.unwrap_or(node.port) }
    }

    /// The next hint. May be dropped and called again without a loss; nothing is received or sent otherwise.
    pub async fn next(&mut self) -> Hint {
        loop {
            match &mut self.state {
                State::Finding { names, .. } => {
                    let found = names.next().await;
                    self.on_found(&found);
                }
                State::Running(swim) => match swim.next().await {
                    Some(event) => {
                        if let Some(hint) = hint(&event) {
                            return hint;
                        }
                    }
                    None => self.state = State::Over,
                },
                State::Over => std::future::pending().await,
            }
        }
    }

    fn on_found(&mut self, found: &[SocketAddr]) {
        let State::Finding { start, names, has_warned } = &mut self.state else { return };
        let bound = start.socket.local_addr().ok();
        // What the operator wrote as an address is taken as it is; what a name means here may be wrong elsewhere.
        let fits = |addr: &&SocketAddr| {
            names.are_addresses() || bound.is_some_and(|bound| fits(addr.ip(), bound.ip()))
        };
        let Some(addr) = found.iter().find(fits) else {
            if !std::mem::replace(has_warned, true) {
                tracing::warn!(
                    "this node takes no part in gossip: its advertised name has these addresses here, at which others \
                     do not reach it: {found:?}; set `cluster.swim.addr_advertised`"
                );
            }
            return names.ask();
        };
        let addr = *addr;
        let State::Finding { start, .. } = std::mem::replace(&mut self.state, State::Over) else {
            unreachable!("it was just seen")
        };
        let Start { socket, config, keys } = *start;
        match Swim::start(socket, SwimConfig { addr, ..config }, keys, self.seeds.clone()) {
            Ok(swim) => {
                tracing::info!("gossip: others reach this node at {addr}");
                self.state = State::Running(Box::new(swim));
            }
            Err(error) => tracing::error!("this node takes no part in gossip: {error}"),
        }
    }

    /// The nodes of the image are seeds too: a node may have come in through others than its configured seeds.
    pub fn know(&mut self, image: &Image) {
        let State::Running(swim) = &mut self.state else { return };
        let known = || image.nodes.values().map(|node| &node.cluster);
        if known().eq(&self.nodes) {
            return;
        }
        self.nodes = known().cloned().collect();
        let mut all = self.seeds.clone();
        for node in self.nodes.iter().filter(|node| !node.host.is_empty()) {
            let at = HostPort { host: node.host.clone(), port: self.port.unwrap_or(node.port) };
            if !all.contains(&at) {
                all.push(at);
            }
        }
        swim.set_seeds(all);
    }

    /// Tells the others that this node stops.
    pub fn leave(&mut self) {
        if let State::Running(swim) = &mut self.state {
            swim.leave();
        }
    }

    /// Changes the keys, for this life and those after it; the words for whoever asked for it.
    pub fn change_keys(&mut self, change: KeyChange) -> Result<String, String> {
        let keys = match &mut self.state {
            State::Finding { start, .. } => &mut start.keys,
            State::Running(swim) => swim.keyring(),
            State::Over => return Err("this node takes no part in gossip".into()),
        };
        let mut new = None;
        let (done, words) = match change {
            KeyChange::Install(KeySecret(secret)) => {
                let (number, key) = secret.gossip_key();
                let done = keys.install(number, &*key);
                new = Some(Key { number, secret: key });
                if done == Err(KeyError::Twice(number)) {
                    return Err(format!(
                        "key {number} is installed already: it is this secret's, or by chance that of another one; then \
                         make a new secret"
                    ));
                }
                (done, format!("key {number} is installed: datagrams under it are accepted"))
            }
            KeyChange::Use(number) => {
                (keys.use_key(number), format!("key {number} is in use: datagrams are sent under it"))
            }
            KeyChange::Remove(number) => {
                (keys.remove(number), format!("key {number} is removed: datagrams under it are refused"))
            }
        };
        done.map_err(|error| error.to_string())?;
        tracing::info!("gossip: {words}");
        self.keys.keep(keys, new).map_err(|error| {
            format!("{words}, but only until this node stops, because that could not be written: {error}")
        })?;
        Ok(words)
    }

    pub fn view(&self) -> GossipView {
        match &self.state {
            State::Finding { start, .. } => {
                GossipView { keys: start.keys.received().collect(), ..GossipView::default() }
            }
            State::Running(swim) => GossipView {
                members: swim.members().map(info).collect(),
                stats: *swim.stats(),
                local_health: swim.local_health(),
                send_failures: swim.send_failures(),
                keys: swim.keys().collect(),
            },
            State::Over => GossipView::default(),
        }
    }
}

/// Whether others can be told an address of a name: one that the socket can have, and loopback only if it is all there is.
fn fits(ip: IpAddr, bound: IpAddr) -> bool {
    let family = bound.is_ipv6() || ip.is_ipv4();
    family && can_be_told(ip) && (!ip.is_loopback() || bound.is_loopback())
}

fn hint(event: &Event) -> Option<Hint> {
    let (name, incarnation, sign) = match event {
        Event::Joined { name, incarnation, .. } => (name, incarnation, Sign::Joined),
        Event::Suspected { name, incarnation } => (name, incarnation, Sign::Suspected),
        Event::Alive { name, incarnation } => (name, incarnation, Sign::Alive),
        Event::Left { name, incarnation } => (name, incarnation, Sign::Left),
        Event::Died { name, incarnation, .. } => (name, incarnation, Sign::Died),
        Event::MetadataChanged { name, incarnation, .. } => (name, incarnation, Sign::Changed),
    };
    // Other members than nodes are no concern of the cluster.
    let node = NodeId(name.parse().ok()?);
    match sign {
        Sign::Died => tracing::warn!("gossip: node {node} is dead, life {}", incarnation.boot_count),
        Sign::Changed => {}
        sign => tracing::info!("gossip: node {node}, life {}: {sign:?}", incarnation.boot_count),
    }
    Some(Hint { node, incarnation: Incarnation(u64::from(incarnation.boot_count)), sign })
}

fn metadata() -> Vec<u8> {
    let mut bytes = vec![METADATA_FORMAT];
    bytes.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
    bytes
}

fn info(member: swim::MemberView<'_>) -> MemberInfo {
    let version = match &member.metadata[..] {
        [METADATA_FORMAT, version @ ..] => String::from_utf8_lossy(version).into_owned(),
        _ => String::new(),
    };
    MemberInfo {
        name: Arc::clone(member.name),
        addr: member.addr,
        status: member.status,
        incarnation: member.incarnation,
        version,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::new(&[byte; 32]).unwrap()
    }

    fn gossip(name: &str, bound: &str, advertised: &str) -> Gossip {
        let socket = crate::runtime::swim::bind(bound.parse().unwrap()).unwrap();
        let advertised = HostPort { host: advertised.into(), port: socket.local_addr().unwrap().port() };
        let config = config::Config::default().cluster.swim;
        let data_dir = std::env::temp_dir().join(format!("highwater-gossip-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&data_dir).unwrap();
        let setup = GossipSetup { socket, advertised, config, data_dir };
        let cluster = "AAAAAAAAAAAAAAAAAAAAAQ".parse();
        let cluster = cluster.unwrap_or_else(|_| panic!("an id of a cluster"));
        Gossip::start(setup, NodeId(3), Incarnation(9), cluster, secret(7).gossip_key(), &[]).unwrap()
    }

    #[tokio::test]
    async fn a_node_is_named_by_its_id_and_its_life_is_its_incarnation() {
        let mut gossip = gossip("named", "127.0.0.1:0", "127.0.0.1");
        let _ = tokio::time::timeout(Duration::from_millis(5), gossip.next()).await;
        let view = gossip.view();
        let [me] = &view.members[..] else { panic!("{view:?}") };
        assert_eq!((&*me.name, me.incarnation.boot_count), ("3", 9));
        assert_eq!(me.version, env!("CARGO_PKG_VERSION"));
        assert!(me.addr.ip().is_loopback());
    }

    #[tokio::test]
    async fn keys_have_the_same_number_everywhere_and_are_changed_in_order() {
        let start = || gossip("keys", "127.0.0.1:0", "127.0.0.1");
        let mut gossip = start();
        let (old, new) = (secret(7).gossip_key().0, secret(8).gossip_key().0);
        assert_ne!(old, new);
        let install = |byte| KeyChange::Install(KeySecret(secret(byte)));
        assert!(gossip.change_keys(install(7)).unwrap_err().contains("installed already"));
        assert!(gossip.change_keys(install(8)).unwrap().contains(&format!("key {new} is installed")));
        assert!(gossip.change_keys(KeyChange::Remove(old)).unwrap_err().contains("in use"));
        assert!(gossip.change_keys(KeyChange::Use(new)).is_ok());
        assert_eq!(gossip.view().keys, [(new, 0), (old, 0)]);
        assert!(gossip.change_keys(KeyChange::Remove(old)).is_ok());
        assert_eq!(gossip.view().keys, [(new, 0)]);
        let file = gossip.keys.path().to_owned();
        drop(gossip);
        assert_eq!(start().view().keys, [(new, 0)], "also in the next life");
        std::fs::remove_file(file).unwrap();
        assert_eq!(start().view().keys, [(old, 0)]);
        assert_eq!(format!("{:?}", install(8)), "Install(KeySecret(hidden))");
    }

    #[tokio::test]
    async fn an_address_is_taken_as_it_was_written_and_a_name_only_if_it_can_mean_that_elsewhere() {
        let mut written = gossip("written", "0.0.0.0:0", "127.0.0.1");
        let _ = tokio::time::timeout(Duration::from_millis(5), written.next()).await;
        assert_eq!(written.view().members.len(), 1);
        let mut named = gossip("localhost", "0.0.0.0:0", "localhost");
        let _ = tokio::time::timeout(Duration::from_millis(200), named.next()).await;
        assert_eq!(named.view().members.len(), 0, "it goes on looking");
        assert!(matches!(named.state, State::Finding { .. }));
    }

    #[test]
    fn only_addresses_that_mean_something_elsewhere_are_told() {
        let fits = |ip: &str, bound: &str| fits(ip.parse().unwrap(), bound.parse().unwrap());
        assert!(fits("10.0.0.1", "0.0.0.0") && fits("10.0.0.1", "::") && fits("fd00::1", "::"));
        assert!(fits("127.0.0.1", "127.0.0.1"), "all nodes on one host");
        assert!(!fits("127.0.1.1", "0.0.0.0"), "what many hosts call themselves");
        assert!(!fits("fd00::1", "0.0.0.0") && !fits("fe80::1", "::") && !fits("0.0.0.0", "0.0.0.0"));
    }
}
