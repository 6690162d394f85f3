//! rskafka, a client in Rust that shares no code with the node: every codec, headers, tombstones, large records, topics.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::SystemTime;

use rskafka::BackoffConfig;
use rskafka::chrono::{DateTime, TimeZone as _, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;

use crate::node::Home;

const CODECS: [Compression; 5] =
    [Compression::NoCompression, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn at(ms: i64) -> DateTime<Utc> {
    Utc.timestamp_millis_opt(ms).unwrap()
}

/// Records of the last hour, so that no retention takes them away while they are looked at.
fn first_ms() -> i64 {
    static FIRST: LazyLock<i64> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (i64::try_from(now).unwrap() - 3600) * 1000
    });
    *FIRST
}

fn record(n: i64, value: Option<Vec<u8>>) -> Record {
    let headers =
        BTreeMap::from([("n".to_owned(), n.to_string().into_bytes()), ("empty".to_owned(), vec![])]);
    Record {
        key: Some(format!("key-{n}").into_bytes()),
        value,
        headers,
        timestamp: at(first_ms() + n * 1000),
    }
}

/// Every record from `offset` to the high watermark.
async fn read_all(partition: &PartitionClient, mut offset: i64) -> Vec<Record> {
    let mut records = Vec::new();
    loop {
        let (read, end) = partition.fetch_records(offset, 1..8 << 20, 100).await.unwrap();
        for record in read {
            assert_eq!(record.offset, offset);
            offset += 1;
            records.push(record.record);
        }
        if offset >= end {
            return records;
        }
    }
}

async fn exercise(bootstrap: String) {
    let client =
        ClientBuilder::new(vec![bootstrap]).backoff_config(BackoffConfig::default()).build().await.unwrap();
    let controller = client.controller_client().unwrap();
    let topic = format!("rskafka-{}", std::process::id());
    controller.create_topic(&topic, 3, 1, 60_000).await.unwrap();
    let again = controller.create_topic(&topic, 3, 1, 60_000).await.unwrap_err();
    assert!(again.to_string().contains("TopicAlreadyExists"), "{again}");
    let listed = client.list_topics().await.unwrap();
    let found = listed.iter().find(|listed| listed.name == topic).expect("a created topic is listed");
    assert_eq!(found.partitions.iter().copied().collect::<Vec<_>>(), [0, 1, 2]);

    let partition = client.partition_client(&topic, 1, UnknownTopicHandling::Retry).await.unwrap();
    let mut expected = Vec::new();
    for compression in CODECS {
        let first = i64::try_from(expected.len()).unwrap();
        let mut records: Vec<Record> = (first..first + 20)
            .map(|n| record(n, Some(format!("{compression:?} {n} ").repeat(50).into_bytes())))
            .collect();
        records.push(record(first + 20, None));
        let offsets = partition.produce(records.clone(), compression).await.unwrap();
        assert_eq!(offsets, (first..first + 21).collect::<Vec<_>>());
        expected.extend(records);
    }
    // Just under the default bound on a batch of 1 MiB and 12 bytes.
    let large = record(i64::try_from(expected.len()).unwrap(), Some(vec![b'x'; 1_048_000]));
    partition.produce(vec![large.clone()], Compression::NoCompression).await.unwrap();
    expected.push(large);

    let end = i64::try_from(expected.len()).unwrap();
    assert_eq!(partition.get_offset(OffsetAt::Earliest).await.unwrap(), 0);
    assert_eq!(partition.get_offset(OffsetAt::Latest).await.unwrap(), end);
    // Inside a compressed batch the node may answer with the batch's first record: clients skip what is older.
    let by_time = |n: i64| partition.get_offset(OffsetAt::Timestamp(at(first_ms() + n * 1000)));
    assert_eq!(by_time(0).await.unwrap(), 0);
    assert_eq!(by_time(7).await.unwrap(), 7);
    assert_eq!(by_time(42).await.unwrap(), 42);
    assert!((42..=50).contains(&by_time(50).await.unwrap()));
    assert_eq!(by_time(end).await.unwrap(), -1, "nothing is as new as that");
    assert!(read_all(&partition, 0).await == expected, "the same records back");
    assert!(read_all(&partition, 50).await == expected[50..], "from the middle of a batch");
    let other = client.partition_client(&topic, 0, UnknownTopicHandling::Error).await.unwrap();
    assert!(read_all(&other, 0).await.is_empty());

    controller.delete_topic(&topic, 60_000).await.unwrap();
    assert!(client.list_topics().await.unwrap().iter().all(|listed| listed.name != topic));
}

#[test]
fn rskafka_produces_and_consumes_every_codec() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Ok(bootstrap) = std::env::var("HIGHWATER_BOOTSTRAP") {
        runtime.block_on(exercise(bootstrap));
        return;
    }
    let home = Home::new("rskafka").small_journal();
    let node = home.start();
    runtime.block_on(exercise(node.client.to_string()));
    assert!(node.stop().success());
}
