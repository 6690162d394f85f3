//! Tests over a small network in memory: datagrams arrive after a fixed time, and every one is recorded.

mod fuzz;
mod protocol;
mod security;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Duration;

use highwater_shards::time::Instant;

use super::*;

const DELAY: Duration = Duration::from_millis(1);
const SECRET: &[u8] = &[7; 32];

fn addr(node: usize) -> SocketAddr {
    ([10, 0, 0, u8::try_from(node + 1).unwrap()], 7946).into()
}

fn keys() -> Keyring {
    Keyring::new("tests", 1, SECRET).unwrap()
}

fn config(node: usize) -> SwimConfig {
    SwimConfig::new(&format!("n{node}"), addr(node))
}

fn entropy(node: usize, life: u32) -> Entropy {
    let mut bytes = [0x5a; 32];
    bytes[0] = u8::try_from(node).unwrap();
    bytes[16] = u8::try_from(life).unwrap();
    Entropy(bytes)
}

/// A datagram on its way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Sent {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

struct Net {
    now: Instant,
    nodes: Vec<Option<Membership>>,
    lives: Vec<u32>,
    queue: BinaryHeap<Reverse<(Instant, u64, Sent)>>,
    count: u64,
    /// Everything that was sent, from anyone to anyone.
    record: Vec<Sent>,
    /// Everything that arrived at a life of a member, in order.
    delivered: Vec<Sent>,
    events: Vec<(usize, Event)>,
    /// Datagrams that are lost: of so many thousand, drawn by a counter that is mixed.
    loss_permille: u64,
    deaf: Vec<usize>,
    mute: Vec<usize>,
}

impl Net {
    fn new(nodes: usize) -> Self {
        let members = (0..nodes).map(|n| Membership::new(config(n), keys(), &entropy(n, 1), Instant::ZERO));
        Self {
            now: Instant::ZERO,
            nodes: members.map(|member| Some(member.unwrap())).collect(),
            lives: vec![1; nodes],
            queue: BinaryHeap::new(),
            count: 0,
            record: Vec::new(),
            delivered: Vec::new(),
            events: Vec::new(),
            loss_permille: 0,
            deaf: Vec::new(),
            mute: Vec::new(),
        }
    }

    /// All know all, and the news of that have ended.
    fn joined(nodes: usize) -> Self {
        let mut net = Self::new(nodes);
        for node in 0..nodes {
            net.feed(node, Input::Join { seeds: vec![addr(0)] });
        }
        net.run(Duration::from_secs(5));
        for node in 0..nodes {
            assert_eq!(net.node(node).live_count(), nodes, "n{node} does not know all");
        }
        net.events.clear();
        net
    }

    fn node(&mut self, node: usize) -> &mut Membership {
        self.nodes[node].as_mut().unwrap()
    }

    fn feed(&mut self, node: usize, input: Input<'_>) {
        let now = self.now;
        let Some(member) = &mut self.nodes[node] else { return };
        member.handle(now, input);
        self.drain(node);
    }

    fn drain(&mut self, node: usize) {
        let Some(member) = &mut self.nodes[node] else { return };
        while let Some(output) = member.poll_output() {
            match output {
                Output::Send { to, bytes } => {
                    let sent = Sent { from: addr(node), to, bytes: bytes.to_vec() };
                    self.record.push(sent.clone());
                    self.count += 1;
                    let lost = member::mix(self.count) % 1000 < self.loss_permille;
                    if !lost && !self.mute.contains(&node) {
                        self.queue.push(Reverse((self.now + DELAY, self.count, sent)));
                    }
                }
                Output::Event(event) => self.events.push((node, event)),
                _ => {}
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.queue.peek().map(|Reverse((at, _, _))| *at);
            let timers = self.nodes.iter().enumerate();
            let timer = timers.filter_map(|(n, m)| Some((m.as_ref()?.poll_timeout()?, n))).min();
            let next = arrival.into_iter().chain(timer.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            // What has arrived comes before any timer.
            if arrival.is_some_and(|at| at <= self.now) {
                let Some(Reverse((_, _, sent))) = self.queue.pop() else { break };
                self.deliver(&sent);
            } else if let Some((_, node)) = timer {
                self.feed(node, Input::Timeout);
            }
        }
        self.now = end;
    }

    fn deliver(&mut self, sent: &Sent) {
        for node in 0..self.nodes.len() {
            if addr(node) == sent.to && !self.deaf.contains(&node) && self.nodes[node].is_some() {
                self.delivered.push(sent.clone());
                self.feed(node, Input::Datagram { from: sent.from, bytes: &sent.bytes });
            }
        }
    }

    fn stop(&mut self, node: usize) {
        self.nodes[node] = None;
    }

    fn restart(&mut self, node: usize) {
        self.lives[node] += 1;
        let config = SwimConfig { boot_count: self.lives[node], ..config(node) };
        let entropy = entropy(node, self.lives[node]);
        self.nodes[node] = Some(Membership::new(config, keys(), &entropy, self.now).unwrap());
        self.feed(node, Input::Join { seeds: vec![addr(0), addr(1)] });
    }

    fn status(&mut self, by: usize, of: usize) -> Option<Status> {
        let name = format!("n{of}");
        self.node(by).members().find(|member| **member.name == *name).map(|member| member.status)
    }

    fn deaths(&self) -> usize {
        self.events.iter().filter(|(_, event)| matches!(event, Event::Died { .. })).count()
    }

    /// All that a member knows, for comparing.
    fn table(&mut self, node: usize) -> Vec<(String, Status, Incarnation, SocketAddr, Vec<u8>)> {
        let members = self.node(node).members();
        members.map(|m| (m.name.to_string(), m.status, m.incarnation, m.addr, m.metadata.to_vec())).collect()
    }
}
