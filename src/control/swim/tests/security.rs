//! The twelve rules of the protocol's security, a test or more for each.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::super::auth::{self, FRAME_BYTES, To};
use super::super::member::{Id, Slot, mix};
use super::super::membership::Peer;
use super::super::wire::{self, CHALLENGE_BYTES, JOIN_BYTES};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn rejected(member: &Membership, reject: Reject) -> u64 {
    member.stats().rejected[reject as usize]
}

/// A datagram from one life of a member to another's, under the right key.
fn forged(net: &mut Net, from: usize, to: usize, number: u64, body: &[u8]) -> Vec<u8> {
    let (id, boot) = (net.node(to).id, net.node(to).boot);
    let mut bytes = Vec::new();
    auth::begin(&mut bytes);
    bytes.extend_from_slice(body);
    let sender = net.node(from);
    auth::seal(&keys(), sender.id, sender.boot, To::One { id, boot, number }, &mut bytes);
    bytes
}

/// One that the receiver takes for the next of its sender.
fn next(net: &mut Net, from: usize, to: usize, body: &[u8]) -> Vec<u8> {
    let slot = net.node(from).members.find(Id::of(&format!("n{to}"))).unwrap();
    let session = &mut net.node(from).members.get_mut(slot).session;
    session.sent += 1;
    let number = session.sent;
    forged(net, from, to, number, body)
}

fn claim(kind: u8, of: &str, incarnation: Incarnation, accuser: &str) -> Vec<u8> {
    let mut body = vec![5, kind];
    body.extend_from_slice(&Id::of(of).0.to_le_bytes());
    body.extend_from_slice(&incarnation.packed().to_le_bytes());
    if kind != 6 {
        body.extend_from_slice(&Id::of(accuser).0.to_le_bytes());
    }
    body
}

const FIRST: Incarnation = Incarnation { boot_count: 1, refutation: 0 };

/// Gives everyone everything that ever arrived anywhere, and sees that nothing comes of it.
fn replay_everything(net: &mut Net) {
    let record = std::mem::take(&mut net.delivered);
    let tables: Vec<_> = (0..net.nodes.len()).map(|node| net.table(node)).collect();
    net.events.clear();
    net.queue.clear();
    for (node, table) in tables.iter().enumerate() {
        for sent in &record {
            let now = net.now;
            net.node(node).handle(now, Input::Datagram { from: sent.from, bytes: &sent.bytes });
            while let Some(output) = net.node(node).poll_output() {
                match output {
                    // Joins and datagrams of unknown boots are answered with a challenge, and with nothing more.
                    Output::Send { bytes, .. } => assert!(bytes.len() <= sent.bytes.len()),
                    other => panic!("n{node}: a recording made it say {other:?}"),
                }
            }
        }
        assert_eq!(net.table(node), *table, "n{node}");
    }
}

#[test]
fn rule_1_recordings_change_nothing_before_and_after_restarts() {
    let mut net = Net::joined(4);
    net.feed(2, Input::Metadata(b"y".to_vec()));
    net.deaf.push(3);
    net.run(Duration::from_millis(300));
    net.deaf.clear();
    net.run(SECOND * 3);
    replay_everything(&mut net);
    // The receiver restarts; then the sender.
    for restarted in [1, 2] {
        let mut net = Net::joined(4);
        net.run(SECOND);
        net.stop(restarted);
        net.run(SECOND * 2);
        net.restart(restarted);
        net.run(SECOND * 4);
        replay_everything(&mut net);
    }
}

