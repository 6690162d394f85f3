"""KafkaJS writes, confluent-kafka and a raw fetch check what it wrote."""

import json
import os
import subprocess
import sys

from common import FIRST_TIMESTAMP, RUN, Checks, codecs, messages, same, stored_batches
from confluent_client import Adapter

BOOTSTRAP = sys.argv[1]
checks = Checks("kafkajs")
script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kafkajs_client.js")
command = ["node", script, BOOTSTRAP, RUN, str(FIRST_TIMESTAMP)]
done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=500)

written = None
for line in done.stdout.splitlines():
    if line.startswith("DONE "):
        written = json.loads(line[5:])
        continue
    print(line, flush=True)
    checks.passed += line.startswith("ok ")
    checks.failed += line.startswith("FAILED ")

with checks.check("the script came to its end"):
    assert written and (done.returncode == 0) == (checks.failed == 0), f"status {done.returncode}"

reader = Adapter(BOOTSTRAP)
for topic, expected in (written or {}).items():
    with checks.check(f"{topic.rsplit(RUN + '-')[1]} read back by confluent-kafka"):
        found = reader.consume(topic, 0, expected["count"])
        # KafkaJS keeps headers in a map and writes those of one name side by side.
        want = messages(expected["count"])
        order = lambda message: tuple(sorted(message.headers))
        same([order(message) for message in found], [order(message) for message in want], "headers")
        bare = lambda message: (message.key, message.value, message.timestamp)
        same([bare(message) for message in found], [bare(message) for message in want])
        batches = stored_batches(BOOTSTRAP, topic, 0)
        assert codecs(batches) == {expected["codec"]}, batches
        assert all((batch.producer_id >= 0) == expected.get("idempotent", False) for batch in batches), batches

checks.finish()
