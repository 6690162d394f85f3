#!/usr/bin/env bash
# Applies the reversible host settings that check-host.sh advises, until the next reboot.
#
#   tuning/set-host.sh [--apply] [--data-dir DIR]
#
# Without --apply it only prints what it would do. With it (as root) it prints, for each change, the command that undoes
# it; keep that output. It sets: the CPU governor, transparent huge pages, dirty ratios, swappiness, somaxconn,
# io_uring_disabled, and the scheduler of the data folder's disk. It never touches what needs a reboot (isolcpus,
# nohz_full), limits of units (memlock, nofile), or files under /etc.
# Exit status: 0 done, 1 a change failed, 2 wrong usage.
set -u

apply=no
data_dir=./highwater-data
while [ $# -gt 0 ]; do
    case $1 in
        --apply) apply=yes ;;
        --dry-run) apply=no ;;
        --data-dir)
            [ $# -ge 2 ] || { echo "set-host.sh: --data-dir needs a folder" >&2; exit 2; }
            data_dir=$2
            shift
            ;;
        -h | --help)
            sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *)
            echo "set-host.sh: unknown argument $1 (--apply, --dry-run, --data-dir DIR)" >&2
            exit 2
            ;;
    esac
    shift
done
if [ "$apply" = yes ] && [ "$(id -u)" -ne 0 ]; then
    echo "set-host.sh: --apply needs root" >&2
    exit 2
fi

status=0

# What a file of /proc or /sys holds now; of a choice in brackets, the chosen word.
value_of() {
    local line
    IFS= read -r line <"$1" || true
    case $line in
        *\[*\]*)
            line=${line#*\[}
            line=${line%%\]*}
            ;;
    esac
    printf '%s' "$line"
}

# set_file FILE VALUE: writes VALUE unless it is there already.
set_file() {
    local file=$1 value=$2 before
    [ -e "$file" ] || return 0
    before=$(value_of "$file")
    [ "$before" != "$value" ] || return 0
    if [ "$apply" = no ]; then
        echo "would: echo $value > $file        # now $before"
    elif echo "$value" 2>/dev/null >"$file" && [ "$(value_of "$file")" = "$value" ]; then
        echo "set: $file to $value; undo: echo $before > $file"
    else
        echo "failed: $file stays $(value_of "$file")" >&2
        status=1
    fi
}

# As set_file, but only when the value is outside what is wanted: set_if FILE -gt|-lt BOUND VALUE
set_if() {
    local before
    [ -e "$1" ] || return 0
    before=$(value_of "$1")
    if test "$before" "$2" "$3"; then set_file "$1" "$4"; fi
}

# The whole disk under a folder: its name in /sys/block, or nothing (overlay, tmpfs, network).
disk_of() {
    local device resolved
    device=$(df --output=source "$1" 2>/dev/null | tail -n 1)
    case $device in /dev/*) ;; *) return ;; esac
    resolved=$(readlink -f "/sys/class/block/$(basename "$(readlink -f "$device")")" 2>/dev/null) || return
    if [ -e "$resolved/partition" ]; then
        resolved=$(dirname "$resolved")
    fi
    basename "$resolved"
}

set_if /proc/sys/kernel/io_uring_disabled -gt 0 0
for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
    set_file "$file" performance
done
huge_pages=/sys/kernel/mm/transparent_hugepage/enabled
if [ -e $huge_pages ] && [ "$(value_of $huge_pages)" = always ]; then
    set_file $huge_pages madvise
fi
set_if /proc/sys/vm/dirty_background_ratio -gt 5 5
set_if /proc/sys/vm/dirty_ratio -gt 20 20
set_if /proc/sys/vm/swappiness -gt 10 1
set_if /proc/sys/net/core/somaxconn -lt 4096 4096

folder=$data_dir
while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
disk=$(disk_of "$folder")
if [ -n "$disk" ] && [ "$(cat "/sys/block/$disk/queue/rotational" 2>/dev/null)" = 0 ]; then
    set_file "/sys/block/$disk/queue/scheduler" none
fi

if [ "$apply" = no ]; then
    echo "Nothing was changed. --apply does it, until the next reboot, and prints how to undo each change."
fi
exit $status
