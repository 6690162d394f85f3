"""The checks that every Python client goes through, against an adapter that speaks for the client.

An adapter has the methods that `exercise` calls; those named in `missing` are things this client cannot do.
"""

from common import CODECS, FIRST_TIMESTAMP, RUN, Checks, codecs, messages, noise, same, stored_batches, wait_for

ADMIN_CALLS = ("create_partitions", "topic_configs", "alter_config", "cluster")


def exercise(adapter, bootstrap):
    checks = Checks(adapter.name)
    prefix = f"{adapter.name}-{RUN}"

    def topic(name, partitions=1, configs=None):
        full = f"{prefix}-{name}"
        adapter.create_topic(full, partitions, configs or {})
        wait_for("the topic", lambda: adapter.partitions(full) == partitions)
        return full

    def stored(name, partition=0):
        return stored_batches(bootstrap, name, partition)

    with checks.check("create, describe and delete a topic"):
        name = topic("lifecycle", 5)
        assert adapter.partitions(name) == 5
        assert name in adapter.topics()
        error = adapter.error_of(lambda: adapter.create_topic(name, 5, {}))
        assert "ALREADY_EXISTS" in error, f"created twice: {error}"
        adapter.delete_topic(name)
        wait_for("the deletion", lambda: name not in adapter.topics())
        error = adapter.error_of(lambda: adapter.delete_topic(name))
        assert "UNKNOWN_TOPIC_OR_PART" in error, f"deleted twice: {error}"

    with checks.check("create a deleted topic again, empty"):
        name = topic("again", 2)
        adapter.produce(name, messages(10))
        adapter.delete_topic(name)
        wait_for("the deletion", lambda: name not in adapter.topics())
        topic("again", 3)
        assert [adapter.offsets(name, p) for p in range(3)] == [(0, 0)] * 3

    for acks in (0, 1, "all"):
        with checks.check(f"produce with acks {acks}"):
            name = topic(f"acks-{acks}")
            sent = messages(500)
            adapter.produce(name, sent, acks=acks)
            # Nobody says when records of acks 0 are in; their count does.
            wait_for("the records", lambda: adapter.offsets(name, 0) == (0, len(sent)))
            same(adapter.consume(name, 0, len(sent)), sent)
            assert all(batch.producer_id == -1 for batch in stored(name)), "not idempotent"

    with checks.check("produce with an idempotent producer"):
        name = topic("idempotent", 3)
        for partition in range(3):
            sent = messages(1000, first=partition)
            adapter.produce(name, sent, partition=partition, idempotent=True)
            same(adapter.consume(name, partition, len(sent)), sent)
            assert adapter.offsets(name, partition) == (0, len(sent))
            batches = stored(name, partition)
            assert all(batch.producer_id >= 0 for batch in batches), "the producer sent no producer id"

    for codec in CODECS:
        with checks.check(f"codec {codec}, stored as such"):
            name = topic(f"codec-{codec}")
            sent = messages(400)
            adapter.produce(name, sent, codec=codec)
            same(adapter.consume(name, 0, len(sent)), sent)
            batches = stored(name)
            assert codecs(batches) == {codec}, batches
            assert sum(batch.count for batch in batches) == len(sent)
            plain = sum(len(message.value or b"") for message in sent)
            size = sum(batch.size for batch in batches)
            assert (size < plain / 2) == (codec != "none"), f"{size} bytes stored of {plain}"

    with checks.check("every codec in one partition"):
        name = topic("mixed")
        sent = []
        for round in range(2):
            for codec in CODECS:
                batch = messages(30, first=len(sent))
                adapter.produce(name, batch, codec=codec)
                sent += batch
        same(adapter.consume(name, 0, len(sent)), sent)
        assert codecs(stored(name)) == set(CODECS)

    with checks.check("records of 1 MiB"):
        name = topic("large", 1, {"max.message.bytes": str(4 << 20)})
        sent = [message_of(noise(1 << 20, seed)) for seed in range(5)]
        adapter.produce(name, sent)
        same(adapter.consume(name, 0, len(sent)), sent)

    with checks.check("a record over the topic's limit is refused"):
        name = topic("limited", 1, {"max.message.bytes": "20000"})
        error = adapter.error_of(lambda: adapter.produce(name, [message_of(noise(30_000))]))
        assert "TOO_LARGE" in error or "SIZE_TOO" in error, error
        adapter.produce(name, [message_of(noise(10_000))])
        assert adapter.offsets(name, 0) == (0, 1)

    with checks.check("many partitions, each key in order"):
        name = topic("many", 32)
        sent = [message for message in messages(2000) if message.key]
        adapter.produce(name, sent, partition=None)
        ends = [adapter.offsets(name, partition) for partition in range(32)]
        assert sum(end for _, end in ends) == len(sent), ends
        found = {}
        for partition, (_, end) in enumerate(ends):
            for message in adapter.consume(name, partition, end):
                found.setdefault(message.key, []).append(message)
        expected = {}
        for message in sent:
            expected.setdefault(message.key, []).append(message)
        assert found == expected

    with checks.check("consume from earliest, an offset, a timestamp and latest"):
        name = topic("positions")
        sent = messages(300)
        for first in range(0, 300, 50):
            adapter.produce(name, sent[first : first + 50])
        same(adapter.consume(name, 0, 300, start="earliest"), sent)
        same(adapter.consume(name, 0, 123, start=177), sent[177:])
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP) == 0
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP - 5) == 0
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP + 120_000) == 120
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP + 119_001) == 120
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP + 300_000) is None
        start = adapter.offset_for_time(name, 0, FIRST_TIMESTAMP + 250_000)
        same(adapter.consume(name, 0, 50, start=start), sent[250:])
        late = messages(3, first=300)
        same(adapter.consume_latest(name, 0, 3, lambda: adapter.produce(name, late)), late)

    with checks.check("offsets by timestamp in compressed batches"):
        name = topic("compressed-times")
        for number, codec in enumerate(CODECS):
            adapter.produce(name, messages(100, first=100 * number), codec=codec)
        for number in range(len(CODECS)):
            at = 100 * number + 50
            assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP + at * 1000) == at

    with checks.check("wait at the end of a partition for what comes"):
        name = topic("tail", 2)
        sent = messages(20)
        same(adapter.consume_latest(name, 1, 20, lambda: adapter.produce(name, sent, partition=1)), sent)

    with checks.check("a topic is created by its first record"):
        name = f"{prefix}-auto"
        adapter.produce(name, messages(10))
        assert name in adapter.topics()
        same(adapter.consume(name, 0, 10), messages(10))

    if "create_partitions" not in adapter.missing:
        with checks.check("create partitions"):
            name = topic("grown", 2)
            adapter.produce(name, messages(10))
            adapter.create_partitions(name, 6)
            wait_for("the new partitions", lambda: adapter.partitions(name) == 6)
            adapter.produce(name, messages(10), partition=5)
            assert [adapter.offsets(name, p)[1] for p in range(6)] == [10, 0, 0, 0, 0, 10]
            error = adapter.error_of(lambda: adapter.create_partitions(name, 3))
            assert "INVALID_PARTITIONS" in error, f"fewer partitions: {error}"

    if "topic_configs" not in adapter.missing:
        with checks.check("describe a topic's configs"):
            name = topic("configs", 1, {"retention.ms": "3600000", "max.message.bytes": "54321"})
            configs = adapter.topic_configs(name)
            assert configs["retention.ms"] == "3600000", configs
            assert configs["max.message.bytes"] == "54321", configs
            assert "cleanup.policy" in configs, configs

    if "alter_config" not in adapter.missing:
        with checks.check("alter a topic's config"):
            name = topic("altered", 1, {"retention.ms": "3600000"})
            adapter.alter_config(name, "max.message.bytes", "20000")
            wait_for("the new config", lambda: adapter.topic_configs(name)["max.message.bytes"] == "20000")
            assert adapter.topic_configs(name)["retention.ms"] == "3600000", "only what was named is altered"
            error = adapter.error_of(lambda: adapter.produce(name, [message_of(noise(30_000))]))
            assert "TOO_LARGE" in error or "SIZE_TOO" in error, error

    with checks.check("settings of the log are kept, and nonsense is refused"):
        given = {
            "cleanup.policy": "compact,delete",
            "delete.retention.ms": "120000",
            "min.cleanable.dirty.ratio": "0.25",
            "min.compaction.lag.ms": "60000",
            "retention.bytes": "1000000",
            "retention.ms": "86400000",
            "segment.bytes": "1048576",
            "segment.ms": "3600000",
        }
        configs = adapter.topic_configs(topic("log-settings", 1, given))
        assert {key: configs[key] for key in given} == given, configs
        for key, value in (("segment.bytes", "10"), ("min.cleanable.dirty.ratio", "2"), ("cleanup.policy", "shred")):
            error = adapter.error_of(lambda: adapter.create_topic(f"{prefix}-refused", 1, {key: value}))
            assert "INVALID_CONFIG" in error, f"{key}={value}: {error}"

    with checks.check("delete records"):
        name = topic("trimmed", 2)
        sent = messages(200)
        for first in range(0, 200, 50):
            adapter.produce(name, sent[first : first + 50])
        assert adapter.delete_records(name, 0, 70) == 70
        assert adapter.offsets(name, 0) == (70, 200)
        same(adapter.consume(name, 0, 130), sent[70:])
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP) == 70, "deleted records are not found"
        assert adapter.delete_records(name, 0, 30) == 70, "a lower offset changes nothing"
        error = adapter.error_of(lambda: adapter.delete_records(name, 0, 201))
        assert "OFFSET_OUT_OF_RANGE" in error, error
        assert adapter.delete_records(name, 0, -1) == 200, "-1 is the high watermark"
        assert adapter.offsets(name, 0) == (200, 200)
        assert adapter.offset_for_time(name, 0, FIRST_TIMESTAMP) is None, "deleted records are not found"
        late = messages(5, first=200)
        adapter.produce(name, late)
        same(adapter.consume(name, 0, 5), late)
        assert adapter.offsets(name, 1) == (0, 0), "the other partition is left alone"

    with checks.check("old records are deleted by age, and new ones are taken"):
        # Its records are an hour old: each file can go as soon as it is looked at, the last one too.
        name = topic("expired", 1, {"retention.ms": "1000", "segment.bytes": "4096", "segment.ms": "1000"})
        for first in range(0, 100, 10):
            adapter.produce(name, messages(10, first=first))
        wait_for("the deletion of all records", lambda: adapter.offsets(name, 0) == (100, 100))
        adapter.produce(name, messages(1))
        assert adapter.offsets(name, 0)[1] == 101

    with checks.check("a compacted topic takes keys only, keeps the last of each and deletes nothing on request"):
        name = topic("compacted", 1, {"cleanup.policy": "compact", "segment.bytes": "4096", "min.cleanable.dirty.ratio": "0"})
        last = [message for message in messages(34) if message.key and message.value]
        for _ in range(20):
            adapter.produce(name, last)
        error = adapter.error_of(lambda: adapter.produce(name, [type(last[0])(None, b"no key", FIRST_TIMESTAMP)]))
        # A client may be older than the name of this error.
        assert "INVALID_RECORD" in error or "UNKNOWN" in error.upper(), error
        error = adapter.error_of(lambda: adapter.delete_records(name, 0, 1))
        assert "POLICY_VIOLATION" in error, error
        count = 20 * len(last)
        assert adapter.offsets(name, 0) == (0, count)
        size = lambda: sum(batch.size for batch in stored(name))
        before = 20 * sum(len(message.value) for message in last)
        wait_for("the compaction", lambda: size() < before / 4)
        same(adapter.consume(name, 0, len(last), start=count - len(last)), last)

    if "cluster" not in adapter.missing:
        with checks.check("describe the cluster"):
            brokers, controller, cluster_id = adapter.cluster()
            assert len(brokers) == 1 and controller in brokers, (brokers, controller)
            assert cluster_id, "a cluster has an id"
            assert brokers[controller] == bootstrap, f"{brokers} is not {bootstrap}"

    with checks.check("close"):
        adapter.close()
    checks.finish()


def message_of(value):
    message = messages(1)[0]
    return type(message)(b"large", value, message.timestamp)
