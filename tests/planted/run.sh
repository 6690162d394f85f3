#!/bin/sh
# Applies each planted bug to a copy of the source, builds the simulator with it, and requires that the world of the log
# finds it within 1,000 seeds. One that is not found, or does not apply any more, is a failure.
#
# Usage: tests/planted/run.sh [NAME...]   (names of patches without .patch; default: all)
set -eu

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
copy=$(mktemp -d)
trap 'git -C "$root" worktree remove --force "$copy/source" >/dev/null 2>&1 || true; rm -rf "$copy"' EXIT INT TERM
git -C "$root" worktree add --quiet --detach "$copy/source" HEAD
export CARGO_TARGET_DIR="${PLANTED_TARGET_DIR:-$root/target/planted}"

if [ $# -eq 0 ]; then
    for patch in "$root"/tests/planted/*.patch; do
        set -- "$@" "$(basename "$patch" .patch)"
    done
fi
missed=0
for name in "$@"; do
    git -C "$copy/source" checkout --quiet --force HEAD
    # `git apply` passes over the sentence that each patch begins with.
    git -C "$copy/source" apply -C1 --recount "$root/tests/planted/$name.patch"
    (cd "$copy/source" && cargo build --quiet -p highwater-sim)
    if out=$("$CARGO_TARGET_DIR/debug/highwater-sim" --node log --seeds 0..1000 2>&1); then
        echo "MISSED $name"
        missed=1
    else
        echo "found  $name: $(echo "$out" | grep -m1 -E '^FAILED|panicked' || true)"
    fi
done
exit $missed
