use super::session::Keys;
use super::*;
use crate::control::metadata::image::Incarnation;
use highwater_shards::ids::{NodeId, ShardId};

const SECRET: &[u8] = b"the secret of this cluster";

fn secret() -> Secret {
    Secret::new(SECRET).unwrap()
}

pub(in crate::net) fn node(id: u32, cluster: Option<&str>) -> PeerIdentity {
    PeerIdentity {
        node: NodeId(id),
        disk: DiskId(u128::from(id) * 1000),
        cluster: cluster.map(|id| id.parse().unwrap()),
        incarnation: Incarnation(3),
        version: VERSION,
    }
}

const CLUSTER: Option<&str> = Some("MDEyMzQ1Njc4OWFiY2RlZg");
const OTHER: Option<&str> = Some("AAAAAAAAAAAAAAAAAAAAAA");
const NOBODY: Knows<'static> = &|_| Known { disk: None, registered: None };

/// Who takes part in a handshake, and what differs from a good one.
struct Play<'a> {
    dialer: PeerIdentity,
    acceptor: PeerIdentity,
    to: Option<NodeId>,
    dialers_secret: Secret,
    acceptors_secret: Secret,
    purpose: Purpose,
    dialer_knows: Knows<'a>,
    acceptor_knows: Knows<'a>,
    obstacle: Option<Refusal>,
    nonces: (u8, u8),
}

type Outcome = Result<Judged, HandshakeError>;

impl Play<'_> {
    fn good() -> Self {
        Self {
            dialer: node(1, CLUSTER),
            acceptor: node(2, CLUSTER),
            to: Some(NodeId(2)),
            dialers_secret: secret(),
            acceptors_secret: secret(),
            dialer_knows: NOBODY,
            acceptor_knows: NOBODY,
            purpose: Purpose::Calls,
            obstacle: None,
            nonces: (7, 8),
        }
    }

    fn run(&self) -> (Outcome, Outcome) {
        self.run_altered(|_, _| {})
    }

    /// Runs it with somebody between the two, who sees and changes each message by its number.
    fn run_altered(&self, mut alter: impl FnMut(usize, &mut [u8])) -> (Outcome, Outcome) {
        use HandshakeError::Unfinished;
        let mut dialer = Dialer::new(self.dialer, self.to, self.purpose, &[self.nonces.0; NONCE_LEN]);
        let mut hello = *dialer.hello();
        alter(0, &mut hello);
        let acceptor = match Acceptor::new(&self.acceptor, &hello, &[self.nonces.1; NONCE_LEN]) {
            Ok(acceptor) => acceptor,
            Err(error) => return (Err(Unfinished), Err(error)),
        };
        let mut hello = *acceptor.hello();
        alter(1, &mut hello);
        let mut proof = match dialer.prove(&self.dialers_secret, &hello) {
            Ok(proof) => proof,
            Err(error) => return (Err(error), Err(Unfinished)),
        };
        alter(2, &mut proof);
        let verdict = acceptor.verdict(&self.acceptors_secret, &proof, self.acceptor_knows, self.obstacle);
        let (mut accepted, mut verdict) = match verdict {
            Ok(both) => both,
            Err(error) => return (Err(Unfinished), Err(error)),
        };
        alter(3, &mut verdict);
        let (dialed, mut open) = match dialer.finish(&self.dialers_secret, &verdict, self.dialer_knows) {
            Ok(both) => both,
            Err(error) => return (Err(error), Err(Unfinished)),
        };
        alter(4, &mut open);
        let accepted = accepted.opened(&open).map(|()| accepted);
        (Ok(dialed), accepted)
    }
}

fn welcome(outcome: &Outcome) -> bool {
    outcome.as_ref().is_ok_and(|judged| judged.refusal.is_none())
}

/// Both ends refuse for this reason; what each of them says.
fn refused(play: &Play<'_>, refusal: Refusal) -> (String, String) {
    let (dialed, accepted) = play.run();
    let (dialed, accepted) = (dialed.ok().unwrap(), accepted.ok().unwrap());
    assert_eq!((dialed.refusal, accepted.refusal), (Some(refusal), Some(refusal)));
    (dialed.why().unwrap(), accepted.why().unwrap())
}

fn talk(a: &mut Keys, b: &mut Keys) {
    for text in [b"one", b"two"] {
        let tag = a.send.sign(text);
        assert_eq!(b.receive.verify(text, &tag), Ok(()));
        let tag = b.send.sign(text);
        assert_eq!(a.receive.verify(text, &tag), Ok(()));
    }
}

