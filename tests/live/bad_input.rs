//! What no real client sends: the node answers with the right error code or closes the connection, allocates nothing to
//! speak of, and keeps serving everybody else.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, ProduceRequest};
use kafka_protocol::protocol::Decodable as _;

use crate::node::{Home, Node, PATIENCE, http_get, raise_open_files, wait_for};
use crate::records::{self, Producer, batch};
use crate::wire::{self, Conn, topic_name};

/// No bad input may make the process grow by more than this.
const GROWTH_MAX: u64 = 64 << 20;

/// A node with a topic `good`, and its memory before the bad input came.
struct Victim {
    node: Node,
    _home: Home,
    memory: u64,
    served: i64,
}

impl Victim {
    fn new(name: &str) -> Self {
        Self::in_home(Home::new(name).small_journal().two_shards())
    }

    fn in_home(home: Home) -> Self {
        let node = home.start();
        Conn::open(node.client).unwrap().create_topic("good", 1, &[]);
        let mut victim = Self { memory: 0, node, _home: home, served: 0 };
        victim.serves();
        victim.memory = victim.node.memory();
        victim
    }

    fn addr(&self) -> SocketAddr {
        self.node.client
    }

    fn open(&self) -> Conn {
        Conn::open(self.addr()).unwrap()
    }

    /// Another client is served now: a record in, the same record out.
    fn serves(&mut self) {
        let mut conn = self.open();
        let value = format!("still here {}", self.served).into_bytes();
        let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&value))]);
        assert_eq!(conn.produce("good", 0, &batch).unwrap(), (wire::NONE, self.served));
        let records = conn.read_all("good", 0, self.served);
        assert_eq!(records[0].value.as_deref(), Some(&value[..]));
        self.served += 1;
        assert_eq!(http_get(self.node.admin, "/healthz").unwrap().0, 200);
    }

    /// Nothing of what came left a trace.
    fn unharmed(mut self) {
        self.serves();
        let grown = self.node.memory().saturating_sub(self.memory);
        assert!(grown < GROWTH_MAX, "grew by {} MiB", grown >> 20);
        assert!(self.node.is_running());
        let log = self.node.log_text();
        assert!(!log.contains("panicked"), "{log}");
        assert!(self.node.stop().success());
    }

    /// Sends `bytes` and nothing more; whatever the node answers, it must let go of the connection.
    fn send_and_hang_up(&self, bytes: &[u8]) {
        let mut conn = self.open();
        // The node may have closed already.
        let _ = conn.send_raw(bytes);
        let _ = conn.stream().shutdown(Shutdown::Write);
        let ended = conn.stream().read_to_end(&mut Vec::new());
        let waited = |e: &std::io::Error| {
            matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
        };
        assert!(
            !ended.as_ref().is_err_and(waited),
            "the node keeps the connection: sent {:?}",
            &bytes[..bytes.len().min(64)]
        );
    }

    /// Sends `bytes` and leaves the connection open; the node must close it without an answer.
    fn closes_on(&self, what: &str, bytes: &[u8]) {
        let mut conn = self.open();
        let _ = conn.send_raw(bytes);
        assert!(conn.is_closed_unanswered(), "not closed: {what}");
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A frame of any API and version with the given bytes as its body. The header is the flexible one when `flexible`.
fn frame(api: i16, version: i16, flexible: bool, body: &[u8]) -> Vec<u8> {
    let mut rest = BytesMut::new();
    rest.put_i16(api);
    rest.put_i16(version);
    rest.put_i32(7);
    rest.put_i16(4);
    rest.put_slice(b"evil");
    if flexible {
        rest.put_u8(0);
    }
    rest.put_slice(body);
    let mut frame = i32::try_from(rest.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(rest);
    frame
}

#[test]
fn garbage_bytes_are_closed_on() {
    let mut victim = Victim::new("garbage");
    for seed in 1..=200 {
        victim.send_and_hang_up(&noise(seed, usize::try_from(seed).unwrap() * 37));
    }
    victim.send_and_hang_up(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    victim.send_and_hang_up(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    victim.serves();
    // Garbage inside well-formed frames.
    for seed in 1..=200 {
        let garbage = noise(seed, 10 + usize::try_from(seed).unwrap());
        let mut frame = i32::try_from(garbage.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(garbage);
        victim.send_and_hang_up(&frame);
    }
    victim.unharmed();
}

#[test]
fn truncated_frames_are_let_go() {
    let victim = Victim::new("truncated");
    let mut conn = victim.open();
    let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(b"whole"))]);
    let whole = conn.frame(wire::PRODUCE_VERSION, &wire::produce_request("good", 0, -1, &batch));
    for cut in 0..whole.len() {
        // The peer goes away inside a frame.
        victim.send_and_hang_up(&whole[..cut]);
    }
    for cut in 1..whole.len() - 4 {
        // The frame is whole, and what it holds is not.
        let mut short = i32::try_from(cut).unwrap().to_be_bytes().to_vec();
        short.extend(&whole[4..4 + cut]);
        victim.send_and_hang_up(&short);
    }
    let end = victim.open().list_offset("good", 0, wire::LATEST).unwrap();
    assert_eq!(end, (wire::NONE, victim.served), "no part of a cut frame was appended");
    victim.unharmed();
}

#[test]
fn hostile_frame_lengths_cost_a_connection_and_no_memory() {
    let victim = Victim::new("lengths");
    for length in [-1, i32::MIN, i32::MAX, 1 << 30, (100 << 20) + 1] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([0, 3, 0, 1]);
        victim.closes_on(&format!("a frame of {length} bytes"), &bytes);
    }
    // Frames within the limit that are only announced: 40 times 100 MiB, of which 5 bytes come.
    let held: Vec<Conn> = (0..40)
        .map(|_| {
            let mut conn = victim.open();
            conn.send_raw(&(100i32 << 20).to_be_bytes()).unwrap();
            conn.send_raw(&[0]).unwrap();
            conn
        })
        .collect();
    victim.unharmed();
    drop(held);
}

#[test]
fn hostile_lengths_inside_every_advertised_api_cost_no_memory() {
    let mut victim = Victim::new("bodies");
    let apis: ApiVersionsResponse = victim.open().call(3, &ApiVersionsRequest::default()).unwrap();
    assert!(apis.api_keys.len() >= 10, "{apis:?}");
    let varints: Vec<u8> = [0xff, 0xff, 0xff, 0xff, 0x07].repeat(6);
    let bodies: [Vec<u8>; 7] = [
        vec![],
        vec![0; 64],
        vec![0xff; 64],
        vec![0x7f; 64],
        [0x7f, 0xff, 0xff, 0xff].repeat(16),
        varints,
        noise(99, 200),
    ];
    for api in &apis.api_keys {
        for version in api.min_version..=api.max_version {
            for (body, flexible) in bodies.iter().flat_map(|body| [(body, false), (body, true)]) {
                victim.send_and_hang_up(&frame(api.api_key, version, flexible, body));
                // The same body behind plausible first fields: acks, timeout, then a hostile count of topics.
                let mut deeper = vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0x75, 0x30];
                deeper.extend(body);
                victim.send_and_hang_up(&frame(api.api_key, version, flexible, &deeper));
            }
        }
        victim.serves();
    }
    // An array of 2^31 - 1 topics in a Metadata request, on one connection after the other.
    for _ in 0..200 {
        victim.send_and_hang_up(&frame(3, 1, false, &i32::MAX.to_be_bytes()));
        victim.send_and_hang_up(&frame(19, 2, false, &i32::MAX.to_be_bytes()));
    }
    victim.unharmed();
}

