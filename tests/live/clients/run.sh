#!/usr/bin/env bash
# Runs unmodified Kafka clients against a node: tests/live/clients/run.sh BOOTSTRAP [CLIENT...]
#
# Clients: confluent kafka-python aiokafka kcat kafkajs rskafka; all of them when none is named. They run at once. Prints
# one line per check, then how many passed and failed; ends with status 1 when one failed or a client could not run.
# Needs python3 with venv, kcat, node with npm, and cargo; what else is used comes from PyPI and npm into the target folder.
set -euo pipefail

if [ $# -lt 1 ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
bootstrap=$1
shift
clients=("$@")
[ ${#clients[@]} -gt 0 ] || clients=(confluent kafka-python aiokafka kcat kafkajs rskafka)

here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../../.." && pwd)
tools=${CARGO_TARGET_DIR:-$repository/target}/live-clients
mkdir -p "$tools"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# A virtual environment with the pinned packages, made again when the pins change.
python=$tools/venv/bin/python
if ! cmp -s "$here/requirements.txt" "$tools/venv/requirements.txt"; then
  rm -rf "$tools/venv"
  python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$tools/venv/requirements.txt"
fi

install_kafkajs() {
  if ! cmp -s "$here/package-lock.json" "$tools/package-lock.json"; then
    rm -rf "$tools/node_modules"
    cp "$here/package.json" "$here/package-lock.json" "$tools/"
    (cd "$tools" && npm ci --silent --no-audit --no-fund) || { rm -f "$tools/package-lock.json"; return 1; }
  fi
}

# Runs the script of a client; one that ends badly without a failed check counts as failed all the same.
run_script() {
  local name=$1 status=0
  shift
  timeout --kill-after=10 900 "$@" > "$results/$name" || status=$?
  if [ "$status" -ne 0 ] && ! grep -q '^FAILED' "$results/$name"; then
    echo "FAILED  $name: ended with status $status" >> "$results/$name"
  fi
}

run_client() {
  local name=$1 why=
  case $name in
    confluent) run_script "$name" "$python" -u "$here/confluent_client.py" "$bootstrap" ;;
    kafka-python) run_script "$name" "$python" -u "$here/kafka_python_client.py" "$bootstrap" ;;
    aiokafka) run_script "$name" "$python" -u "$here/aiokafka_client.py" "$bootstrap" ;;
    kcat)
      if command -v kcat > /dev/null; then
        run_script "$name" "$python" -u "$here/kcat_client.py" "$bootstrap"
      else
        why="not installed (Debian: apt-get install kcat)"
      fi
      ;;
    kafkajs)
      if ! command -v node > /dev/null || ! command -v npm > /dev/null; then
        why="node and npm are not installed (Debian: apt-get install nodejs npm)"
      elif ! install_kafkajs; then
        why="npm could not install it"
      else
        run_script "$name" "$python" -u "$here/kafkajs_client.py" "$bootstrap"
      fi
      ;;
    rskafka)
      if (cd "$repository" && HIGHWATER_BOOTSTRAP=$bootstrap timeout --kill-after=10 1200 \
        cargo test --quiet --test live -- --exact rust_client::rskafka_produces_and_consumes_every_codec >&2); then
        echo "ok      rskafka: every codec, headers, tombstones, 1 MiB, offsets, topics" > "$results/$name"
      else
        why="see above"
      fi
      ;;
    *) why="no such client" ;;
  esac
  if [ -n "$why" ]; then echo "FAILED  $name: $why" > "$results/$name"; fi
}

export PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 LIVE_NODE_MODULES=$tools/node_modules
# Each has topics of its own, and waits for the node most of the time: they run at once.
for client in "${clients[@]}"; do run_client "$client" & done
wait

for client in "${clients[@]}"; do cat "$results/$client"; done
passed=$(cat "$results"/* | grep -c '^ok ' || true)
failed=$(cat "$results"/* | grep -c '^FAILED ' || true)
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
