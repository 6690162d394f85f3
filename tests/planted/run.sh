#!/bin/sh
# Applies each planted bug to a copy of the source, builds the simulator with it, and requires that the world of the log
# finds it within 1,000 seeds, and finds nothing in the source as it is. A bug that is not found, or whose patch does not
# apply or build any more, is a failure. The copy is that of the last commit; it and what is built stay in one place, so
# that only what a patch touches is compiled again.
#
# Usage: tests/planted/run.sh [NAME...]   (names of patches without .patch; default: all)
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
export CARGO_TARGET_DIR="$built" CARGO_INCREMENTAL=1

# The verdict of the simulator goes to `$said`.
simulate() {
    (cd "$source" && cargo build --quiet -p highwater-sim --bin highwater-sim) || return 2
    said=$("$built/debug/highwater-sim" --node log --seeds 0..1000 2>&1)
}

if [ $# -eq 0 ]; then
    for patch in "$root"/tests/planted/*.patch; do
        set -- "$@" "$(basename "$patch" .patch)"
    done
fi
if ! simulate; then
    echo "FAILED without any planted bug: $(echo "${said:-it does not build}" | grep -m1 -E '^FAILED|panicked|build')"
    exit 1
fi
failed=0
for name in "$@"; do
    git -C "$source" checkout --quiet --force HEAD
    # `git apply` passes over the sentence that each patch begins with.
    if ! git -C "$source" apply -C1 --recount "$root/tests/planted/$name.patch"; then
        echo "STALE  $name: it does not apply any more"
        failed=1
        continue
    fi
    status=0
    simulate || status=$?
    case $status in
        0)
            echo "MISSED $name"
            failed=1
            ;;
        2)
            echo "STALE  $name: it does not build any more"
            failed=1
            ;;
        *) echo "found  $name: $(echo "$said" | grep -m1 -E '^FAILED|panicked' | cut -c1-160)" ;;
    esac
done
exit $failed