#[test]
fn an_unknown_api_is_closed_on_and_an_unknown_version_too() {
    let victim = Victim::new("unknown");
    for api in [-1, 93, 500, i16::MAX] {
        victim.closes_on(&format!("API {api}"), &frame(api, 0, false, &[0; 16]));
    }
    for (api, version) in [(0, 99), (1, 99), (3, -1), (3, 99), (19, i16::MAX)] {
        victim.closes_on(&format!("API {api} version {version}"), &frame(api, version, true, &[0; 16]));
    }
    victim.unharmed();
}

#[test]
fn an_unknown_version_of_api_versions_is_answered_in_version_0() {
    let victim = Victim::new("apiversions");
    for version in [5, 99, i16::MAX] {
        let mut conn = victim.open();
        conn.send_raw(&frame(18, version, true, b"\x05name\x04ver\x00")).unwrap();
        let mut answer = conn.read_frame().unwrap();
        assert_eq!(answer.split_to(4)[..], 7i32.to_be_bytes());
        let answer = ApiVersionsResponse::decode(&mut answer, 0).unwrap();
        assert_eq!(answer.error_code, wire::UNSUPPORTED_VERSION);
        let own = answer.api_keys.iter().find(|api| api.api_key == 18).expect("it names its own range");
        assert!(own.min_version == 0 && own.max_version >= 3, "{own:?}");
        // The connection goes on with a version that exists.
        let again = conn.call(0, &ApiVersionsRequest::default()).unwrap();
        assert_eq!(again.error_code, wire::NONE);
    }
    victim.unharmed();
}

