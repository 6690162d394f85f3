"""kafka-python: consumers without a group."""

import sys

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import KafkaError

from common import Message
from suite import exercise


class Adapter:
    name = "kafka-python"
    missing = ()

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.admin = KafkaAdminClient(bootstrap_servers=bootstrap)

    def close(self):
        self.admin.close()

    def error_of(self, call):
        """The name of the error that a call must end with, as the protocol spells it."""
        try:
            call()
        except KafkaError as why:
            return f"{getattr(why, 'message', '')} {why}"
        raise AssertionError("no error")

    def create_topic(self, name, partitions, configs):
        options = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
        self.admin.create_topics({name: options}, timeout_ms=60_000)

    def delete_topic(self, name):
        self.admin.delete_topics([name], timeout_ms=60_000)

    def topics(self):
        return set(self.admin.list_topics())

    def partitions(self, name):
        (topic,) = self.admin.describe_topics([name])
        return len(topic["partitions"])

    def produce(self, topic, messages, partition=0, acks="all", codec="none", idempotent=False):
        producer = KafkaProducer(
            bootstrap_servers=self.bootstrap,
            acks=acks,
            compression_type=None if codec == "none" else codec,
            enable_idempotence=idempotent,
            max_request_size=8 << 20,
            linger_ms=50,
            batch_size=100_000,
        )
        try:
            sent = [
                producer.send(
                    topic,
                    key=message.key,
                    value=message.value,
                    headers=list(message.headers),
                    partition=partition,
                    timestamp_ms=message.timestamp,
                )
                for message in messages
            ]
            producer.flush(timeout=120)
            for future in sent:
                future.get(timeout=120)
        finally:
            producer.close()

    def consumer(self):
        return KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=8 << 20,
        )

    def read(self, consumer, count):
        found = []
        while len(found) < count:
            for records in consumer.poll(timeout_ms=1000).values():
                found += records
        offsets = [record.offset for record in found]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets))) if offsets else True, "offsets in order"
        return [Message(r.key, r.value, r.timestamp, tuple(tuple(h) for h in r.headers)) for r in found]

    def consume(self, topic, partition, count, start="earliest"):
        consumer = self.consumer()
        there = TopicPartition(topic, partition)
        consumer.assign([there])
        if start == "earliest":
            consumer.seek_to_beginning(there)
        else:
            consumer.seek(there, start)
        try:
            return self.read(consumer, count)
        finally:
            consumer.close()

    def consume_latest(self, topic, partition, count, then):
        consumer = self.consumer()
        there = TopicPartition(topic, partition)
        consumer.assign([there])
        consumer.seek_to_end(there)
        try:
            consumer.position(there)
            then()
            return self.read(consumer, count)
        finally:
            consumer.close()

    def offsets(self, topic, partition):
        consumer = self.consumer()
        there = TopicPartition(topic, partition)
        try:
            return consumer.beginning_offsets([there])[there], consumer.end_offsets([there])[there]
        finally:
            consumer.close()

    def offset_for_time(self, topic, partition, timestamp):
        consumer = self.consumer()
        there = TopicPartition(topic, partition)
        try:
            found = consumer.offsets_for_times({there: timestamp})[there]
        finally:
            consumer.close()
        return None if found is None else found.offset

    def create_partitions(self, name, count):
        self.admin.create_partitions({name: count}, timeout_ms=60_000)

    def topic_configs(self, name):
        found = self.admin.describe_configs([ConfigResource("TOPIC", name)], config_filter="all")
        return {key: config["value"] for key, config in found["topic"][name].items()}

    def alter_config(self, name, key, value):
        answer = self.admin.alter_configs([ConfigResource("TOPIC", name, {key: value})])
        assert answer["topic"][name] == "OK", answer

    def delete_records(self, topic, partition, before):
        there = TopicPartition(topic, partition)
        return self.admin.delete_records({there: before}, timeout_ms=60_000)[there]["low_watermark"]

    def cluster(self):
        cluster = self.admin.describe_cluster()
        brokers = {node["broker_id"]: f"{node['host']}:{node['port']}" for node in cluster["brokers"]}
        return brokers, cluster["controller_id"], cluster["cluster_id"]


if __name__ == "__main__":
    exercise(Adapter(sys.argv[1]), sys.argv[1])
