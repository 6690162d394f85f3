"""What every client check shares: the checks' output, the records that are written, and a raw look at stored batches.

A check prints one line, `ok` or `FAILED`, with the client's name; `run.sh` counts them.
"""

import contextlib
import os
import random
import signal
import socket
import struct
import sys
import time
import traceback
from dataclasses import dataclass, field

# A check that takes longer hangs. Far beyond what a slow machine needs.
PATIENCE_S = 180

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}

# Topic names of one run never meet those of another.
RUN = f"{time.time_ns() // 1_000_000:x}-{os.getpid()}"


class Hang(Exception):
    pass


class Checks:
    """Runs checks and counts them; the process ends with status 1 when one failed."""

    def __init__(self, client):
        self.client = client
        self.passed = 0
        self.failed = 0

        def on_alarm(_signal, _frame):
            raise Hang(f"no end after {PATIENCE_S} s")

        signal.signal(signal.SIGALRM, on_alarm)

    @contextlib.contextmanager
    def check(self, what):
        signal.alarm(PATIENCE_S)
        try:
            yield
        except Exception as why:  # one failed check must not hide the others
            signal.alarm(0)
            self.failed += 1
            print(f"FAILED  {self.client}: {what}: {type(why).__name__}: {why}", flush=True)
            traceback.print_exc(file=sys.stderr)
        else:
            signal.alarm(0)
            self.passed += 1
            print(f"ok      {self.client}: {what}", flush=True)

    def finish(self):
        if self.passed + self.failed == 0:
            print(f"FAILED  {self.client}: no check ran", flush=True)
            self.failed = 1
        sys.stdout.flush()
        sys.stderr.flush()
        # Client threads that are still busy after a failure must not keep the process.
        os._exit(1 if self.failed else 0)


@dataclass(frozen=True)
class Message:
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: tuple = field(default=())


# Records of the last hour, so that no retention takes them away while they are looked at.
FIRST_TIMESTAMP = (time.time_ns() // 1_000_000_000 - 3600) * 1000


def messages(count, first=0):
    """Records one second apart, of compressible text; some without a key, some tombstones, some with headers."""
    made = []
    for n in range(first, first + count):
        key = None if n % 11 == 10 else f"key-{n % 17}".encode()
        value = None if key is not None and n % 7 == 6 else f"record {n} of this run, ".encode() * 30
        headers = (("n", str(n).encode()), ("empty", b""), ("n", b"twice")) if n % 3 == 0 else ()
        made.append(Message(key, value, FIRST_TIMESTAMP + n * 1000, headers))
    return made


def noise(count, seed=1):
    """Bytes that no codec makes smaller."""
    return random.Random(seed).randbytes(count)


def same(found, expected, what="records"):
    """Compares two lists and says where they part."""
    found, expected = list(found), list(expected)
    for n, (a, b) in enumerate(zip(found, expected)):
        if a != b:
            raise AssertionError(f"{what} {n} differ: found {shorten(a)}, expected {shorten(b)}")
    assert len(found) == len(expected), f"{len(found)} {what} found, {len(expected)} expected"


def shorten(thing):
    text = repr(thing)
    return text if len(text) < 300 else text[:300] + "…"


def wait_for(what, look):
    """Calls `look` until it gives something true. The check's alarm ends it."""
    while True:
        found = look()
        if found:
            return found
        time.sleep(0.02)


@dataclass(frozen=True)
class StoredBatch:
    base_offset: int
    count: int
    codec: str
    producer_id: int
    size: int


def stored_batches(bootstrap, topic, partition):
    """The batches of a partition as they are stored, by a Fetch (version 4) written by hand. Clients that cannot
    compress send plain batches without a word, so only the stored attributes tell."""
    host, port = bootstrap.rsplit(":", 1)
    batches, offset = [], 0
    with socket.create_connection((host, int(port)), timeout=60) as conn:
        while True:
            name = topic.encode()
            body = struct.pack(">iiiib", -1, 0, 1, 64 << 20, 0)
            body += struct.pack(">ih", 1, len(name)) + name
            body += struct.pack(">iiqi", 1, partition, offset, 64 << 20)
            request = struct.pack(">hhih", 1, 4, 1, 3) + b"raw" + body
            conn.sendall(struct.pack(">i", len(request)) + request)
            answer = read(conn, struct.unpack(">i", read(conn, 4))[0])
            # Correlation, throttle time, one topic and its name, one partition.
            at = 4 + 4 + 4 + 2 + len(name) + 4
            _, error, high_watermark, _, aborted = struct.unpack_from(">ihqqi", answer, at)
            assert error == 0, f"raw fetch of {topic}-{partition} at {offset}: error {error}"
            at += 26 + 16 * max(0, aborted)
            (size,) = struct.unpack_from(">i", answer, at)
            records = answer[at + 4 : at + 4 + max(0, size)]
            while len(records) >= 61:
                base, length = struct.unpack_from(">qi", records)
                if len(records) < 12 + length:
                    break
                attributes, last_delta = struct.unpack_from(">hi", records, 21)
                (producer_id,) = struct.unpack_from(">q", records, 43)
                codec = next(name for name, number in CODECS.items() if number == attributes & 7)
                if base >= offset:
                    batches.append(StoredBatch(base, last_delta + 1, codec, producer_id, 12 + length))
                records = records[12 + length :]
                offset = max(offset, base + last_delta + 1)
            if offset >= high_watermark:
                return batches


def codecs(batches):
    """The codecs of batches that were worth compressing: a client sends a single small record plain when that is
    shorter."""
    return {batch.codec for batch in batches if batch.count > 1}


def read(conn, count):
    data = bytearray()
    while len(data) < count:
        piece = conn.recv(count - len(data))
        assert piece, "the node closed a raw fetch"
        data += piece
    return bytes(data)