#[test]
fn rule_2_an_altered_or_misdirected_datagram_is_dropped_without_a_reply() {
    let mut net = Net::joined(3);
    let ping = next(&mut net, 1, 0, &[1, 1, 0, 0, 0, 0, 0, 0, 0]);
    let table = net.table(0);
    let silent = |net: &mut Net, node: usize, bytes: &[u8]| {
        let now = net.now;
        let member = net.node(node);
        member.handle(now, Input::Datagram { from: addr(1), bytes });
        assert_eq!(member.poll_output(), None);
    };
    for bit in 0..ping.len() * 8 {
        let mut flipped = ping.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        silent(&mut net, 0, &flipped);
    }
    silent(&mut net, 2, &ping);
    assert!(rejected(net.node(2), Reject::Tag) == 1);
    // Another cluster with the same secret.
    let mut elsewhere = Vec::new();
    auth::begin(&mut elsewhere);
    elsewhere.extend_from_slice(&[1, 1, 0, 0, 0, 0, 0, 0, 0]);
    let (id, boot) = (net.node(0).id, net.node(0).boot);
    let (own, own_boot) = (net.node(1).id, net.node(1).boot);
    let other = Keyring::new("another", 1, SECRET).unwrap();
    auth::seal(&other, own, own_boot, To::One { id, boot, number: 1 << 40 }, &mut elsewhere);
    silent(&mut net, 0, &elsewhere);
    assert_eq!(net.table(0), table);
    // Unaltered it is answered.
    net.feed(0, Input::Datagram { from: addr(1), bytes: &ping });
    assert!(net.record.last().is_some_and(|sent| sent.to == addr(1)));
}

#[test]
fn rule_3_checks_go_from_cheap_to_dear_and_at_most_one_mac_is_computed() {
    let mut net = Net::joined(2);
    let good = next(&mut net, 1, 0, &[5]);
    let feed = |net: &mut Net, bytes: &[u8]| net.feed(0, Input::Datagram { from: addr(1), bytes });
    // Each of these has all the faults that are checked later, too.
    let mut bytes = vec![0xff; FRAME_BYTES];
    feed(&mut net, &bytes);
    assert_eq!(rejected(net.node(0), Reject::Size), 1);
    feed(&mut net, &vec![0x11; 1401]);
    assert_eq!(rejected(net.node(0), Reject::Size), 2);
    bytes.push(0);
    feed(&mut net, &bytes);
    assert_eq!(rejected(net.node(0), Reject::Version), 1);
    bytes[0] = 0x11;
    feed(&mut net, &bytes);
    assert_eq!(rejected(net.node(0), Reject::Key), 1);
    bytes[1] = 1;
    feed(&mut net, &bytes);
    assert_eq!(rejected(net.node(0), Reject::Tag), 1);
    feed(&mut net, &good);
    feed(&mut net, &good);
    assert_eq!(rejected(net.node(0), Reject::Replay), 1);
    let malformed = next(&mut net, 1, 0, &[99]);
    feed(&mut net, &malformed);
    assert_eq!(rejected(net.node(0), Reject::Malformed), 1);
    // The tag is over cluster, receiver and all bytes before it, once.
    let (sealed, tag) = good.split_at(good.len() - 16);
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(SECRET).unwrap();
    mac.update(&[5]);
    mac.update(b"tests");
    mac.update(&net.node(0).id.0.to_le_bytes());
    mac.update(&net.node(0).boot.to_le_bytes());
    mac.update(sealed);
    assert_eq!(&mac.finalize().into_bytes()[..16], tag);
}

/// Whether a type can be cloned or printed, asked in a way that compiles either way.
macro_rules! has_trait {
    ($type:ty: $bound:path) => {{
        struct Ask<T: ?Sized>(std::marker::PhantomData<T>);
        #[allow(dead_code, reason = "one of the two answers is not used")]
        trait Otherwise {
            const YES: bool = false;
        }
        impl<T: ?Sized> Otherwise for Ask<T> {}
        #[allow(dead_code, reason = "one of the two answers is not used")]
        impl<T: ?Sized + $bound> Ask<T> {
            const YES: bool = true;
        }
        <Ask<$type>>::YES
    }};
}

#[test]
fn rule_4_secrets_are_neither_cloned_nor_printed_and_are_gone_once_removed() {
    assert!(has_trait!(String: Clone), "the question works");
    assert!(!has_trait!(Keyring: Clone) && !has_trait!(Keyring: std::fmt::Debug));
    assert!(!has_trait!(Membership: Clone) && !has_trait!(Membership: std::fmt::Debug));
    // The state that a secret is kept as is overwritten when it is dropped.
    assert!(has_trait!(Sha256: zeroize::ZeroizeOnDrop));
    let mut keys = keys();
    keys.install(2, &[9; 32]).unwrap();
    keys.remove(2).unwrap();
    assert_eq!(keys.find(2), None);
    assert_eq!(keys.remove(2), Err(KeyError::Unknown(2)));
}