#[test]
fn two_nodes_that_know_the_secret_learn_who_the_other_is_and_share_keys() {
    let (dialed, accepted) = Play::good().run();
    let (mut dialed, mut accepted) = (dialed.ok().unwrap(), accepted.ok().unwrap());
    assert_eq!((dialed.peer, accepted.peer), (node(2, CLUSTER), node(1, CLUSTER)));
    assert_eq!((dialed.refusal, accepted.refusal), (None, None));
    talk(&mut dialed.keys, &mut accepted.keys);
}

#[test]
fn a_node_without_a_cluster_may_talk_to_any_and_a_dialer_need_not_know_whom_it_reaches() {
    for (a, b) in [(None, CLUSTER), (CLUSTER, None), (None, None)] {
        let play = Play { dialer: node(1, a), acceptor: node(2, b), to: None, ..Play::good() };
        let (dialed, accepted) = play.run();
        assert!(welcome(&dialed) && welcome(&accepted));
    }
}

#[test]
fn a_node_that_calls_its_own_address_finds_itself() {
    let play = Play { acceptor: node(1, CLUSTER), to: None, ..Play::good() };
    let (dialed, accepted) = play.run();
    assert!(welcome(&accepted));
    assert_eq!(dialed.ok().unwrap().peer, node(1, CLUSTER));
}

#[test]
fn another_secret_proves_nothing_at_either_end() {
    let other = || Secret::new(b"the secret of this clusteR").unwrap();
    let (_, accepted) = Play { dialers_secret: other(), ..Play::good() }.run();
    assert_eq!(accepted.err(), Some(HandshakeError::WrongSecret));
    // An acceptor that does not know the secret and lets everybody through is found out by the dialer.
    let mut dialer = Dialer::new(node(1, CLUSTER), None, Purpose::Calls, &[7; NONCE_LEN]);
    let acceptor = Acceptor::new(&node(2, CLUSTER), dialer.hello(), &[8; NONCE_LEN]).unwrap();
    dialer.prove(&secret(), acceptor.hello()).unwrap();
    let mut verdict = [0; VERDICT_LEN];
    verdict[4..].copy_from_slice(
        &other().over(PROOF_OF_ACCEPTOR, dialer.hello(), acceptor.hello()).finalize().into_bytes(),
    );
    assert_eq!(dialer.finish(&secret(), &verdict, NOBODY).err(), Some(HandshakeError::WrongSecret));
    assert_eq!(Secret::new(b"too short").err(), Some(WeakSecret { len: 9 }));
}

#[test]
fn two_formed_clusters_refuse_each_other_at_both_ends_and_name_both() {
    let (dialer, acceptor) =
        refused(&Play { acceptor: node(2, OTHER), ..Play::good() }, Refusal::OtherCluster);
    for text in [dialer, acceptor] {
        assert!(text.contains(CLUSTER.unwrap()) && text.contains(OTHER.unwrap()), "{text}");
    }
}

#[test]
fn a_call_for_one_node_that_reaches_another_is_refused_at_both_ends() {
    let (dialer, acceptor) = refused(&Play { to: Some(NodeId(5)), ..Play::good() }, Refusal::WrongNode);
    assert!(dialer.starts_with("node 1 called node 5 and reached node 2"), "{dialer}");
    assert_eq!(dialer, acceptor);
}

#[test]
fn a_node_id_that_is_known_with_another_disk_is_refused_whoever_knows_it() {
    let replaced: Knows<'_> = &|_| Known { disk: Some(DiskId(77)), registered: None };
    let (dialer, acceptor) = refused(&Play { acceptor_knows: replaced, ..Play::good() }, Refusal::OtherDisk);
    assert!(
        acceptor.contains("the disk of node 1") && dialer.contains("this node 1"),
        "{acceptor}; {dialer}"
    );
    let (dialer, _) = refused(&Play { dialer_knows: replaced, ..Play::good() }, Refusal::OtherDisk);
    assert!(dialer.contains("the disk of node 2"), "{dialer}");
    let right: Knows<'_> = &|node| Known { disk: Some(DiskId(u128::from(node.0) * 1000)), registered: None };
    let (dialed, accepted) = Play { acceptor_knows: right, dialer_knows: right, ..Play::good() }.run();
    assert!(welcome(&dialed) && welcome(&accepted));
}

