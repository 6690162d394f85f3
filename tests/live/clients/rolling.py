#!/usr/bin/env python3
"""Restarts three nodes one after the other with SIGTERM while a client with default settings produces:
tests/live/clients/rolling.py BINARY [ROUNDS [RECORDS_PER_SECOND]]

Fails when the client was told of an error, or when a record that was acknowledged is not read back. Prints how long
records took to be acknowledged before the restarts and during them.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC, PARTITIONS = "rolled", 12
# Far beyond what a slow machine needs.
PATIENCE_S = 120


def wait_for(what, look):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.01)
    raise SystemExit(f"FAILED  waited in vain for {what}")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Node:
    def __init__(self, binary, home, number, peers):
        self.client, self.admin = free_ports(2)
        self.log = (home / f"node-{number}.log").open("wb")
        seeds = ",".join(f"127.0.0.1:{peer}" for peer in peers)
        self.command = [binary, "serve", "--profile", "dev", "--data-dir", str(home / f"node-{number}")]
        self.command += ["--listen", f"127.0.0.1:{self.client}", "--admin", f"127.0.0.1:{self.admin}"]
        for setting in (
            "cluster.mode=cluster",
            f"cluster.node_id={number}",
            f"cluster.cluster_addr=127.0.0.1:{peers[number - 1]}",
            f"cluster.seeds=[{seeds}]",
            "security.cluster_secret=the secret of a rolling restart",
        ):
            self.command += ["--set", setting]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).status == 200
        except OSError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if status := self.process.wait(PATIENCE_S):
            raise SystemExit(f"FAILED  a node that was told to stop ended with status {status}")


class Load:
    """Produces numbered records at a fixed rate."""

    def __init__(self, bootstrap, rate):
        self.producer = Producer({"bootstrap.servers": bootstrap})
        self.rate, self.acked, self.errors, self.took = rate, set(), [], []
        self.sent, self.goes_on = 0, True
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        began = time.monotonic()
        while self.goes_on:
            due = int((time.monotonic() - began) * self.rate)
            while self.sent < due:
                self.send(self.sent)
                self.sent += 1
            self.producer.poll(0.0005)
        left = self.producer.flush(PATIENCE_S)
        if left:
            self.errors.append(f"{left} records were not acknowledged")

    def send(self, number):
        at = time.monotonic()

        def on_delivery(error, _message):
            if error is None:
                self.acked.add(number)
                self.took.append(time.monotonic() - at)
            else:
                self.errors.append(str(error))

        self.producer.produce(TOPIC, str(number), partition=number % PARTITIONS, on_delivery=on_delivery)

    def stop(self):
        self.goes_on = False
        self.thread.join()

    def take(self):
        """How long each record took that was acknowledged since the last time, in order."""
        took, self.took = self.took, []
        return sorted(took)


def told(what, took):
    share = lambda part: took[int((len(took) - 1) * part)] * 1000
    print(f"{what}: {len(took)} records, p50 {share(0.5):.2f} ms, p99 {share(0.99):.2f} ms, max {took[-1] * 1000:.1f} ms")
    return share(0.99)


def are_in_sync(admin):
    topic = admin.list_topics(TOPIC, timeout=PATIENCE_S).topics[TOPIC]
    isrs = [len(partition.isrs) for partition in topic.partitions.values()]
    return len(isrs) == PARTITIONS and all(size == 3 for size in isrs)


def read_all(bootstrap):
    # It has no offsets to commit: without a group's coordinator, closing it would wait for one.
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "rolled", "enable.auto.commit": False})
    tops = [TopicPartition(TOPIC, partition, 0) for partition in range(PARTITIONS)]
    ends = {top.partition: consumer.get_watermark_offsets(top)[1] for top in tops}
    consumer.assign(tops)
    found, at = set(), dict.fromkeys(ends, 0)
    end = time.monotonic() + PATIENCE_S
    while any(at[partition] < ends[partition] for partition in ends) and time.monotonic() < end:
        for message in consumer.consume(10_000, timeout=0.5):
            if message.error() is None:
                found.add(int(message.value()))
                at[message.partition()] = message.offset() + 1
    consumer.close()
    return found


def main():
    binary = os.path.abspath(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    rate = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    # Beside the binary: a temporary folder in memory may not take direct I/O.
    with tempfile.TemporaryDirectory(dir=os.path.dirname(binary)) as home:
        peers = free_ports(3)
        nodes = [Node(binary, pathlib.Path(home), number, peers) for number in (1, 2, 3)]
        try:
            return roll(nodes, rounds, rate)
        finally:
            for node in nodes:
                node.process.kill()
                node.process.wait()


def roll(nodes, rounds, rate):
    for node in nodes:
        wait_for("a node to be ready", node.is_ready)
    bootstrap = ",".join(f"127.0.0.1:{node.client}" for node in nodes)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = NewTopic(TOPIC, PARTITIONS, 3, config={"min.insync.replicas": "2"})

    def is_created():
        # Nodes that have only just started take no replicas yet.
        return admin.create_topics([topic])[TOPIC].exception() is None

    wait_for("the topic to be created", is_created)
    wait_for("all replicas in sync", lambda: are_in_sync(admin))
    load = Load(bootstrap, rate)
    try:
        time.sleep(2)
        load.take()
        time.sleep(5)
        before = told("before", load.take())
        for round in range(rounds):
            for number, node in enumerate(nodes, 1):
                began = time.monotonic()
                node.stop()
                stopped = time.monotonic()
                node.start()
                wait_for("the node to be ready again", node.is_ready)
                ready = time.monotonic()
                wait_for("all replicas in sync", lambda: are_in_sync(admin))
                whole = time.monotonic()
                print(
                    f"node {number}: stopped after {stopped - began:.2f} s, ready {ready - stopped:.2f} s later, all in "
                    f"sync {whole - ready:.2f} s later"
                )
                time.sleep(1)
        during = told("during", load.take())
    finally:
        load.stop()
    lost = load.acked - read_all(bootstrap)
    print(f"{len(load.acked)} records acknowledged, {len(lost)} of them lost, {len(load.errors)} errors reached the client")
    print(f"p99 during the restarts: {during / before:.1f} times that before")
    if lost or load.errors:
        print(f"FAILED  {load.errors[:3]} {sorted(lost)[:10]}")
        return 1
    print("ok      a rolling restart was not noticed")
    return 0


sys.exit(main())