#[test]
fn rule_5_keys_are_rotated_under_loss_without_a_death() {
    let mut net = Net::joined(8);
    net.loss_permille = 50;
    for node in 0..8 {
        net.node(node).keyring().install(2, &[9; 32]).unwrap();
        net.run(Duration::from_millis(200));
    }
    for node in 0..8 {
        net.node(node).keyring().use_key(2).unwrap();
        net.run(Duration::from_millis(200));
    }
    let under = |net: &mut Net, key: u8| {
        (0..8).map(|n| net.node(n).keyring().received().find(|(id, _)| *id == key).unwrap().1).sum::<u64>()
    };
    net.run(SECOND);
    let (old, new) = (under(&mut net, 1), under(&mut net, 2));
    net.run(SECOND * 5);
    assert_eq!(under(&mut net, 1), old, "nothing comes under the old key any more");
    assert!(under(&mut net, 2) > new);
    for node in 0..8 {
        assert_eq!(net.node(node).keyring().remove(2), Err(KeyError::InUse(2)));
        net.node(node).keyring().remove(1).unwrap();
        net.run(Duration::from_millis(200));
    }
    net.run(SECOND * 20);
    assert_eq!(net.deaths(), 0);
    let keys = net.node(0).keyring();
    assert_eq!(keys.install(2, &[1; 32]), Err(KeyError::Twice(2)));
    assert_eq!(keys.install(3, &[1; 15]), Err(KeyError::TooShort(15)));
    for id in 3..6 {
        keys.install(id, &[1; 16]).unwrap();
    }
    assert_eq!(keys.install(6, &[1; 16]), Err(KeyError::Full));
}

#[test]
fn rule_6_replies_go_to_known_addresses_and_strangers_get_no_more_than_they_sent() {
    let mut net = Net::joined(3);
    let elsewhere: SocketAddr = ([192, 0, 2, 1], 9).into();
    let ping = next(&mut net, 1, 0, &[1, 7, 0, 0, 0, 0, 0, 0, 0]);
    let start = net.record.len();
    net.feed(0, Input::Datagram { from: elsewhere, bytes: &ping });
    assert!(net.record[start..].iter().all(|sent| sent.to == addr(1)), "the answer goes to the member");
    // A stranger's datagrams of any length, under the right key.
    for len in 1..400 {
        let mut bytes = Vec::new();
        auth::begin(&mut bytes);
        bytes.push(5);
        bytes.resize(26 + len, 0);
        let (id, boot) = (net.node(0).id, net.node(0).boot);
        let stranger = Id::of("stranger");
        let one = To::One { id, boot, number: 1 };
        for to in [one, To::Any] {
            let mut bytes = bytes.clone();
            if to_any(to) {
                bytes[26] = 6;
            }
            auth::seal(&keys(), stranger, 99, to, &mut bytes);
            let start = net.record.len();
            net.feed(0, Input::Datagram { from: elsewhere, bytes: &bytes });
            let out: usize = net.record[start..].iter().map(|sent| sent.bytes.len()).sum();
            assert!(out <= bytes.len(), "{out} bytes for {}", bytes.len());
        }
    }
    assert!(net.node(0).stats().challenges > 0, "some were answered");
    assert_eq!(net.node(0).live_count(), 3);
    assert_eq!((CHALLENGE_BYTES, JOIN_BYTES), (59, 75));
}

fn to_any(to: To) -> bool {
    matches!(to, To::Any)
}

