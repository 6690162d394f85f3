//! A clean stop and a start on the same data: topics, configs, records, producer ids and sequences are all kept.

use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{DeleteTopicsRequest, DescribeConfigsRequest, MetadataRequest};
use kafka_protocol::protocol::StrBytes;

use crate::node::{Home, http_get};
use crate::records::{Producer, batch};
use crate::wire::{
    Conn, EARLIEST, LATEST, NONE, OUT_OF_ORDER_SEQUENCE, UNKNOWN_TOPIC_OR_PARTITION, topic_name,
};

fn record_batch(producer: Producer, text: &str) -> Vec<u8> {
    batch(1_700_000_000_000, producer, &[(Some(b"key"), Some(text.as_bytes()))])
}

fn config(conn: &mut Conn, topic: &str, key: &str) -> Option<String> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(StrBytes::from_string(topic.into()))
        .with_configuration_keys(Some(vec![StrBytes::from_string(key.into())]));
    let answer = conn.call(2, &DescribeConfigsRequest::default().with_resources(vec![resource])).unwrap();
    assert_eq!(answer.results[0].error_code, NONE);
    answer.results[0].configs.first().and_then(|config| config.value.as_ref().map(ToString::to_string))
}

#[test]
fn a_clean_restart_keeps_topics_configs_records_and_producers() {
    let home = Home::new("restart").small_journal().two_shards();
    let mut node = home.start();
    let mut conn = Conn::open(node.client).unwrap();
    conn.create_topic("kept", 3, &[("segment.ms", "123456789")]);
    conn.create_topic("deleted", 2, &[]);
    let (id, epoch) = conn.init_producer_id().unwrap();
    let producer = |sequence| Producer { id, epoch, sequence };
    let mut expected = vec![Vec::new(); 3];
    for round in 0..4 {
        for (partition, expected) in (0..).zip(&mut expected) {
            for sequence in round * 10..round * 10 + 10 {
                let text = format!("{partition}/{sequence}");
                let batch = record_batch(producer(sequence), &text);
                assert_eq!(conn.produce("kept", partition, &batch).unwrap(), (NONE, sequence.into()));
                expected.push(text.into_bytes());
            }
        }
        if round == 1 {
            let names = vec![topic_name("deleted")];
            let request = DeleteTopicsRequest::default().with_topic_names(names).with_timeout_ms(60_000);
            assert_eq!(conn.call(4, &request).unwrap().responses[0].error_code, NONE);
        }
        let next_id = conn.init_producer_id().unwrap().0;

        assert!(node.stop().success(), "SIGTERM ends the node with status 0");
        node = home.start();
        conn = Conn::open(node.client).unwrap();

        assert!(conn.init_producer_id().unwrap().0 > next_id, "a producer id is never given twice");
        assert_eq!(config(&mut conn, "kept", "segment.ms").as_deref(), Some("123456789"));
        for (partition, expected) in (0..).zip(&expected) {
            let records = conn.read_all("kept", partition, 0);
            assert!(
                records.iter().map(|record| record.value.as_ref().unwrap()).eq(expected),
                "round {round}"
            );
            let end = i64::try_from(expected.len()).unwrap();
            assert_eq!(conn.list_offset("kept", partition, LATEST).unwrap(), (NONE, end));
            assert_eq!(conn.list_offset("kept", partition, EARLIEST).unwrap(), (NONE, 0));
            // The last batch once more: known, so it gets its old offset and is not appended again.
            let sequence = round * 10 + 9;
            let again = record_batch(producer(sequence), &format!("{partition}/{sequence}"));
            assert_eq!(conn.produce("kept", partition, &again).unwrap(), (NONE, end - 1));
            // A gap in the sequence is still a gap.
            let gap = record_batch(producer(sequence + 2), "gap");
            assert_eq!(conn.produce("kept", partition, &gap).unwrap().0, OUT_OF_ORDER_SEQUENCE);
        }
        if round >= 1 {
            let topic = MetadataRequestTopic::default().with_name(Some(topic_name("deleted")));
            let request = MetadataRequest::default()
                .with_topics(Some(vec![topic]))
                .with_allow_auto_topic_creation(false);
            let answer = conn.call(4, &request).unwrap();
            assert_eq!(answer.topics[0].error_code, UNKNOWN_TOPIC_OR_PARTITION, "deleted stays deleted");
        }
    }
}

#[test]
fn a_stopping_node_answers_what_it_took_in_or_closes() {
    let home = Home::new("stopping").small_journal();
    let mut node = home.start();
    let mut conn = Conn::open(node.client).unwrap();
    conn.create_topic("t", 1, &[]);
    let mut reader = conn.split().unwrap();
    let acked = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // Ends with the connection.
            while conn.send_produce("t", 0, -1, &record_batch(Producer::NOBODY, "under way")).is_ok() {}
        });
        let mut acked = 0;
        while let Ok((error, offset)) = reader.receive_produce() {
            if error == NONE {
                assert_eq!(offset, acked);
                acked += 1;
            }
            if acked == 50 {
                node.terminate();
            }
        }
        writer.join().unwrap();
        acked
    });
    assert!(node.wait_exit().success(), "a stop under load ends with status 0");
    assert!(acked >= 50);
    let node = home.start();
    let held = Conn::open(node.client).unwrap().read_all("t", 0, 0).len();
    assert!(held >= usize::try_from(acked).unwrap(), "{acked} acked, {held} held");
}

#[test]
fn records_that_left_memory_are_read_from_the_journal() {
    // Several journal files, and far more than the memory for recent records holds.
    let home = Home::new("reread").small_journal().set("storage.tail_bytes", "4MiB");
    let mut node = home.start();
    let mut conn = Conn::open(node.client).unwrap();
    conn.create_topic("large", 2, &[]);
    let value = |n: u32| -> Vec<u8> { n.to_be_bytes().iter().copied().cycle().take(500_000).collect() };
    for n in 0..60 {
        let batch = batch(1_700_000_000_000, Producer::NOBODY, &[(None, Some(&value(n)))]);
        assert_eq!(conn.produce("large", i32::try_from(n % 2).unwrap(), &batch).unwrap().0, NONE);
    }
    assert!(node.stop().success());
    node = home.start();
    let mut conn = Conn::open(node.client).unwrap();
    for partition in 0..2u32 {
        let records = conn.read_all("large", i32::try_from(partition).unwrap(), 0);
        assert_eq!(records.len(), 30);
        for (n, record) in (0..).zip(&records) {
            assert!(
                record.value.as_deref() == Some(&value(2 * n + partition)[..]),
                "record {n} of {partition}"
            );
        }
    }
}

#[test]
fn the_admin_listener_tells_health_readiness_and_metrics() {
    let home = Home::new("admin").small_journal();
    let node = home.start();
    let mut conn = Conn::open(node.client).unwrap();
    conn.create_topic("counted", 1, &[]);
    assert_eq!(conn.produce("counted", 0, &record_batch(Producer::NOBODY, "one")).unwrap(), (NONE, 0));
    assert_eq!(http_get(node.admin, "/healthz").unwrap().0, 200);
    assert_eq!(http_get(node.admin, "/readyz").unwrap().0, 200);
    assert_eq!(http_get(node.admin, "/nothing").unwrap().0, 404);
    let (status, metrics) = http_get(node.admin, "/metrics").unwrap();
    assert_eq!(status, 200);
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
        assert!(matches!(value, Some(Ok(_))), "not a Prometheus sample: {line:?}");
    }
    assert!(metrics.contains("# TYPE ") && metrics.contains("_bucket{"), "{metrics}");
}