#[test]
fn a_node_that_claims_the_acceptors_own_id_is_refused() {
    let dialer = PeerIdentity { disk: DiskId(5), ..node(2, CLUSTER) };
    let (_, acceptor) = refused(&Play { dialer, ..Play::good() }, Refusal::SameNodeId);
    assert!(acceptor.contains("two nodes have the id 2"), "{acceptor}");
}

#[test]
fn an_acceptor_without_room_says_so() {
    let obstacle = Some(Refusal::TooManyConnections);
    refused(&Play { obstacle, ..Play::good() }, Refusal::TooManyConnections);
}

/// Both ends know each other in their present lives.
fn stream<'a>() -> Play<'a> {
    let knows: Knows<'_> = &|_| Known { disk: None, registered: Some(Incarnation(3)) };
    let purpose = Purpose::Stream { from: ShardId(5), to: ShardId(0x0203) };
    Play { purpose, dialer_knows: knows, acceptor_knows: knows, ..Play::good() }
}

#[test]
fn a_stream_between_registered_nodes_is_opened_and_both_ends_know_its_shards() {
    let (dialed, accepted) = stream().run();
    assert!(welcome(&dialed) && welcome(&accepted));
    let (dialed, accepted) = (dialed.ok().unwrap(), accepted.ok().unwrap());
    assert_eq!((dialed.purpose, accepted.purpose), (stream().purpose, stream().purpose));
    let (calls, _) = Play::good().run();
    assert_eq!(calls.ok().unwrap().purpose, Purpose::Calls);
}

#[test]
fn a_stream_with_a_node_that_is_not_registered_as_it_is_now_is_refused_whoever_knows_it() {
    let earlier: Knows<'_> = &|_| Known { disk: None, registered: Some(Incarnation(2)) };
    let later: Knows<'_> = &|_| Known { disk: None, registered: Some(Incarnation(4)) };
    for knows in [NOBODY, earlier, later] {
        refused(&Play { acceptor_knows: knows, ..stream() }, Refusal::NotRegistered);
        refused(&Play { dialer_knows: knows, ..stream() }, Refusal::NotRegistered);
        let (dialed, accepted) = Play { purpose: Purpose::Calls, acceptor_knows: knows, ..stream() }.run();
        assert!(welcome(&dialed) && welcome(&accepted), "calls do not ask for it");
    }
    for (a, b) in [(None, CLUSTER), (CLUSTER, None), (None, None)] {
        refused(&Play { dialer: node(1, a), acceptor: node(2, b), ..stream() }, Refusal::NotRegistered);
    }
    refused(&Play { acceptor: node(1, CLUSTER), to: None, ..stream() }, Refusal::NotRegistered);
}

#[test]
fn any_changed_bit_of_any_message_ends_the_handshake() {
    for play in [Play::good(), stream()] {
        for (message, len) in [HELLO_LEN, HELLO_LEN, PROOF_LEN, VERDICT_LEN, OPEN_LEN].into_iter().enumerate()
        {
            for bit in 0..len * 8 {
                let (dialed, accepted) = play.run_altered(|at, bytes| {
                    if at == message {
                        assert_eq!(bytes.len(), len);
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                });
                assert!(!welcome(&accepted), "bit {bit} of message {message}");
                // After its last message the dialer knows no better; its first frame meets a closed connection.
                assert!(message == 4 || !welcome(&dialed), "bit {bit} of message {message}");
            }
        }
    }
}

#[test]
fn a_replayed_handshake_proves_nothing_to_either_end() {
    let mut recorded = vec![Vec::new(); 5];
    let _ = Play::good().run_altered(|at, bytes| recorded[at] = bytes.to_vec());
    // The dialer's words again, to an acceptor that draws a fresh nonce as it always does.
    let again = Play { nonces: (7, 9), ..Play::good() };
    let replay = |messages: [usize; 3], play: &Play<'_>| {
        play.run_altered(|at, bytes| {
            if messages.contains(&at) {
                bytes.copy_from_slice(&recorded[at]);
            }
        })
    };
    let (_, accepted) = replay([0, 2, 4], &again);
    assert_eq!(accepted.err(), Some(HandshakeError::WrongSecret));
    // The acceptor's words again, to a dialer with a fresh nonce.
    let again = Play { nonces: (6, 8), ..Play::good() };
    let mut dialer = Dialer::new(again.dialer, again.to, again.purpose, &[6; NONCE_LEN]);
    dialer.prove(&secret(), recorded[1].as_slice().try_into().unwrap()).unwrap();
    let verdict = recorded[3].as_slice().try_into().unwrap();
    assert_eq!(dialer.finish(&secret(), verdict, NOBODY).err(), Some(HandshakeError::WrongSecret));
    // The frames of one connection are nothing on the next, even with the same first nonce.
    let (first, _) = Play::good().run();
    let (_, second) = Play { nonces: (7, 9), ..Play::good() }.run();
    let (mut first, mut second) = (first.ok().unwrap(), second.ok().unwrap());
    let tag = first.keys.send.sign(b"frame");
    assert!(second.keys.receive.verify(b"frame", &tag).is_err());
}

