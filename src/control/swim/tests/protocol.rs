use super::super::member::{Id, Slot};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn members_that_join_through_one_seed_know_all() {
    let mut net = Net::joined(12);
    net.run(SECOND);
    assert_eq!(net.events, []);
}

#[test]
fn a_crash_is_known_everywhere_and_nobody_else_suffers() {
    let mut net = Net::joined(8);
    net.stop(5);
    net.run(SECOND * 3);
    for by in (0..8).filter(|by| *by != 5) {
        assert_eq!(net.status(by, 5), Some(Status::Dead), "n{by}");
        assert_eq!(net.node(by).live_count(), 7);
    }
    assert_eq!(net.deaths(), 7);
}

#[test]
fn a_member_that_cannot_be_reached_for_a_moment_objects_and_lives() {
    let mut net = Net::joined(8);
    net.deaf.push(3);
    net.run(Duration::from_millis(220));
    net.deaf.clear();
    net.run(SECOND * 5);
    assert!(net.events.iter().any(|(_, event)| matches!(event, Event::Suspected { .. })), "it was suspected");
    assert_eq!(net.deaths(), 0);
    let refuted = net.node(3).stats().refutations;
    assert!(refuted > 0, "it objected");
    for by in 0..8 {
        assert_eq!(net.status(by, 3), Some(Status::Alive));
    }
}

#[test]
fn a_member_that_one_other_cannot_reach_is_probed_through_others() {
    // n1 does not hear n2 directly: what n2 sends to it is lost.
    let mut net = Net::joined(6);
    let end = net.now + SECOND * 10;
    while net.now < end {
        net.run(Duration::from_millis(1));
        net.queue.retain(|Reverse((_, _, sent))| sent.from != addr(2) || sent.to != addr(1));
    }
    assert!(net.node(1).stats().indirect_probes > 0);
    assert_eq!(net.deaths(), 0);
}

#[test]
fn a_stalled_process_blames_nobody() {
    let mut net = Net::joined(6);
    let before = net.table(0);
    // Nothing is handled for five seconds; what arrived waits in the socket.
    let stalled = net.nodes[0].take();
    let mut waiting = Vec::new();
    for _ in 0..50 {
        net.run(Duration::from_millis(100));
        waiting = net.record.iter().filter(|sent| sent.to == addr(0)).cloned().collect();
    }
    net.nodes[0] = stalled;
    net.events.clear();
    for sent in waiting {
        net.feed(0, Input::Datagram { from: sent.from, bytes: &sent.bytes });
    }
    net.feed(0, Input::Timeout);
    net.run(SECOND * 10);
    assert!(!net.events.iter().any(|(by, event)| *by == 0 && matches!(event, Event::Died { .. })));
    // It was dead to the others, and came back.
    for by in 1..6 {
        assert_eq!(net.status(by, 0), Some(Status::Alive));
    }
    assert_eq!(net.table(0).len(), before.len());
}

#[test]
fn a_member_that_hears_nobody_holds_nobody_for_dead_until_a_bound() {
    let mut net = Net::joined(8);
    let died =
        |net: &Net| net.events.iter().filter(|(by, e)| *by == 0 && matches!(e, Event::Died { .. })).count();
    net.deaf.push(0);
    net.run(Duration::from_millis(3400));
    assert_eq!(died(&net), 0, "its own fault, as far as it can tell");
    net.deaf.clear();
    net.run(SECOND * 5);
    assert_eq!(died(&net), 0);
    assert!((0..8).all(|by| (0..8).all(|of| net.status(by, of) == Some(Status::Alive))));
    // Nobody is left indeed.
    for node in 1..8 {
        net.stop(node);
    }
    net.run(SECOND * 30);
    assert_eq!(net.node(0).live_count(), 1);
}

#[test]
fn a_leaver_is_never_held_for_dead() {
    let mut net = Net::joined(6);
    net.feed(2, Input::Leave);
    net.run(Duration::from_millis(500));
    net.stop(2);
    net.run(SECOND * 10);
    assert_eq!(net.deaths(), 0);
    for by in [0, 1, 3, 4, 5] {
        assert_eq!(net.status(by, 2), Some(Status::Left));
    }
}

#[test]
fn a_restart_outranks_the_life_before_and_a_lost_count_catches_up() {
    let mut net = Net::joined(5);
    net.stop(3);
    net.run(SECOND * 3);
    net.restart(3);
    net.run(SECOND * 3);
    assert!((0..5).all(|by| net.status(by, 3) == Some(Status::Alive)));
    // This life has forgotten how many there were before.
    net.stop(3);
    net.run(SECOND * 3);
    net.lives[3] = 0;
    net.restart(3);
    net.run(SECOND * 5);
    for by in 0..5 {
        assert_eq!(net.status(by, 3), Some(Status::Alive), "n{by}");
        assert_eq!(net.node(by).live_count(), 5);
    }
}

#[test]
fn new_metadata_reach_everyone() {
    let mut net = Net::joined(7);
    net.feed(4, Input::Metadata(b"rack-b".to_vec()));
    net.run(SECOND);
    let changed = net.events.iter().filter(|(_, event)| {
        matches!(event, Event::MetadataChanged { name, metadata, .. } if **name == *"n4" && **metadata == *b"rack-b")
    });
    assert_eq!(changed.count(), 6);
}

