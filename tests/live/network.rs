//! A network of our own: each node in a network namespace behind a router whose rules drop packets without a word, by
//! direction and by port. Making one needs rights that not every machine gives.
//!
//! The test's thread is in the router's namespace while a [`Network`] lives, so that it reaches all nodes, whatever is
//! cut between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// The router and the nodes behind it, 1 to N.
pub struct Network {
    name: String,
    nodes: usize,
    /// Where the test's thread came from.
    home: File,
    /// What rules there are, as `ip rule` takes them.
    rules: Vec<String>,
}

impl Network {
    /// A network, or `None` after saying why there is none. In CI (`HIGHWATER_NO_SKIP=1`) there must be one.
    pub fn try_new(nodes: usize) -> Option<Self> {
        match Self::new(nodes) {
            Ok(network) => Some(network),
            Err(why) => {
                let must = std::env::var_os("HIGHWATER_NO_SKIP").is_some();
                assert!(!must, "this machine must allow network namespaces: {why}");
                // Straight to the stream: what a passing test prints is not shown.
                let line = format!("SKIPPED, no network of our own: {why}\n");
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
        }
    }

    fn new(nodes: usize) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("highwater-{}-{number}", std::process::id());
        let home = File::open(THIS_THREAD).map_err(|e| e.to_string())?;
        // From here on dropping it cleans up what there is.
        let network = Self { name, nodes, home, rules: Vec::new() };
        let router = network.space(0);
        ip(&["netns", "add", &router])?;
        ip(&["-n", &router, "link", "set", "lo", "up"])?;
        for node in 1..=nodes {
            let (space, link) = (network.space(node), format!("node{node}"));
            let (near, far) = (format!("10.9.{node}.1"), format!("10.9.{node}.2"));
            ip(&["netns", "add", &space])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
            let pair = ["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &space];
            ip(&[&["-n", &router], &pair[..]].concat())?;
            for (space, link, address) in [(&router, &*link, &near), (&space, "eth0", &far)] {
                ip(&["-n", space, "addr", "add", &format!("{address}/24"), "dev", link])?;
                ip(&["-n", space, "link", "set", link, "up"])?;
            }
            ip(&["-n", &space, "route", "add", "default", "via", &near])?;
        }
        network.enter(0)?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(|e| format!("forwarding: {e}"))?;
        Ok(network)
    }

    /// 0 is the router.
    fn space(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    fn enter(&self, node: usize) -> Result<(), String> {
        let space = File::open(format!("/run/netns/{}", self.space(node))).map_err(|e| e.to_string())?;
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| e.to_string())
    }

    pub fn address(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, u8::try_from(node).unwrap(), 2)
    }

    /// Calls `f` in the namespace of the node; processes that it starts stay there.
    pub fn inside<T>(&self, node: usize, f: impl FnOnce() -> T) -> T {
        self.enter(node).unwrap();
        let out = f();
        self.enter(0).unwrap();
        out
    }

    /// From now on packets from one to the other vanish.
    pub fn drop_between(&mut self, from: usize, to: usize) {
        let (from, to) = (self.address(from), self.address(to));
        self.add_rule(format!("from {from} to {to} blackhole"));
    }

    /// Nothing comes through in either direction.
    pub fn cut(&mut self, one: usize, other: usize) {
        self.drop_between(one, other);
        self.drop_between(other, one);
    }

    /// The packets of the TCP connections that there are now between the two vanish; new connections are not touched.
    /// How many connections those are.
    pub fn cut_connections(&mut self, one: usize, other: usize) -> usize {
        let far = self.address(other);
        let near = self.address(one);
        let table = self.inside(one, || fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        let connections: Vec<(u16, u16)> =
            table.lines().skip(1).filter_map(|line| between(line, far)).collect();
        for (here, there) in &connections {
            let ports = |source, target| format!("ipproto tcp sport {source} dport {target} blackhole");
            self.add_rule(format!("from {near} to {far} {}", ports(here, there)));
            self.add_rule(format!("from {far} to {near} {}", ports(there, here)));
        }
        connections.len()
    }

    fn add_rule(&mut self, rule: String) {
        self.rule("add", &rule).unwrap();
        self.rules.push(rule);
    }

    fn rule(&self, what: &str, rule: &str) -> Result<(), String> {
        let router = self.space(0);
        let mut arguments = vec!["-n", &router, "rule", what];
        arguments.extend(rule.split(' '));
        ip(&arguments)
    }

    /// All packets come through again.
    pub fn heal(&mut self) {
        for rule in std::mem::take(&mut self.rules) {
            self.rule("del", &rule).unwrap();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What cannot be cleaned up is in the way of nobody: the names are this process's own.
        let _ = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
        for node in 0..=self.nodes {
            let _ = ip(&["netns", "del", &self.space(node)]);
        }
    }
}

/// The ports of an established connection to `far`, from a line of /proc/net/tcp.
fn between(line: &str, far: Ipv4Addr) -> Option<(u16, u16)> {
    const ESTABLISHED: &str = "01";
    let mut fields = line.split_whitespace().skip(1);
    let (here, there, state) = (fields.next()?, fields.next()?, fields.next()?);
    let at = |text: &str| {
        let (address, port) = text.split_once(':')?;
        // The address is four bytes as they lie in memory.
        let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
        Some(SocketAddr::from((address, u16::from_str_radix(port, 16).ok()?)))
    };
    let (here, there) = (at(here)?, at(there)?);
    (state == ESTABLISHED && there.ip() == far).then(|| (here.port(), there.port()))
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|e| format!("ip: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", arguments.join(" "), said.trim())) }
}
