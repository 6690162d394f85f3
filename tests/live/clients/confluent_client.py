"""confluent-kafka (librdkafka): consumers are assigned, and commit nothing."""

import sys

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from common import Message, wait_for
from suite import exercise


class Adapter:
    name = "confluent-kafka"
    missing = ()

    def __init__(self, bootstrap):
        self.servers = {"bootstrap.servers": bootstrap, "topic.metadata.refresh.interval.ms": 1000}
        self.admin = AdminClient(self.servers)

    def close(self):
        pass

    def error_of(self, call):
        """The name of the error that a call must end with."""
        try:
            call()
        except KafkaException as why:
            return why.args[0].name()
        raise AssertionError("no error")

    def wait(self, futures):
        for future in futures.values():
            future.result(timeout=120)

    def create_topic(self, name, partitions, configs):
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=configs)
        self.wait(self.admin.create_topics([topic], operation_timeout=60))

    def delete_topic(self, name):
        self.wait(self.admin.delete_topics([name], operation_timeout=60))

    def topics(self):
        return set(self.admin.list_topics(timeout=60).topics)

    def partitions(self, name):
        topic = self.admin.list_topics(timeout=60).topics.get(name)
        return len(topic.partitions) if topic else 0

    def produce(self, topic, messages, partition=0, acks="all", codec="none", idempotent=False):
        producer = Producer(
            self.servers
            | {
                "acks": acks,
                "compression.type": codec,
                "enable.idempotence": idempotent,
                "message.max.bytes": 8 << 20,
                "linger.ms": 50,
                "batch.size": 100_000,
            }
        )
        failed = []

        def on_delivery(error, _message):
            if error is not None:
                failed.append(error)

        where = {} if partition is None else {"partition": partition}
        for message in messages:
            producer.produce(
                topic,
                key=message.key,
                value=message.value,
                headers=list(message.headers),
                timestamp=message.timestamp,
                on_delivery=on_delivery,
                **where,
            )
        assert producer.flush(120) == 0, "not everything was sent"
        if failed:
            raise KafkaException(failed[0])

    def consumer(self):
        # A group id must be given, and is not used: nothing is subscribed or committed.
        return Consumer(
            self.servers
            | {
                "group.id": "unused",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "check.crcs": True,
                "fetch.message.max.bytes": 8 << 20,
            }
        )

    def read(self, consumer, count):
        found = []
        while len(found) < count:
            message = consumer.poll(10)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            headers = tuple((key, value) for key, value in message.headers() or [])
            assert message.offset() == (found[-1][0] + 1 if found else message.offset()), "offsets in order"
            made = Message(message.key(), message.value(), message.timestamp()[1], headers)
            found.append((message.offset(), made))
        return [message for _, message in found]

    def consume(self, topic, partition, count, start="earliest"):
        consumer = self.consumer()
        offset = OFFSET_BEGINNING if start == "earliest" else start
        consumer.assign([TopicPartition(topic, partition, offset)])
        try:
            return self.read(consumer, count)
        finally:
            consumer.close()

    def consume_latest(self, topic, partition, count, then):
        consumer = self.consumer()
        there = TopicPartition(topic, partition, OFFSET_END)
        consumer.assign([there])
        # The end is looked up in the background, and a record must not slip in before that: the first answer to a
        # fetch tells the consumer the high watermark.
        wait_for("the end", lambda: consumer.poll(0) is None and consumer.get_watermark_offsets(there, cached=True)[1] >= 0)
        try:
            then()
            return self.read(consumer, count)
        finally:
            consumer.close()

    def offsets(self, topic, partition):
        consumer = self.consumer()
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=60)
        finally:
            consumer.close()

    def offset_for_time(self, topic, partition, timestamp):
        consumer = self.consumer()
        try:
            (found,) = consumer.offsets_for_times([TopicPartition(topic, partition, timestamp)], timeout=60)
        finally:
            consumer.close()
        by_admin = self.admin.list_offsets({TopicPartition(topic, partition): OffsetSpec.for_timestamp(timestamp)})
        (by_admin,) = [future.result(timeout=60).offset for future in by_admin.values()]
        # -1 stands for the end in both.
        assert by_admin == found.offset, f"the consumer says {found.offset}, the admin client {by_admin}"
        return None if found.offset == OFFSET_END else found.offset

    def create_partitions(self, name, count):
        self.wait(self.admin.create_partitions([NewPartitions(name, count)], operation_timeout=60))

    def topic_configs(self, name):
        (future,) = self.admin.describe_configs([ConfigResource("topic", name)]).values()
        return {key: entry.value for key, entry in future.result(timeout=60).items()}

    def alter_config(self, name, key, value):
        entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource("topic", name, incremental_configs=[entry])
        self.wait(self.admin.incremental_alter_configs([resource]))

    def delete_records(self, topic, partition, before):
        there = TopicPartition(topic, partition, before)
        (future,) = self.admin.delete_records([there], operation_timeout=60).values()
        return future.result(timeout=120).low_watermark

    def cluster(self):
        cluster = self.admin.describe_cluster().result(timeout=60)
        brokers = {node.id: f"{node.host}:{node.port}" for node in cluster.nodes}
        return brokers, cluster.controller.id, cluster.cluster_id


if __name__ == "__main__":
    exercise(Adapter(sys.argv[1]), sys.argv[1])