#[test]
fn two_halves_that_forgot_each_other_for_dead_merge_unattended() {
    let mut net = Net::joined(8);
    let apart = net.now + SECOND * 60;
    while net.now < apart {
        net.run(Duration::from_millis(1));
        let half = |addr: SocketAddr| usize::from(addr > super::addr(3));
        net.queue.retain(|Reverse((_, _, sent))| half(sent.from) == half(sent.to));
    }
    assert_eq!((net.node(0).live_count(), net.node(7).live_count()), (4, 4));
    net.run(SECOND * 30);
    for by in 0..8 {
        assert_eq!(net.node(by).live_count(), 8, "n{by}");
    }
}

#[test]
fn loss_alone_kills_nobody() {
    let mut net = Net::joined(10);
    net.loss_permille = 50;
    net.run(SECOND * 60);
    assert_eq!(net.deaths(), 0);
}

#[test]
fn the_same_seed_sends_the_same_bytes() {
    let run = || {
        let mut net = Net::joined(6);
        net.stop(4);
        net.run(SECOND * 3);
        net.record
    };
    assert_eq!(run(), run());
}

#[test]
fn a_suspect_hears_of_it_first_in_whatever_it_is_sent() {
    let mut net = Net::joined(4);
    let member = net.node(0);
    let slot = member.members.find(Id::of("n1")).unwrap();
    member.suspect(Instant::ZERO + SECOND, slot, Some(Id::of("n2")));
    let mut packet = Vec::new();
    // Other news are newer, and still come after.
    member.queue.put(Slot::SELF);
    member.add_news(super::super::membership::Peer::Member(slot), &mut packet);
    assert_eq!(packet[0], 4, "a suspicion");
    assert_eq!(packet[1..9], Id::of("n1").0.to_le_bytes());
}

#[test]
fn an_old_accusation_is_answered_with_what_is_known() {
    let mut net = Net::joined(4);
    net.feed(1, Input::Metadata(b"x".to_vec()));
    net.run(SECOND * 2);
    let record_len = net.record.len();
    let mut packet = vec![5, 4];
    packet.extend_from_slice(&Id::of("n1").0.to_le_bytes());
    packet.extend_from_slice(&Incarnation { boot_count: 1, refutation: 0 }.packed().to_le_bytes());
    packet.extend_from_slice(&Id::of("n2").0.to_le_bytes());
    let now = net.now;
    let member = net.node(0);
    let peer = super::super::membership::Peer::Member(member.members.find(Id::of("n2")).unwrap());
    member.on_body(now, peer, &packet).unwrap();
    assert_eq!(member.stats().reassertions, 1);
    net.run(SECOND);
    assert!(net.record.len() > record_len);
    assert_eq!(net.status(0, 1), Some(Status::Alive));
}

#[test]
fn handling_datagrams_of_a_settled_cluster_allocates_nothing() {
    let mut net = Net::joined(20);
    net.run(SECOND * 20);
    let start = net.record.len();
    net.run(SECOND * 5);
    let waiting: Vec<Sent> = net.record[start..].iter().filter(|sent| sent.to == addr(1)).cloned().collect();
    assert!(waiting.len() > 50);
    // The same datagrams again, to a member that has not seen them.
    let mut net = Net::joined(20);
    net.run(SECOND * 20);
    let now = net.now;
    let member = net.node(1);
    let mut warm = 0;
    let info = allocation_counter::measure(|| {
        for sent in &waiting {
            member.handle(now, Input::Datagram { from: sent.from, bytes: &sent.bytes });
            while member.poll_output().is_some() {
                warm += 1;
            }
        }
    });
    assert!(warm > 20, "pings were answered: {warm}");
    assert_eq!(info.count_total, 0, "{info:?}");
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let refused = |change: fn(&mut SwimConfig)| {
        let mut config = config(0);
        change(&mut config);
        Membership::new(config, keys(), &entropy(0, 1), Instant::ZERO).err()
    };
    assert_eq!(refused(|_| {}), None);
    assert_eq!(refused(|c| c.name.clear()), Some(ConfigError::Name(0)));
    assert_eq!(refused(|c| c.name = "n".repeat(65)), Some(ConfigError::Name(65)));
    assert!(refused(|c| c.metadata = vec![0; 512]).is_none());
    assert_eq!(refused(|c| c.metadata = vec![0; 513]), Some(ConfigError::Metadata(513)));
    assert!(matches!(refused(|c| c.addr = ([0, 0, 0, 0], 1).into()), Some(ConfigError::Address(_))));
    assert!(matches!(refused(|c| c.addr.set_port(0)), Some(ConfigError::Address(_))));
    assert!(matches!(refused(|c| c.ping_timeout = c.ping_interval), Some(ConfigError::Times(..))));
    assert!(matches!(refused(|c| c.datagram_bytes_max = 600), Some(ConfigError::Datagram(600, _))));
    assert!(matches!(refused(|c| c.datagram_bytes_max = 1401), Some(ConfigError::Datagram(1401, _))));
}
