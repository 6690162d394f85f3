#!/usr/bin/env bash
# Looks at a Linux host and says what would help or hinder a Highwater node. Changes nothing; needs no root, though
# some answers are only given to root.
#
#   tuning/check-host.sh [DATA_DIR]      DATA_DIR defaults to ./highwater-data (or the folder it would be created in)
#
# Each line is `ok`, `advice` (it works, but something is worth changing), `wrong` (a node would not start) or
# `unknown`, with the reason. Exit status: 0 when nothing is wrong, 1 otherwise.
# set-host.sh applies what is reversible.
set -u

data_dir=${1:-./highwater-data}
status=0

ok() { printf 'ok       %-18s %s\n' "$1" "$2"; }
advice() { printf 'advice   %-18s %s\n' "$1" "$2"; }
unknown() { printf 'unknown  %-18s %s\n' "$1" "$2"; }
wrong() {
    printf 'wrong    %-18s %s\n' "$1" "$2"
    status=1
}

# The first line of a file of /proc or /sys, or nothing.
first_line() {
    local line=
    if [ -r "$1" ]; then
        IFS= read -r line <"$1" 2>/dev/null || true
    fi
    printf '%s' "$line"
}

# The word in brackets: "always [madvise] never" -> madvise
chosen() {
    local line
    line=$(first_line "$1")
    case $line in
        *\[*\]*)
            line=${line#*\[}
            printf '%s' "${line%%\]*}"
            ;;
        *) printf '%s' "$line" ;;
    esac
}

check_kernel() {
    local release major minor
    release=$(uname -r)
    major=${release%%.*}
    minor=${release#*.}
    minor=${minor%%[!0-9]*}
    if [ "$(uname -s)" != Linux ]; then
        wrong kernel "$(uname -s): a node needs Linux"
    elif [ "$major" -lt 5 ] || { [ "$major" -eq 5 ] && [ "$minor" -lt 15 ]; }; then
        wrong kernel "$release: io_uring as a node uses it needs 5.15 or newer"
    elif [ "$major" -lt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -lt 1 ]; }; then
        advice kernel "$release works; from 6.1 on, completions cost fewer interrupts (DEFER_TASKRUN)"
    else
        ok kernel "$release"
    fi
}

check_io_uring() {
    local disabled
    # Every process sees the symbols' names, if not their addresses; a kernel without io_uring has none.
    if grep -q 'sys_io_uring_setup$' /proc/kallsyms 2>/dev/null; then
        ok io_uring "built into this kernel"
    elif [ -s /proc/kallsyms ]; then
        wrong io_uring "this kernel was built without it"
    else
        unknown io_uring "the kernel's symbols are hidden here; a node says at start when io_uring is missing"
    fi
    disabled=$(first_line /proc/sys/kernel/io_uring_disabled)
    case $disabled in
        '') ok io_uring_disabled "this kernel has no such switch" ;;
        0) ok io_uring_disabled "0: every process may use io_uring" ;;
        1) wrong io_uring_disabled "1: only a process with CAP_SYS_ADMIN or in kernel.io_uring_group may use io_uring; sysctl -w kernel.io_uring_disabled=0" ;;
        *) wrong io_uring_disabled "$disabled: io_uring is off; sysctl -w kernel.io_uring_disabled=0" ;;
    esac
    case $(sed -n 's/^Seccomp:[[:space:]]*//p' /proc/self/status) in
        0) ok seccomp "no filter on this shell" ;;
        *) advice seccomp "a filter is active (a container?): it must allow io_uring_setup, io_uring_enter and io_uring_register" ;;
    esac
}

check_limits() {
    local memlock nofile
    memlock=$(ulimit -l)
    if [ "$memlock" = unlimited ] || [ "$memlock" -ge 65536 ]; then
        ok memlock "$memlock KiB"
    else
        advice memlock "$memlock KiB: registered buffers may not fit; LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited"
    fi
    nofile=$(ulimit -n)
    if [ "$nofile" = unlimited ] || [ "$nofile" -ge 65536 ]; then
        ok nofile "$nofile"
    else
        advice nofile "$nofile open files: a connection takes one each; LimitNOFILE=1048576 in the unit, or ulimit -n 1048576"
    fi
}