#[test]
fn rule_7_indirect_probes_are_for_members_bounded_and_carry_no_news() {
    let mut net = Net::joined(4);
    let request = |of: &str, nonce: u8| {
        let mut body = vec![3, nonce, 0, 0, 0];
        body.extend_from_slice(&Id::of(of).0.to_le_bytes());
        body
    };
    // n0 has news to tell, which a probe for another one must not carry.
    net.feed(0, Input::Metadata(b"news".to_vec()));
    let start = net.record.len();
    for nonce in 0..15 {
        let bytes = next(&mut net, 1, 0, &request("n2", nonce));
        net.feed(0, Input::Datagram { from: addr(1), bytes: &bytes });
    }
    let pings: Vec<&Sent> = net.record[start..].iter().filter(|sent| sent.to == addr(2)).collect();
    assert_eq!(pings.len(), 10, "ten a second");
    assert!(pings.iter().all(|sent| sent.bytes.len() <= CHALLENGE_BYTES), "without news");
    assert_eq!(rejected(net.node(0), Reject::Relay), 5);
    net.run(SECOND);
    let stranger = next(&mut net, 1, 0, &request("nobody", 1));
    net.feed(0, Input::Datagram { from: addr(1), bytes: &stranger });
    assert_eq!(rejected(net.node(0), Reject::Relay), 6);
    // Over all requesters there is a bound as well.
    let now = net.now;
    let member = net.node(0);
    let (requester, target) = (member.members.find(Id::of("n1")).unwrap(), Id::of("n2"));
    let mut taken = 0;
    for nonce in 0..1000 {
        member.members.get_mut(requester).relays.used = 0;
        taken += usize::from(member.on_ping_request(now, Peer::Member(requester), nonce, target).is_ok());
    }
    assert!((RELAYS_MAX - 10..=RELAYS_MAX).contains(&taken), "{taken}");
}

#[test]
fn rule_8_a_later_accusation_is_asked_about_and_the_last_incarnation_neither_wraps_nor_evicts() {
    let last = Incarnation { boot_count: u32::MAX, refutation: u32::MAX };
    assert_eq!(last.refuted(), last);
    for kind in [4, 5, 6] {
        let mut net = Net::joined(4);
        let start = net.record.len();
        let bytes = next(&mut net, 1, 0, &claim(kind, "n2", last, "n1"));
        net.feed(0, Input::Datagram { from: addr(1), bytes: &bytes });
        let asked = net.record[start..].iter().filter(|sent| sent.to == addr(1));
        assert_eq!(asked.count(), 1, "a pull");
        assert_eq!(net.status(0, 2), Some(Status::Alive));
        net.run(SECOND * 3);
        assert!((0..4).all(|by| net.status(by, 2) == Some(Status::Alive)), "kind {kind}");
        assert_eq!(net.deaths(), 0);
    }
    // A start outranks every incarnation of the lives before.
    let mut lives = [
        Incarnation { boot_count: 2, refutation: 0 },
        Incarnation { boot_count: 1, refutation: u32::MAX },
        Incarnation { boot_count: 1, refutation: 3 },
    ];
    lives.sort_unstable();
    assert_eq!(lives.map(|life| life.boot_count), [1, 1, 2]);
    assert_eq!(Incarnation::unpack(last.packed()), last);
}

fn record_of(name: &str, node: u32) -> Vec<u8> {
    let mut out = vec![1, u8::try_from(name.len()).unwrap()];
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&FIRST.packed().to_le_bytes());
    out.extend_from_slice(&mix(u64::from(node)).to_le_bytes());
    out.push(4);
    out.extend_from_slice(&(0x0b00_0000_u32 + node + 1).to_be_bytes());
    out.extend_from_slice(&7946_u16.to_le_bytes());
    out.extend_from_slice(&0_u16.to_le_bytes());
    out
}

#[test]
fn rule_9_a_flood_of_names_is_bounded_by_datagram_second_and_table() {
    let mut net = Net::joined(2);
    let flood = |net: &mut Net, first: u32, count: u32| {
        let mut body = vec![5];
        (first..first + count).for_each(|n| body.extend(record_of(&format!("flood-{n}"), n)));
        let bytes = next(net, 1, 0, &body);
        let now = net.now;
        net.node(0).handle(now, Input::Datagram { from: addr(1), bytes: &bytes });
        while net.node(0).poll_output().is_some() {}
    };
    flood(&mut net, 0, 30);
    assert_eq!(net.node(0).live_count(), 2 + 16, "sixteen a datagram");
    for n in 1..1000 {
        flood(&mut net, n * 20, 20);
    }
    assert_eq!(net.node(0).live_count(), 2 + 256, "256 a second");
    // However long it goes on, the table is bounded.
    for second in 0..30 {
        net.now = net.now + SECOND;
        for n in 0..20 {
            flood(&mut net, 100_000 + second * 1000 + n * 20, 20);
        }
    }
    assert!(net.node(0).live_count() <= MEMBERS_MAX);
    assert_eq!(net.node(0).members().count(), MEMBERS_MAX);
    assert_eq!(net.node(0).members.hashes().count(), wire::BUCKETS);
}