/// The error that a produce of these bytes gets; it must leave the connection usable and append nothing.
fn refusal(victim: &Victim, bytes: &[u8]) -> i16 {
    let mut conn = victim.open();
    let (error, offset) = conn.produce("good", 0, bytes).unwrap();
    let from = &bytes[..bytes.len().min(80)];
    assert_ne!(error, wire::NONE, "{} bytes accepted at {offset}: {from:?}", bytes.len());
    assert_eq!(conn.list_offset("good", 0, wire::LATEST).unwrap(), (wire::NONE, victim.served));
    error
}

#[test]
fn batches_with_a_wrong_crc_magic_count_or_length_are_refused() {
    let victim = Victim::new("batches");
    let good = batch(1_700_000_000_000, Producer::NOBODY, &[(Some(b"k"), Some(b"v")), (None, Some(b"w"))]);
    let put = |at: usize, bytes: &[u8], reseal: bool| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        if reseal {
            records::reseal_crc(&mut bad);
        }
        bad
    };
    let numbered = batch(
        1_700_000_000_000,
        Producer { id: 4_000_000, epoch: 0, sequence: 0 },
        &[(Some(b"k"), Some(b"v"))],
    );
    let last = good.len() - 1;
    let malformed = [wire::CORRUPT_MESSAGE, wire::INVALID_RECORD];
    let format = [wire::CORRUPT_MESSAGE, wire::INVALID_RECORD, wire::UNSUPPORTED_FOR_MESSAGE_FORMAT];
    let cases: Vec<(&str, Vec<u8>, &[i16])> = vec![
        (
            "a flipped CRC",
            put(records::CRC_AT, &[good[records::CRC_AT] ^ 1], false),
            &[wire::CORRUPT_MESSAGE],
        ),
        ("a flipped bit in a record", put(last, &[good[last] ^ 1], false), &[wire::CORRUPT_MESSAGE]),
        ("magic 0", put(records::MAGIC_AT, &[0], true), &format),
        ("magic 1", put(records::MAGIC_AT, &[1], true), &format),
        ("magic 3", put(records::MAGIC_AT, &[3], true), &format),
        ("a count of 2^31 - 1", put(records::COUNT_AT, &i32::MAX.to_be_bytes(), true), &malformed),
        ("a negative count", put(records::COUNT_AT, &(-1i32).to_be_bytes(), true), &malformed),
        ("a count of 0", put(records::COUNT_AT, &0i32.to_be_bytes(), true), &malformed),
        (
            "a last offset delta apart from the count",
            put(records::LAST_DELTA_AT, &9i32.to_be_bytes(), true),
            &malformed,
        ),
        (
            "a negative last offset delta",
            put(records::LAST_DELTA_AT, &(-2i32).to_be_bytes(), true),
            &malformed,
        ),
        ("a control batch", put(records::ATTRIBUTES_AT, &0x20i16.to_be_bytes(), true), &malformed),
        ("a length of 0", put(8, &0i32.to_be_bytes(), false), &malformed),
        ("a negative length", put(8, &(-5i32).to_be_bytes(), false), &malformed),
        ("a length of 2^31 - 1", put(8, &i32::MAX.to_be_bytes(), false), &malformed),
        (
            "a length one too short",
            put(8, &i32::try_from(good.len() - 13).unwrap().to_be_bytes(), false),
            &malformed,
        ),
        ("a batch cut in its header", good[..40].to_vec(), &malformed),
        ("a batch cut in its records", good[..last].to_vec(), &malformed),
        ("no bytes at all", vec![], &malformed),
        ("one byte", vec![0], &malformed),
        ("two batches of an idempotent producer", [&numbered[..], &numbered[..]].concat(), &malformed),
        ("a batch of an idempotent producer after another", [&good[..], &numbered[..]].concat(), &malformed),
        ("bytes after the batch", [&good[..], &[0; 7]].concat(), &malformed),
        ("noise", noise(5, 300), &format),
    ];
    for (what, bytes, allowed) in cases {
        let error = refusal(&victim, &bytes);
        assert!(allowed.contains(&error), "{what}: error {error}");
    }
    victim.unharmed();
}

#[test]
fn records_that_lie_about_their_own_lengths_harm_nobody() {
    // A node that does not look into records may take them: then it must give back the same bytes.
    let victim = Victim::new("records");
    let mut conn = victim.open();
    conn.create_topic("lies", 1, &[]);
    let mut bad = batch(1_700_000_000_000, Producer::NOBODY, &[(Some(b"k"), Some(b"v"))]);
    bad[records::HEADER] = 0x7e;
    records::reseal_crc(&mut bad);
    let (error, _) = conn.produce("lies", 0, &bad).unwrap();
    if error == wire::NONE {
        let data = conn.fetch("lies", 0, 0, 0).unwrap();
        assert_eq!(data.records.expect("what was taken is there")[records::HEADER..], bad[records::HEADER..]);
    } else {
        assert!([wire::CORRUPT_MESSAGE, wire::INVALID_RECORD].contains(&error), "error {error}");
    }
    victim.unharmed();
}

