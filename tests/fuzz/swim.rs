//! Datagrams of the membership protocol, as they come to a member.
//!
//! The corpus is what two members send to a third one in a conversation that is the same each time. Damaged datagrams
//! must change nothing at all; under a right tag they may say anything, and the member must stay sound.

use std::net::SocketAddr;
use std::time::Duration;

use highwater::control::swim::{
    DATAGRAM_BYTES_MAX, Entropy, Input, Keyring, MEMBERS_MAX, Membership, Output, Status, SwimConfig, forge,
};
use highwater_shards::time::Instant;
use highwater_sim::rng::Rng;

use crate::target::{Target, hold};

const MEMBERS: usize = 3;
/// The member that gets the datagrams, and the one that they come from.
const RECEIVER: usize = 0;
const SENDER: usize = 1;
const DELAY: Duration = Duration::from_millis(1);
/// Datagrams that one input may give rise to: pages, records and gossip, each bounded.
const ANSWERS_MAX: usize = 200;

/// A member's [`Membership::handle`], with its decoder.
pub struct Received;

fn keys() -> Keyring {
    Keyring::new("fuzz", 7, &[7; 32]).expect("a secret of 32 bytes is long enough")
}

fn addr(member: usize) -> SocketAddr {
    ([10, 0, 0, member as u8 + 1], 7946).into()
}

/// What was sent by whom to whom.
type Sent = (usize, SocketAddr, Vec<u8>);

struct World {
    members: Vec<Membership>,
    now: Instant,
}

impl World {
    /// Members that know each other.
    fn joined() -> Self {
        let member = |at: usize| {
            let mut config = SwimConfig::new(&format!("m{at}"), addr(at));
            config.metadata = vec![at as u8; 40];
            let entropy = Entropy([at as u8 + 1; 32]);
            Membership::new(config, keys(), &entropy, Instant::ZERO).expect("the settings are right")
        };
        let mut world = Self { members: (0..MEMBERS).map(member).collect(), now: Instant::ZERO };
        for at in 1..MEMBERS {
            world.members[at].handle(Instant::ZERO, Input::Join { seeds: vec![addr(0)] });
        }
        for _ in 0..60 {
            let sent = world.step();
            world.deliver(sent, |_| true);
        }
        assert!(world.members.iter().all(|member| member.live_count() == MEMBERS), "all know all");
        world
    }

    /// What everyone sends now, and then it is later.
    fn step(&mut self) -> Vec<Sent> {
        let mut all = Vec::new();
        for (from, member) in self.members.iter_mut().enumerate() {
            if member.poll_timeout().is_some_and(|at| at <= self.now) {
                member.handle(self.now, Input::Timeout);
            }
            while let Some(output) = member.poll_output() {
                if let Output::Send { to, bytes } = output {
                    all.push((from, to, bytes.to_vec()));
                }
            }
        }
        self.now = self.now + DELAY;
        all
    }

    fn deliver(&mut self, sent: Vec<Sent>, may: impl Fn(&Sent) -> bool) {
        for one in sent {
            if !may(&one) {
                continue;
            }
            let (from, to, bytes) = one;
            if let Some(at) = (0..MEMBERS).find(|at| addr(*at) == to) {
                self.members[at].handle(self.now, Input::Datagram { from: addr(from), bytes: &bytes });
            }
        }
    }

    fn table(&self) -> Vec<String> {
        self.members[RECEIVER].members().map(|member| format!("{member:?}")).collect()
    }

    /// Gives the receiver a datagram; how many it sends in answer, and how many events it tells.
    fn receive(&mut self, bytes: &[u8]) -> (usize, usize) {
        let member = &mut self.members[RECEIVER];
        member.handle(self.now, Input::Datagram { from: addr(SENDER), bytes });
        let (mut sent, mut told) = (0, 0);
        while let Some(output) = member.poll_output() {
            match output {
                Output::Send { bytes, .. } => {
                    assert!(bytes.len() <= DATAGRAM_BYTES_MAX, "{} bytes were sent", bytes.len());
                    sent += 1;
                }
                _ => told += 1,
            }
        }
        (sent, told)
    }
}

impl Target for Received {
    fn name(&self) -> &'static str {
        "swim"
    }

    fn generate(&self) -> Vec<(&'static str, Vec<u8>)> {
        const NAMES: [&str; 13] = [
            "ping",
            "ack",
            "ask-for-probe",
            "nack",
            "gossip",
            "join",
            "challenge",
            "challenge-to-join",
            "echo",
            "hashes",
            "page",
            "pull",
            "records",
        ];
        let mut world = World::joined();
        let mut found: Vec<(&'static str, Vec<u8>)> = Vec::new();
        // The receiver hears nothing any more, so that the others suspect it, ask each other, and have news.
        for step in 0..2_000 {
            if step == 20 {
                world.members[2].handle(world.now, Input::Metadata(vec![9; 300]));
            }
            let sent = world.step();
            for (from, to, bytes) in &sent {
                // The first byte of the body says what it is; from the sender alone, as the oracle takes it.
                let kind = usize::from(bytes[26]);
                if *from == SENDER && *to == addr(RECEIVER) && (1..=NAMES.len()).contains(&kind) {
                    let name = NAMES[kind - 1];
                    if !found.iter().any(|(known, _)| *known == name) {
                        found.push((name, bytes.clone()));
                    }
                }
            }
            world.deliver(sent, |(_, to, _)| *to != addr(RECEIVER));
        }
        found
    }

    fn seal(&self, bytes: &mut [u8]) {
        forge::reseal(&keys(), &World::joined().members[RECEIVER], bytes);
    }

    fn damaged(&self, _rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String> {
        let mut world = World::joined();
        let before = world.table();
        let refused = world.members[RECEIVER].stats().rejected.iter().sum::<u64>();
        let (sent, told) = world.receive(bytes);
        let is_refused = world.members[RECEIVER].stats().rejected.iter().sum::<u64>() > refused;
        if bytes == good {
            return hold(!is_refused, || "a good datagram was refused".to_owned());
        }
        hold(is_refused && sent == 0 && told == 0 && world.table() == before, || {
            format!("a damaged datagram had an effect: {sent} answers, {told} events, refused: {is_refused}")
        })
    }

    fn hostile(&self, rng: &mut Rng, bytes: &[u8]) -> Result<(), String> {
        let _ = forge::news_in(bytes);
        let mut world = World::joined();
        let (sent, _) = world.receive(bytes);
        hold(sent <= ANSWERS_MAX, || format!("{sent} datagrams in answer to one"))?;
        let again = world.receive(bytes);
        // A stranger is asked again who it is; nothing else is answered twice.
        hold(again.0 <= 1 && again.1 == 0, || format!("the same datagram had an effect again: {again:?}"))?;
        for _ in 0..rng.below(200) {
            let sent = world.step();
            hold(sent.len() <= MEMBERS * ANSWERS_MAX, || format!("{} datagrams in a step", sent.len()))?;
            world.deliver(sent, |_| true);
        }
        let me = world.members[RECEIVER].members().next().expect("a member knows itself");
        hold(&**me.name == "m0" && me.status == Status::Alive, || format!("it lost itself: {me:?}"))?;
        let count = world.members[RECEIVER].members().count();
        hold(count <= MEMBERS_MAX, || format!("{count} members"))
    }
}
