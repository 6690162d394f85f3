"""kcat (librdkafka 2.0.2, the one of Debian): whole files in, the same bytes out."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile

from common import CODECS, FIRST_TIMESTAMP, RUN, Checks, codecs, stored_batches, wait_for

BOOTSTRAP = sys.argv[1]
checks = Checks("kcat")


def kcat(*arguments, feed=None, output=None):
    """Runs kcat with a file as its input and a file as its output; its output as bytes when there is no file."""
    with (
        open(feed or os.devnull, "rb") as stdin,
        open(output, "wb") if output else contextlib.nullcontext() as stdout,
    ):
        done = subprocess.run(
            ["kcat", "-b", BOOTSTRAP, *arguments],
            stdin=stdin,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=170,
        )
    assert done.returncode == 0, f"kcat {arguments}: {done.returncode} {done.stderr.decode()[-500:]}"
    return done.stdout


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lines(count):
    return b"".join(b"line %d of %d, with some text that compresses\n" % (n, count) for n in range(count))


with tempfile.TemporaryDirectory() as folder:

    def file(name, content=None):
        path = os.path.join(folder, name)
        if content is not None:
            with open(path, "wb") as out:
                out.write(content)
        return path

    with checks.check("list brokers and topics"):
        listed = kcat("-L").decode()
        assert "1 brokers" in listed and f"at {BOOTSTRAP}" in listed, listed

    with checks.check("100,000 records in, the same bytes out"):
        topic = f"kcat-{RUN}-bytes"
        sent = file("sent", lines(100_000))
        kcat("-P", "-t", topic, "-p", "0", feed=sent)
        received = file("received")
        kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q", output=received)
        assert digest(received) == digest(sent), f"{os.path.getsize(received)} bytes of {os.path.getsize(sent)}"
        assert kcat("-Q", "-t", f"{topic}:0:-1").decode().split() == [topic, "[0]", "offset", "100000"]

    with checks.check("100,000 records over all partitions"):
        topic = f"kcat-{RUN}-spread"
        sent = file("sent", lines(100_000))
        # Random partitions: a consumer of all of them gets the same lines in another order.
        kcat("-P", "-t", topic, feed=sent)
        received = kcat("-C", "-t", topic, "-o", "beginning", "-e", "-q")
        with open(sent, "rb") as original:
            assert sorted(received.splitlines()) == sorted(original.read().splitlines())

    for acks in ("0", "1", "all"):
        with checks.check(f"produce with acks {acks}"):
            topic = f"kcat-{RUN}-acks-{acks}"
            sent = file("sent", lines(5_000))
            # With acks 0 kcat ends before the node has it all, and the topic must be there before the first record.
            kcat("-L", "-t", topic)
            kcat("-P", "-t", topic, "-p", "0", "-X", f"acks={acks}", feed=sent)
            wait_for("the records", lambda: kcat("-Q", "-t", f"{topic}:0:-1").split()[-1] == b"5000")
            assert kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q") == lines(5_000)

    with checks.check("produce with an idempotent producer"):
        topic = f"kcat-{RUN}-idempotent"
        sent = file("sent", lines(20_000))
        kcat("-P", "-t", topic, "-p", "0", "-X", "enable.idempotence=true", feed=sent)
        assert kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q") == lines(20_000)
        assert all(batch.producer_id >= 0 for batch in stored_batches(BOOTSTRAP, topic, 0))

    for codec in CODECS:
        with checks.check(f"codec {codec}, stored as such"):
            topic = f"kcat-{RUN}-codec-{codec}"
            sent = file("sent", lines(20_000))
            kcat("-P", "-t", topic, "-p", "0", "-z", codec, feed=sent)
            assert kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q") == lines(20_000)
            batches = stored_batches(BOOTSTRAP, topic, 0)
            # This librdkafka sends plain batches without a word when it thinks that the node cannot do better.
            assert codecs(batches) == {codec}, batches[:5]

    with checks.check("keys, headers, tombstones"):
        topic = f"kcat-{RUN}-keys"
        sent = file("sent", b"".join(b"k%d:v%d\n" % (n, n) for n in range(100)) + b"gone:\n")
        kcat("-P", "-t", topic, "-p", "0", "-K:", "-Z", "-H", "a=1", "-H", "b=two", feed=sent)
        found = kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q", "-Z", "-f", "%k:%s:%S:%h\n")
        expected = b"".join(b"k%d:v%d:%d:a=1,b=two\n" % (n, n, len(b"v%d" % n)) for n in range(100))
        assert found == expected + b"gone:NULL:-1:a=1,b=two\n", found[-200:]

    with checks.check("a record of 1,000,000 bytes"):
        topic = f"kcat-{RUN}-large"
        record = b"x" * 999_999 + b"\n"
        sent = file("sent", record)
        kcat("-P", "-t", topic, "-p", "0", "-X", "message.max.bytes=2000000", feed=sent)
        assert kcat("-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-q") == record

    with checks.check("consume from an offset, the end and a timestamp"):
        topic = f"kcat-{RUN}-positions"
        sent = file("sent", lines(1000))
        kcat("-P", "-t", topic, "-p", "0", feed=sent)
        tail = lines(1000).splitlines(keepends=True)
        assert kcat("-C", "-t", topic, "-p", "0", "-o", "750", "-e", "-q") == b"".join(tail[750:])
        assert kcat("-C", "-t", topic, "-p", "0", "-o", "-10", "-e", "-q") == b"".join(tail[-10:])
        assert kcat("-C", "-t", topic, "-p", "0", "-o", f"s@{FIRST_TIMESTAMP}", "-e", "-q") == b"".join(tail)

checks.finish()
