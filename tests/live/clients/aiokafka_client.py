"""aiokafka: consumers without a group."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from common import Message
from suite import exercise


class Adapter:
    name = "aiokafka"
    # It alters configs by an API that Kafka 4 has dropped for clients of its age.
    missing = ("alter_config",)

    def __init__(self, bootstrap):
        self.bootstrap = bootstrap
        self.loop = asyncio.new_event_loop()
        self.admin = self.run(self.start_admin())

    async def start_admin(self):
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        return admin

    def run(self, work):
        return self.loop.run_until_complete(work)

    def close(self):
        self.run(self.admin.close())

    def error_of(self, call):
        """The name of the error that a call must end with, as the protocol spells it."""
        try:
            call()
        except KafkaError as why:
            return f"{getattr(why, 'message', '')} {why}"
        raise AssertionError("no error")

    def raise_first(self, errors):
        for _topic, code, *message in errors:
            if code:
                raise for_code(code)(*message)

    def create_topic(self, name, partitions, configs):
        topic = NewTopic(name, partitions, 1, topic_configs=configs)
        self.raise_first(self.run(self.admin.create_topics([topic], timeout_ms=60_000)).topic_errors)

    def delete_topic(self, name):
        self.raise_first(self.run(self.admin.delete_topics([name], timeout_ms=60_000)).topic_error_codes)

    def topics(self):
        return set(self.run(self.admin.list_topics()))

    def partitions(self, name):
        (topic,) = self.run(self.admin.describe_topics([name]))
        return len(topic["partitions"])

    def produce(self, topic, messages, partition=0, acks="all", codec="none", idempotent=False):
        async def send():
            producer = AIOKafkaProducer(
                bootstrap_servers=self.bootstrap,
                acks=acks,
                compression_type=None if codec == "none" else codec,
                enable_idempotence=idempotent,
                max_request_size=8 << 20,
                max_batch_size=2 << 20 if any(len(m.value or b"") > 90_000 for m in messages) else 100_000,
                linger_ms=50,
            )
            await producer.start()
            try:
                sent = [
                    await producer.send(
                        topic,
                        key=message.key,
                        value=message.value,
                        headers=list(message.headers),
                        partition=partition,
                        timestamp_ms=message.timestamp,
                    )
                    for message in messages
                ]
                for future in sent:
                    await future
            finally:
                await producer.stop()

        self.run(send())

    async def start_consumer(self, there):
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=8 << 20,
        )
        await consumer.start()
        consumer.assign([there])
        return consumer

    async def read(self, consumer, count):
        found = []
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += records
        offsets = [record.offset for record in found]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets))) if offsets else True, "offsets in order"
        return [Message(r.key, r.value, r.timestamp, tuple(tuple(h) for h in r.headers)) for r in found]

    def consume(self, topic, partition, count, start="earliest"):
        async def run():
            there = TopicPartition(topic, partition)
            consumer = await self.start_consumer(there)
            try:
                if start == "earliest":
                    await consumer.seek_to_beginning(there)
                else:
                    consumer.seek(there, start)
                return await self.read(consumer, count)
            finally:
                await consumer.stop()

        return self.run(run())

    def consume_latest(self, topic, partition, count, then):
        there = TopicPartition(topic, partition)
        consumer = self.run(self.start_consumer(there))
        try:
            self.run(consumer.seek_to_end(there))
            self.run(consumer.position(there))
            then()
            return self.run(self.read(consumer, count))
        finally:
            self.run(consumer.stop())

    def ask(self, topic, partition, question):
        async def run():
            there = TopicPartition(topic, partition)
            consumer = await self.start_consumer(there)
            try:
                return await question(consumer, there)
            finally:
                await consumer.stop()

        return self.run(run())

    def offsets(self, topic, partition):
        async def both(consumer, there):
            return (await consumer.beginning_offsets([there]))[there], (await consumer.end_offsets([there]))[there]

        return self.ask(topic, partition, both)

    def offset_for_time(self, topic, partition, timestamp):
        async def by_time(consumer, there):
            found = (await consumer.offsets_for_times({there: timestamp}))[there]
            return None if found is None else found.offset

        return self.ask(topic, partition, by_time)

    def create_partitions(self, name, count):
        self.run(self.admin.create_partitions({name: NewPartitions(count)}, timeout_ms=60_000))

    def topic_configs(self, name):
        (answer,) = self.run(self.admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)]))
        ((error, message, _type, _name, configs),) = answer.resources
        if error:
            raise for_code(error)(message)
        return {config[0]: config[1] for config in configs}

    def delete_records(self, topic, partition, before):
        there = TopicPartition(topic, partition)
        return self.run(self.admin.delete_records({there: RecordsToDelete(before)}, timeout_ms=60_000))[there]

    def cluster(self):
        cluster = self.run(self.admin.describe_cluster())
        brokers = {node["node_id"]: f"{node['host']}:{node['port']}" for node in cluster["brokers"]}
        return brokers, cluster["controller_id"], cluster["cluster_id"]


if __name__ == "__main__":
    exercise(Adapter(sys.argv[1]), sys.argv[1])