#[test]
fn a_batch_over_the_topics_limit_is_too_large() {
    let victim = Victim::new("oversized");
    let batch_of = |len: usize| batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&vec![b'x'; len]))]);
    assert_eq!(refusal(&victim, &batch_of(5 << 20)), wire::MESSAGE_TOO_LARGE);
    assert_eq!(refusal(&victim, &batch_of(20 << 20)), wire::MESSAGE_TOO_LARGE);
    let mut conn = victim.open();
    conn.create_topic("small", 1, &[("max.message.bytes", "1000")]);
    let limit = 1000 - batch_of(0).len() - 2;
    let (error, _) = conn.produce("small", 0, &batch_of(limit)).unwrap();
    assert_eq!(error, wire::NONE, "exactly the limit is allowed");
    let (error, _) = conn.produce("small", 0, &batch_of(limit + 1)).unwrap();
    assert_eq!(error, wire::MESSAGE_TOO_LARGE);
    victim.unharmed();
}

#[test]
fn unknown_topics_and_partitions_have_their_error() {
    let victim = Victim::new("nowhere");
    let mut conn = victim.open();
    let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(b"v"))]);
    for (topic, partition) in
        [("absent", 0), ("good", 1), ("good", i32::MAX), ("good", -1), ("good", i32::MIN)]
    {
        let unknown = wire::UNKNOWN_TOPIC_OR_PARTITION;
        assert_eq!(conn.produce(topic, partition, &batch).unwrap().0, unknown, "produce {topic} {partition}");
        assert_eq!(
            conn.fetch(topic, partition, 0, 0).unwrap().error_code,
            unknown,
            "fetch {topic} {partition}"
        );
        assert_eq!(conn.list_offset(topic, partition, -1).unwrap().0, unknown, "offsets {topic} {partition}");
    }
    let mut metadata = |name: &str, create: bool| {
        let topic = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request =
            MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(create);
        conn.call(5, &request).unwrap().topics[0].error_code
    };
    assert_eq!(metadata("absent", false), wire::UNKNOWN_TOPIC_OR_PARTITION);
    for bad in
        ["", ".", "..", "with space", "slash/ed", "nul\0", "café", &"x".repeat(250), "../../etc/passwd"]
    {
        assert_eq!(metadata(bad, true), wire::INVALID_TOPIC, "{bad:?}");
    }
    victim.unharmed();
}

#[test]
fn acks_that_do_not_exist_are_refused() {
    let victim = Victim::new("acks");
    let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(b"v"))]);
    for acks in [-2, 2, i16::MAX, i16::MIN] {
        let mut conn = victim.open();
        conn.send_produce("good", 0, acks, &batch).unwrap();
        assert_eq!(conn.receive_produce().unwrap().0, wire::INVALID_REQUIRED_ACKS, "acks {acks}");
    }
    // Nobody waits for an answer with acks 0, so closing is how the node says that it failed.
    let mut conn = victim.open();
    conn.send_produce("absent", 0, 0, &batch).unwrap();
    assert!(conn.is_closed_unanswered());
    // And when it worked, nothing is said and the connection goes on.
    let mut conn = victim.open();
    conn.create_topic("quiet", 1, &[]);
    conn.send_produce("quiet", 0, 0, &batch).unwrap();
    wait_for("a record that nobody waited for", || {
        (conn.list_offset("quiet", 0, wire::LATEST).unwrap() == (wire::NONE, 1)).then_some(())
    });
    victim.unharmed();
}

