//! Driver: reads what the host offers this process, and claims the cores that a node pins.
//!
//! Runs once on the main thread before any core starts. It changes nothing on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use super::cores::{CoreId, CorePlan, Host, parse_cores};

/// The longest file of /proc or /sys that is looked at; the kernel writes far less.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Names of the abstract sockets that this process holds, one per core. Another node of the host sees them as claimed.
/// The kernel drops them with the process, so a crash leaves nothing behind.
#[derive(Debug, Default)]
pub struct CoreClaims {
    held: BTreeMap<CoreId, UnixDatagram>,
}

impl CoreClaims {
    /// Keeps only the cores that `plan` pins, so that the others stay free for other nodes.
    pub fn keep(&mut self, plan: &CorePlan) {
        let pinned: BTreeSet<CoreId> =
            plan.control.iter().chain(plan.shards.iter().flatten()).copied().collect();
        self.held.retain(|core, _| pinned.contains(core));
    }
}

impl Host {
    /// Reads online cores, the affinity mask and the cgroup quota, and claims every core that is free.
    ///
    /// Call [`CoreClaims::keep`] once the plan is known and hold the claims as long as the node runs. Two nodes that
    /// start at the same moment may each claim some cores; both then run unpinned, which is the safe outcome.
    pub fn detect() -> (Self, CoreClaims) {
        let mut host = Self::read();
        let mut claims = CoreClaims::default();
        for core in host.allowed.intersection(&host.online) {
            let name = format!("highwater/pinned-core/{core}");
            let address = SocketAddr::from_abstract_name(name).expect("the name is far below 108 bytes");
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => _ = claims.held.insert(*core, socket),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => _ = host.claimed.insert(*core),
                // No abstract sockets here (a sandbox): then nothing is known about other nodes.
                Err(_) => break,
            }
        }
        (host, claims)
    }

    /// As [`Host::detect`], but looks only: nothing is claimed, and other nodes are not seen.
    pub fn read() -> Self {
        let fallback = || {
            let count = std::thread::available_parallelism().map_or(1, |n| n.get());
            (0..u16::try_from(count).unwrap_or(CoreId::MAX.0)).map(CoreId).collect::<BTreeSet<_>>()
        };
        let allowed =
            text("/proc/self/status").and_then(|status| allowed_in_status(&status)).unwrap_or_else(fallback);
        let online = text("/sys/devices/system/cpu/online")
            .and_then(|list| parse_cores(list.trim()))
            .map_or_else(|| allowed.clone(), |cores| cores.into_iter().collect());
        let quota =
            text("/proc/self/cgroup").and_then(|groups| quota_of(&groups, Path::new("/sys/fs/cgroup")));
        Self { online, allowed, claimed: BTreeSet::new(), quota }
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().filter(|text| text.len() <= FILE_BYTES_MAX)
}

/// The line `Cpus_allowed_list:` of /proc/self/status.
fn allowed_in_status(status: &str) -> Option<BTreeSet<CoreId>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores: BTreeSet<CoreId> = parse_cores(list.trim())?.into_iter().collect();
    (!cores.is_empty()).then_some(cores)
}

/// The smallest `cpu.max` on the way from this process's cgroup (version 2) up to the root, in whole cores.
fn quota_of(groups: &str, root: &Path) -> Option<u32> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(group.trim());
    own.ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| quota_in(&text(folder.join("cpu.max"))?))
        .min()
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn quota_in(cpu_max: &str) -> Option<u32> {
    let mut words = cpu_max.split_whitespace();
    let quota: u64 = words.next()?.parse().ok()?;
    let period: u64 = words.next()?.parse().ok().filter(|period| *period > 0)?;
    u32::try_from(quota.div_ceil(period)).ok().map(|cores| cores.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_affinity_list_is_found_in_proc_status() {
        let status = "Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t0-1,4\nMems_allowed:\t1\n";
        let cores: Vec<u16> = allowed_in_status(status).unwrap().iter().map(|core| core.0).collect();
        assert_eq!(cores, [0, 1, 4]);
        assert_eq!(allowed_in_status("Name:\tx\n"), None);
        assert_eq!(allowed_in_status("Cpus_allowed_list:\t\n"), None);
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_cores() {
        assert_eq!(quota_in("150000 100000\n"), Some(2));
        assert_eq!(quota_in("10000 100000"), Some(1));
        assert_eq!(quota_in("max 100000"), None);
        assert_eq!(quota_in("1 0"), None);
    }

    #[test]
    fn this_host_has_a_core_that_this_process_may_use() {
        let host = Host::read();
        assert!(host.allowed.intersection(&host.online).next().is_some(), "{host:?}");
    }

    #[test]
    fn a_claimed_core_is_seen_until_it_is_let_go() {
        let (first, mut claims) = Host::detect();
        let Some(core) = claims.held.keys().next().copied() else { return };
        assert!(!first.claimed.contains(&core));
        assert!(Host::detect().0.claimed.contains(&core));
        claims.keep(&CorePlan { control: None, shards: vec![None], pinned: false });
        assert!(claims.held.is_empty());
    }
}