#[test]
fn rule_10_names_metadata_and_datagrams_are_bounded_on_both_sides() {
    let mut net = Net::joined(2);
    let long = |name: usize, metadata: usize| {
        let mut body = vec![5];
        let mut record = record_of(&"n".repeat(name), 1);
        let at = record.len() - 2;
        record[at..].copy_from_slice(&u16::try_from(metadata).unwrap().to_le_bytes());
        record.resize(record.len() + metadata, 7);
        body.extend(record);
        body
    };
    for (name, metadata, taken) in [(65, 0, false), (64, 513, false), (64, 512, true)] {
        let before = net.node(0).live_count();
        let bytes = next(&mut net, 1, 0, &long(name, metadata));
        net.feed(0, Input::Datagram { from: addr(1), bytes: &bytes });
        assert_eq!(net.node(0).live_count() - before, usize::from(taken), "{name} and {metadata}");
    }
    // Own metadata that are too long are not taken; the longest still travel, and no datagram is too long.
    net.feed(0, Input::Metadata(vec![1; METADATA_BYTES_MAX + 1]));
    net.feed(0, Input::Metadata(vec![1; METADATA_BYTES_MAX]));
    net.feed(1, Input::Metadata(vec![2; METADATA_BYTES_MAX]));
    net.run(SECOND * 2);
    assert_eq!(net.node(1).members().find(|m| **m.name == *"n0").unwrap().metadata.len(), METADATA_BYTES_MAX);
    assert!(net.record.iter().all(|sent| sent.bytes.len() <= DATAGRAM_BYTES_MAX));
}

#[test]
fn rule_11_only_known_accusers_confirm_once_and_merges_never_do() {
    let mut net = Net::joined(8);
    let confirmations = |net: &mut Net| net.node(0).stats().confirmations;
    let accuse = |net: &mut Net, accuser: &str| {
        let bytes = next(net, 1, 0, &claim(4, "n2", FIRST, accuser));
        net.feed(0, Input::Datagram { from: addr(1), bytes: &bytes });
    };
    accuse(&mut net, "n1");
    assert_eq!(net.status(0, 2), Some(Status::Suspect));
    accuse(&mut net, "n1");
    accuse(&mut net, "nobody");
    accuse(&mut net, "n2");
    assert_eq!(confirmations(&mut net), 0, "neither a stranger nor the accused itself counts");
    accuse(&mut net, "n3");
    accuse(&mut net, "n3");
    assert_eq!(confirmations(&mut net), 1);
    // A table in which the member is a suspect.
    let mut body = vec![13];
    let slot = net.node(0).members.find(Id::of("n2")).unwrap();
    wire::put_record(&mut body, net.node(0).members.get(slot), Status::Suspect);
    let bytes = next(&mut net, 4, 0, &body);
    net.feed(0, Input::Datagram { from: addr(4), bytes: &bytes });
    assert_eq!(confirmations(&mut net), 1);
}

#[test]
fn rule_12_a_key_holders_garbage_does_no_harm() {
    // The fuzzer of this module's neighbour, on a pair that knows each other.
    super::fuzz::bodies(0..3_000);
}

#[test]
fn a_boot_that_was_forgotten_must_prove_itself_again() {
    let mut net = Net::joined(3);
    let recorded = next(&mut net, 2, 0, &claim(4, "n1", FIRST, "n2"));
    let boot = net.node(2).boot;
    net.stop(2);
    net.run(Duration::from_secs(1900));
    assert_eq!(net.status(0, 2), None, "its tombstone is gone");
    // Its record comes back from somewhere, and the recording with it.
    let mut body = vec![5];
    let mut record = record_of("n2", 1);
    record[12..20].copy_from_slice(&boot.to_le_bytes());
    body.extend(record);
    let bytes = next(&mut net, 1, 0, &body);
    net.feed(0, Input::Datagram { from: addr(1), bytes: &bytes });
    assert_eq!(net.status(0, 2), Some(Status::Alive));
    net.feed(0, Input::Datagram { from: addr(2), bytes: &recorded });
    assert_eq!(net.status(0, 1), Some(Status::Alive), "the recording accuses n1 in vain");
    assert!(rejected(net.node(0), Reject::UnknownBoot) > 0);
    assert_eq!(net.node(0).members.get(Slot::SELF).status, Status::Alive);
}