#[test]
fn negative_and_absurd_numbers_are_answered() {
    let victim = Victim::new("numbers");
    let mut conn = victim.open();
    for offset in [-1, -2, -5, i64::MIN, victim.served + 1, i64::MAX] {
        let data = conn.fetch("good", 0, offset, 0).unwrap();
        assert_eq!(data.error_code, wire::OFFSET_OUT_OF_RANGE, "fetch at {offset}");
    }
    for timestamp in [-99, i64::MIN, i64::MAX] {
        // Whatever it means, there is an answer: an offset or an error.
        let (error, offset) = conn.list_offset("good", 0, timestamp).unwrap();
        assert!(
            error != wire::NONE || (-1..=victim.served).contains(&offset),
            "{timestamp}: {error} {offset}"
        );
    }
    for (wait, min, max) in
        [(-1, -1, -1), (i32::MIN, i32::MIN, i32::MIN), (0, i32::MAX, i32::MAX), (0, 0, 0), (0, 1, 1)]
    {
        let mut request = wire::fetch_request("good", 0, 0, wait, max);
        request.min_bytes = min;
        let answer = conn.call(wire::FETCH_VERSION, &request).unwrap();
        let error =
            answer.error_code.max(answer.responses.first().map_or(0, |topic| topic.partitions[0].error_code));
        assert!(
            [wire::NONE, wire::INVALID_REQUEST].contains(&error),
            "({wait}, {min}, {max}): error {error}"
        );
    }
    // A partition limit of one byte still gives one whole batch, or no consumer would ever get past a large one.
    let answer = conn.call(wire::FETCH_VERSION, &wire::fetch_request("good", 0, 0, 0, 1)).unwrap();
    let data: Option<&Bytes> = answer.responses[0].partitions[0].records.as_ref();
    assert_eq!(records::read_batches(data.expect("records")).len(), 1);
    victim.unharmed();
}

#[test]
fn a_thousand_connections_that_stall_leave_others_served() {
    raise_open_files();
    let mut victim = Victim::new("stall");
    let mut stalled: Vec<Conn> = Vec::new();
    for n in 0..1000 {
        let mut conn = victim.open();
        conn.send_raw(&[0]).unwrap();
        stalled.push(conn);
        if n % 100 == 0 {
            victim.serves();
        }
    }
    for _ in 0..20 {
        victim.serves();
    }
    victim.unharmed();
    drop(stalled);
}

#[test]
fn a_client_that_never_reads_holds_up_nobody_and_no_memory() {
    // Eight deaf clients hold at most half of what the process may grow by.
    let home = Home::new("deaf").small_journal().two_shards().set("kafka.unsent_bytes_max", "4MiB");
    let mut victim = Victim::in_home(home);
    let mut conn = victim.open();
    conn.create_topic("large", 1, &[]);
    let big = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&vec![b'x'; 1_000_000]))]);
    for n in 0..16 {
        assert_eq!(conn.produce("large", 0, &big).unwrap(), (wire::NONE, n));
    }
    victim.serves();
    victim.memory = victim.node.memory();

    // Each asks for 16 MB, hundreds of times, and reads nothing.
    let mut deaf: Vec<Conn> = (0..8)
        .map(|_| {
            let mut conn = victim.open();
            let mut ask = BytesMut::new();
            for _ in 0..500 {
                let request = wire::fetch_request("large", 0, 0, 0, 16 << 20);
                ask.extend_from_slice(&conn.frame(wire::FETCH_VERSION, &request));
            }
            conn.stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            // The node stops reading too, so this may not get through; then the rest never comes.
            let _ = conn.stream().write_all(&ask);
            conn
        })
        .collect();
    for _ in 0..20 {
        victim.serves();
        let grown = victim.node.memory().saturating_sub(victim.memory);
        assert!(grown < GROWTH_MAX, "grew by {} MiB while clients do not read", grown >> 20);
    }
    // One of them reads after all: whole answers, in order.
    let late = &mut deaf[0];
    late.stream().set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..5 {
        let answer = late.receive::<kafka_protocol::messages::FetchRequest>(wire::FETCH_VERSION).unwrap();
        let data = answer.responses[0].partitions[0].records.as_ref().expect("records");
        assert!(
            records::read_batches(data)
                .iter()
                .all(|record| record.value.as_ref().is_some_and(|v| v.len() == 1_000_000))
        );
    }
    drop(deaf);
    victim.unharmed();
}

#[test]
fn many_requests_in_one_write_are_all_answered_in_order() {
    let victim = Victim::new("pipeline");
    let mut conn = victim.open();
    conn.create_topic("t", 1, &[]);
    let mut bytes = BytesMut::new();
    for n in 0..2000u32 {
        let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&n.to_be_bytes()))]);
        bytes.extend_from_slice(
            &conn.frame(wire::PRODUCE_VERSION, &wire::produce_request("t", 0, -1, &batch)),
        );
    }
    let mut writer = conn.split().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.send_raw(&bytes).unwrap());
        for n in 0..2000 {
            let answer = conn.receive::<ProduceRequest>(wire::PRODUCE_VERSION).unwrap();
            let partition = &answer.responses[0].partition_responses[0];
            assert_eq!((partition.error_code, partition.base_offset), (wire::NONE, n));
        }
    });
    victim.unharmed();
}