check_cpu() {
    local governors isolated nohz online governor file
    online=$(first_line /sys/devices/system/cpu/online)
    ok cores "online ${online:-?}, this shell may use $(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)"
    governors=
    for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
        [ -e "$file" ] || continue
        governor=$(first_line "$file")
        case " $governors " in
            *" $governor "*) ;;
            *) governors="${governors:+$governors }$governor" ;;
        esac
    done
    case $governors in
        '') unknown governor "no frequency scaling is visible (a virtual machine?)" ;;
        performance) ok governor performance ;;
        *) advice governor "$governors: a core that clocks down answers its first requests late; set-host.sh sets performance" ;;
    esac
    isolated=$(first_line /sys/devices/system/cpu/isolated)
    nohz=$(first_line /sys/devices/system/cpu/nohz_full)
    case $nohz in '(null)') nohz= ;; esac
    if [ -n "$isolated" ]; then
        ok isolcpus "$isolated (name them in cores.shards)"
    else
        advice isolcpus "none: on a dedicated host, isolcpus=<shard cores> on the kernel's command line keeps others off them"
    fi
    if [ -n "$nohz" ]; then
        ok nohz_full "$nohz"
    else
        advice nohz_full "none: nohz_full=<shard cores> beside isolcpus spares a busy shard the timer interrupt"
    fi
}

check_memory() {
    local thp dirty dirty_background swappiness
    thp=$(chosen /sys/kernel/mm/transparent_hugepage/enabled)
    case $thp in
        madvise | never) ok huge_pages "$thp" ;;
        '') unknown huge_pages "not visible" ;;
        *) advice huge_pages "$thp: compaction may stall a core for milliseconds; madvise is enough" ;;
    esac
    dirty=$(first_line /proc/sys/vm/dirty_ratio)
    dirty_background=$(first_line /proc/sys/vm/dirty_background_ratio)
    if [ "${dirty_background:-10}" -gt 5 ] || [ "${dirty:-20}" -gt 20 ]; then
        advice dirty_ratio "background ${dirty_background:-?} %, limit ${dirty:-?} %: large page-cache writes pile up and then stall writers; 5 and 20 are gentler"
    else
        ok dirty_ratio "background $dirty_background %, limit $dirty % (0: set in bytes)"
    fi
    swappiness=$(first_line /proc/sys/vm/swappiness)
    if [ "$(wc -l </proc/swaps 2>/dev/null || echo 0)" -gt 1 ] && [ "${swappiness:-60}" -gt 10 ]; then
        advice swap "in use with swappiness $swappiness: a swapped-out page stalls its core; 1 keeps swap for emergencies"
    else
        ok swap "off, or swappiness ${swappiness:-?}"
    fi
}

check_network() {
    local somaxconn interrupts
    somaxconn=$(first_line /proc/sys/net/core/somaxconn)
    if [ "${somaxconn:-0}" -ge 4096 ]; then
        ok somaxconn "$somaxconn"
    else
        advice somaxconn "${somaxconn:-?}: bursts of new connections overflow the accept queue; 4096 or more"
    fi
    if pgrep -x irqbalance >/dev/null 2>&1; then
        advice interrupts "irqbalance runs: keep it off the shard cores (IRQBALANCE_BANNED_CPULIST)"
    else
        interrupts=$(first_line /proc/irq/default_smp_affinity)
        ok interrupts "irqbalance does not run; default mask ${interrupts:-?}. On a dedicated host, steer the network card's queues to the control core"
    fi
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

check_disk() {
    local folder kind disk queue scheduler cache rotational
    folder=$data_dir
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    kind=$(stat -f -c %T "$folder")
    case $kind in
        ext2/ext3 | ext4 | xfs | btrfs) ok file_system "$kind at $folder" ;;
        tmpfs | ramfs) advice file_system "$kind at $folder: nothing survives a restart of the host" ;;
        nfs* | cifs | smb* | fuse*) advice file_system "$kind at $folder: direct I/O and flushes may not mean what they say; use a local disk" ;;
        *) advice file_system "$kind at $folder: not measured; direct I/O must work (ext4 and xfs are known to)" ;;
    esac
    disk=$(disk_of "$folder")
    if [ -z "$disk" ]; then
        unknown disk "no block device is visible under $folder"
        return
    fi
    queue=/sys/block/$disk/queue
    scheduler=$(chosen "$queue/scheduler")
    rotational=$(first_line "$queue/rotational")
    if [ "$rotational" = 1 ]; then
        advice disk "$disk calls itself a rotating disk: a durable acknowledgement takes milliseconds there"
    else
        ok disk "$disk, no rotating parts"
    fi
    case $scheduler in
        none) ok scheduler none ;;
        '') unknown scheduler "not visible" ;;
        *) if [ "$rotational" = 1 ]; then ok scheduler "$scheduler"; else advice scheduler "$scheduler: one journal writes in order already; none is shorter"; fi ;;
    esac
    cache=$(first_line "$queue/write_cache")
    case $cache in
        'write through') ok write_cache "write through: a finished write is durable, flushes are free" ;;
        'write back') ok write_cache "write back: each durable acknowledgement pays one flush (a disk with power-loss protection answers it at once)" ;;
        *) unknown write_cache "not visible" ;;
    esac
}

check_kernel
check_io_uring
check_limits
check_cpu
check_memory
check_network
check_disk
exit $status
