#!/bin/sh
# Applies each planted bug to a copy of the source, builds the simulator with it, and requires that a world of the
# simulator finds it, and finds nothing in the source as it is. The world is the one that the first line of a patch names
# (`world: NAME.`), within 2,000 seeds, or 1,000 in that of the Raft group; without that it is the world of the log, within
# 1,000 seeds. A bug that is not found, or whose patch does not
# apply or build any more, is a failure. The copy is that of the last commit; it and what is built stay in one place, so
# that only what a patch touches is compiled again.
#
# Usage: tests/planted/run.sh [--world WORLD | NAME...]   (names of patches without .patch; default: all)
set -eu

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
built="${PLANTED_TARGET_DIR:-$root/target/planted}"
source="$built/source"
forget() {
    git -C "$root" worktree remove --force "$source" >/dev/null 2>&1 || rm -rf "$source"
    git -C "$root" worktree prune
}
trap forget EXIT
trap 'exit 1' INT TERM
mkdir -p "$built"
forget
git -C "$root" worktree add --quiet --detach "$source" HEAD
# Little is compiled again each time, so that optimizing it a little pays: thousands of seeds are run.
export CARGO_TARGET_DIR="$built" CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=2 CARGO_PROFILE_RELEASE_LTO=off \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0

# Runs the world $1. The verdict of the simulator goes to `$said`.
simulate() {
    (cd "$source" && cargo build --quiet --release -p highwater-sim --bin highwater-sim) || return 2
    case $1 in
        log | raft) seeds=1000 ;;
        *) seeds=2000 ;;
    esac
    said=$("$built/release/highwater-sim" --node "$1" --seeds "0..$seeds" 2>&1)
}

world_of() {
    world=$(sed -n '1s/^world: \([a-z]*\)\..*/\1/p' "$root/tests/planted/$1.patch")
    echo "${world:-log}"
}

only=
if [ "${1:-}" = --world ]; then
    only=$2
    shift 2
fi
if [ $# -eq 0 ]; then
    for patch in "$root"/tests/planted/*.patch; do
        name=$(basename "$patch" .patch)
        if [ -z "$only" ] || [ "$(world_of "$name")" = "$only" ]; then
            set -- "$@" "$name"
        fi
    done
fi
[ $# -gt 0 ] || { echo "no bug of the world $only is planted" >&2; exit 1; }
for world in $(for name in "$@"; do world_of "$name"; done | sort -u); do
    if ! simulate "$world"; then
        echo "FAILED without any planted bug: $(echo "${said:-it does not build}" | grep -m1 -E '^FAILED|panicked|build')"
        exit 1
    fi
done
failed=0
for name in "$@"; do
    began=$(date +%s)
    git -C "$source" checkout --quiet --force HEAD
    # `git apply` passes over the sentence that each patch begins with.
    if ! git -C "$source" apply -C1 --recount "$root/tests/planted/$name.patch"; then
        echo "STALE  $name: it does not apply any more"
        failed=1
        continue
    fi
    status=0
    simulate "$(world_of "$name")" || status=$?
    case $status in
        0)
            echo "MISSED $name"
            failed=1
            ;;
        2)
            echo "STALE  $name: it does not build any more"
            failed=1
            ;;
        *)
            # Without such words it was not the simulator's judgement that ended it.
            what=$(echo "$said" | grep -m1 -E '^FAILED|panicked' | cut -c1-160)
            if [ -n "$what" ]; then
                echo "found  $name in $(($(date +%s) - began)) s: $what"
            else
                echo "BROKEN $name: the simulator ended with status $status: $(echo "$said" | tail -n 1)"
                failed=1
            fi
            ;;
    esac
done
exit $failed