#[test]
fn words_that_are_sent_back_to_their_author_prove_nothing() {
    let mut dialer = Dialer::new(node(1, CLUSTER), None, Purpose::Calls, &[7; NONCE_LEN]);
    let hello = *dialer.hello();
    assert_eq!(dialer.prove(&secret(), &hello).err(), Some(HandshakeError::NotAPeer));
    // With the role changed to look right, and the proof sent back as the verdict's.
    let mut turned = hello;
    turned[10] = 2;
    let proof = dialer.prove(&secret(), &turned).unwrap();
    let mut verdict = [0; VERDICT_LEN];
    verdict[4..].copy_from_slice(&proof);
    assert_eq!(dialer.finish(&secret(), &verdict, NOBODY).err(), Some(HandshakeError::WrongSecret));
    // An acceptor's hello does not pass for a dialer's.
    let acceptor = Acceptor::new(&node(2, CLUSTER), &hello, &[8; NONCE_LEN]).unwrap();
    let back = Acceptor::new(&node(2, CLUSTER), acceptor.hello(), &[9; NONCE_LEN]);
    assert_eq!(back.err(), Some(HandshakeError::NotAPeer));
    // A frame that is sent back to its sender is of the wrong direction.
    let (dialed, _) = Play::good().run();
    let mut keys = dialed.ok().unwrap().keys;
    let tag = keys.send.sign(b"frame");
    assert!(keys.receive.verify(b"frame", &tag).is_err());
}

#[test]
fn a_newer_version_is_told_and_does_not_keep_two_nodes_apart() {
    let newer = PeerIdentity { version: 9, ..node(1, CLUSTER) };
    let (dialed, accepted) = Play { dialer: newer, ..Play::good() }.run();
    assert!(welcome(&dialed));
    assert_eq!(accepted.ok().unwrap().peer.version, 9);
}

#[test]
fn nothing_is_allocated_before_the_dialer_has_proven_the_secret() {
    let (me, secret) = (node(2, CLUSTER), secret());
    let dialer = Dialer::new(node(1, CLUSTER), None, Purpose::Calls, &[7; NONCE_LEN]);
    let allocated = allocation_counter::measure(|| {
        let acceptor = Acceptor::new(&me, dialer.hello(), &[8; NONCE_LEN]).unwrap();
        let verdict = acceptor.verdict(&secret, &[1; PROOF_LEN], NOBODY, None);
        assert_eq!(verdict.err(), Some(HandshakeError::WrongSecret));
    });
    assert_eq!(allocated.count_total, 0);
}

#[test]
fn the_handshake_stays_as_it_is_on_the_wire() {
    let play = Play::good();
    let mut bytes = Vec::new();
    let _ = play.run_altered(|_, message| bytes.extend_from_slice(message));
    let sum =
        |bytes: &[u8]| bytes.iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
    assert_eq!(bytes[..24], *b"HWPEERS\0\x01\0\x01\x03\x01\0\0\0\x02\0\0\0\0\0\0\0");
    let of_stream = hello::encode(
        &node(1, CLUSTER),
        hello::Role::Dialer,
        Some(NodeId(2)),
        stream().purpose,
        &[7; NONCE_LEN],
    );
    assert_eq!(of_stream[..24], *b"HWPEERS\0\x01\0\x01\x07\x01\0\0\0\x02\0\0\0\x05\0\x03\x02");
    assert_eq!(of_stream[24..], bytes[24..HELLO_LEN]);
    assert_eq!(bytes.len(), 2 * HELLO_LEN + PROOF_LEN + VERDICT_LEN + OPEN_LEN);
    // Computed apart from this code, from the description of the protocol.
    assert_eq!(
        sum(&bytes),
        18_005_594_929_747_127_078,
        "a changed proof or key derivation locks running nodes out of a rolling upgrade"
    );
}
