//! Which thread runs on which CPU core: from the `cores` section and what the host offers to a [`CorePlan`].
//!
//! Pure: the host is a value that a driver read (`host.rs`), so every refusal is testable without the hardware. A plan
//! is resolved once at start and never changes while the node runs.

use std::collections::BTreeSet;
use std::fmt;

use super::Cores;

/// A CPU core by its number in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

impl CoreId {
    /// Linux is not built for more than 8192 CPUs.
    pub const MAX: Self = Self(8191);
}

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads the kernel's list format, `0-3,6`, in the order written. `None` when it is anything else; an empty text is an
/// empty list. At most one entry per possible core is produced, whatever the ranges say.
pub fn parse_cores(text: &str) -> Option<Vec<CoreId>> {
    let number = |text: &str| -> Option<u16> {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten().filter(|n| *n <= CoreId::MAX.0)
    };
    let mut cores = Vec::new();
    if text.trim().is_empty() {
        return Some(cores);
    }
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last || cores.len() + usize::from(last - first) > usize::from(CoreId::MAX.0) {
            return None;
        }
        cores.extend((first..=last).map(CoreId));
    }
    Some(cores)
}

/// The kernel's list format, the inverse of [`parse_cores`] for sorted lists: `0-3,6`.
pub fn show_cores<'a>(cores: impl IntoIterator<Item = &'a CoreId>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for core in cores {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(core.0) => *last = core.0,
            _ => runs.push((core.0, core.0)),
        }
    }
    let runs: Vec<String> = runs
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    if runs.is_empty() { "none".into() } else { runs.join(",") }
}

/// What the host offers this process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// Cores that are switched on.
    pub online: BTreeSet<CoreId>,
    /// Cores that the affinity mask (taskset, cpuset) lets this process run on.
    pub allowed: BTreeSet<CoreId>,
    /// Cores to which another node on this host has pinned a thread.
    pub claimed: BTreeSet<CoreId>,
    /// Whole cores of time that a cgroup quota grants, rounded up; `None` without a quota.
    pub quota: Option<u32>,
}

impl Host {
    /// A host of `cores` cores with nothing else on it.
    pub fn of(cores: u16) -> Self {
        let all: BTreeSet<CoreId> = (0..cores).map(CoreId).collect();
        Self { online: all.clone(), allowed: all, ..Self::default() }
    }
}

/// The threads of a node: one control core and at least one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorePlan {
    /// Where the control core is pinned; `None` lets the kernel place it.
    pub control: Option<CoreId>,
    /// One entry per shard, in the order of their numbers; `None` lets the kernel place it.
    pub shards: Vec<Option<CoreId>>,
    /// Whether every thread is pinned to a core of its own. All are, or none is.
    pub pinned: bool,
}

impl fmt::Display for CorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.control {
            Some(control) => {
                let shards: Vec<CoreId> = self.shards.iter().flatten().copied().collect();
                write!(f, "control on core {control}, shards on cores {} (pinned)", show_cores(&shards))
            }
            None if self.shards.len() == 1 => write!(f, "control and 1 shard, unpinned"),
            None => write!(f, "control and {} shards, unpinned", self.shards.len()),
        }
    }
}

/// Why the `cores` section does not fit the host. Each message says what would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    #[error("`cores.{key}` names core {core}, which does not exist: this host has cores {online}")]
    NoSuchCore { key: &'static str, core: CoreId, online: String },
    #[error(
        "`cores.{key}` names core {core}, which this process may not run on: its affinity mask (taskset, cpuset) allows \
         cores {allowed}"
    )]
    Forbidden { key: &'static str, core: CoreId, allowed: String },
    #[error("`cores.shards` names core {core} twice: each shard needs a core of its own")]
    Duplicate { core: CoreId },
    #[error(
        "core {core} is both `cores.control` and in `cores.shards`: give the control core its own, or say `cores: auto`"
    )]
    ControlAmongShards { core: CoreId },
    #[error("{wanted} shards do not fit on {usable} cores: this process may use cores {allowed}")]
    MoreShardsThanCores { wanted: usize, usable: usize, allowed: String },
    #[error(
        "`cores.shards` takes every core this process may use ({allowed}) and leaves none for the control core: take one \
         out of the list, or say `cores.pin: false`"
    )]
    NoCoreForControl { allowed: String },
    #[error(
        "`cores.control` takes core {core}, the only one this process may use, and leaves none for a shard: say \
         `cores: auto`, which shares it"
    )]
    NoCoreForShards { core: CoreId },
    #[error(
        "`cores.pin: true` needs a core for the control core and one for each of {shards} shards, and this process may \
         use {usable} (cores {allowed}): ask for fewer shards, or say `cores.pin: auto`"
    )]
    CannotPin { shards: usize, usable: usize, allowed: String },
}

impl CorePlan {
    /// Fits `cores` to `host`.
    ///
    /// Named cores are checked and pinned. `auto` puts the control core on the first usable core and a shard on each of
    /// the others; it pins when every thread gets its own core, no quota cuts the process short, and no other node of
    /// the host is pinned to one of those cores. With a single core both share it, unpinned.
    pub fn resolve(cores: &Cores, host: &Host) -> Result<Self, CoreError> {
        let usable: Vec<CoreId> = host.allowed.intersection(&host.online).copied().collect();
        check_named(cores, host)?;
        let allowed = || show_cores(&usable);
        let named = cores.control.is_some() || cores.shards.is_some();

        let wanted = match (&cores.shards, cores.shard_count) {
            (Some(list), _) => list.len(),
            (None, Some(count)) => count as usize,
            (None, None) => shards_by_default(cores, host, usable.len()),
        };
        if wanted > usable.len().max(1) {
            return Err(CoreError::MoreShardsThanCores { wanted, usable: usable.len(), allowed: allowed() });
        }
        if let (Some(core), None, true) = (cores.control, &cores.shards, usable.len() < 2) {
            return Err(CoreError::NoCoreForShards { core });
        }

        let unpinned = Self { control: None, shards: vec![None; wanted], pinned: false };
        if cores.pin == Some(false) {
            return Ok(unpinned);
        }
        let listed = cores.shards.clone().unwrap_or_default();
        let control = cores.control.or_else(|| usable.iter().copied().find(|core| !listed.contains(core)));
        let Some(control) = control.filter(|_| wanted < usable.len()) else {
            return match (cores.pin, &cores.shards) {
                (_, Some(_)) => Err(CoreError::NoCoreForControl { allowed: allowed() }),
                (Some(true), None) => {
                    Err(CoreError::CannotPin { shards: wanted, usable: usable.len(), allowed: allowed() })
                }
                (_, None) => Ok(unpinned),
            };
        };
        let shards: Vec<CoreId> = match cores.shards {
            Some(_) => listed,
            None => usable.iter().copied().filter(|core| *core != control).take(wanted).collect(),
        };
        let shared = host.quota.is_some()
            || host.claimed.contains(&control)
            || shards.iter().any(|core| host.claimed.contains(core));
        if shared && !named && cores.pin.is_none() {
            return Ok(unpinned);
        }
        Ok(Self { control: Some(control), shards: shards.into_iter().map(Some).collect(), pinned: true })
    }
}

/// One shard for each core that the control core leaves, within the quota; at least one.
fn shards_by_default(cores: &Cores, host: &Host, usable: usize) -> usize {
    let by_quota = match (host.quota, cores.pin) {
        (Some(quota), None | Some(false)) => usable.min(quota as usize),
        _ => usable,
    };
    by_quota.saturating_sub(1).max(1)
}

/// Refuses cores that do not exist, that the mask forbids, or that are named twice.
fn check_named(cores: &Cores, host: &Host) -> Result<(), CoreError> {
    let listed = cores.shards.iter().flatten().map(|core| ("shards", *core));
    let mut seen = BTreeSet::new();
    for (key, core) in cores.control.iter().map(|core| ("control", *core)).chain(listed) {
        if !host.online.contains(&core) {
            return Err(CoreError::NoSuchCore { key, core, online: show_cores(&host.online) });
        }
        if !host.allowed.contains(&core) {
            return Err(CoreError::Forbidden { key, core, allowed: show_cores(&host.allowed) });
        }
        if !seen.insert(core) {
            return Err(match cores.control {
                Some(control) if control == core => CoreError::ControlAmongShards { core },
                _ => CoreError::Duplicate { core },
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto() -> Cores {
        Cores { control: None, shards: None, shard_count: None, pin: None, spin: None }
    }

    fn named(control: u16, shards: &[u16]) -> Cores {
        let shards = shards.iter().copied().map(CoreId).collect();
        Cores { control: Some(CoreId(control)), shards: Some(shards), ..auto() }
    }

    fn pinned(control: u16, shards: &[u16]) -> CorePlan {
        let shards = shards.iter().map(|core| Some(CoreId(*core))).collect();
        CorePlan { control: Some(CoreId(control)), shards, pinned: true }
    }

    fn unpinned(shards: usize) -> CorePlan {
        CorePlan { control: None, shards: vec![None; shards], pinned: false }
    }

    fn refusal(cores: &Cores, host: &Host) -> String {
        CorePlan::resolve(cores, host).unwrap_err().to_string()
    }

    #[test]
    fn auto_gives_control_the_first_core_and_shards_the_rest() {
        assert_eq!(CorePlan::resolve(&auto(), &Host::of(2)), Ok(pinned(0, &[1])));
        assert_eq!(CorePlan::resolve(&auto(), &Host::of(4)), Ok(pinned(0, &[1, 2, 3])));
        let masked = Host { allowed: [CoreId(2), CoreId(5)].into(), ..Host::of(8) };
        assert_eq!(CorePlan::resolve(&auto(), &masked), Ok(pinned(2, &[5])));
    }

    #[test]
    fn a_single_core_is_shared_unpinned() {
        assert_eq!(CorePlan::resolve(&auto(), &Host::of(1)), Ok(unpinned(1)));
        let why = refusal(&Cores { pin: Some(true), ..auto() }, &Host::of(1));
        assert!(
            why.contains("needs a core for the control core") && why.contains("`cores.pin: auto`"),
            "{why}"
        );
    }

    #[test]
    fn auto_does_not_pin_beside_another_node_or_under_a_quota() {
        let beside = Host { claimed: [CoreId(1)].into(), ..Host::of(4) };
        assert_eq!(CorePlan::resolve(&auto(), &beside), Ok(unpinned(3)));
        let quota = Host { quota: Some(2), ..Host::of(64) };
        assert_eq!(
            CorePlan::resolve(&auto(), &quota),
            Ok(unpinned(1)),
            "64 shards would share 2 cores of time"
        );
        let told = Cores { pin: Some(true), ..auto() };
        assert_eq!(CorePlan::resolve(&told, &beside), Ok(pinned(0, &[1, 2, 3])), "told to, it pins");
    }

    #[test]
    fn named_cores_are_pinned_as_named() {
        assert_eq!(CorePlan::resolve(&named(0, &[1, 2]), &Host::of(4)), Ok(pinned(0, &[1, 2])));
        assert_eq!(CorePlan::resolve(&named(3, &[2, 0]), &Host::of(4)), Ok(pinned(3, &[2, 0])));
        let shards_only = Cores { control: None, ..named(0, &[0, 2]) };
        assert_eq!(CorePlan::resolve(&shards_only, &Host::of(4)), Ok(pinned(1, &[0, 2])));
        let control_only = Cores { control: Some(CoreId(1)), ..auto() };
        assert_eq!(CorePlan::resolve(&control_only, &Host::of(3)), Ok(pinned(1, &[0, 2])));
    }

    #[test]
    fn a_shard_count_takes_the_first_free_cores() {
        let two = Cores { shard_count: Some(2), ..auto() };
        assert_eq!(CorePlan::resolve(&two, &Host::of(8)), Ok(pinned(0, &[1, 2])));
        assert_eq!(CorePlan::resolve(&two, &Host::of(2)), Ok(unpinned(2)), "no core is left for control");
        let loose = Cores { pin: Some(false), ..two.clone() };
        assert_eq!(CorePlan::resolve(&loose, &Host::of(8)), Ok(unpinned(2)));
        let why = refusal(&Cores { pin: Some(true), ..two }, &Host::of(2));
        assert!(why.contains("ask for fewer shards"), "{why}");
    }

    #[test]
    fn more_shards_than_cores_is_refused() {
        let nine = Cores { shard_count: Some(9), ..auto() };
        assert_eq!(
            refusal(&nine, &Host::of(4)),
            "9 shards do not fit on 4 cores: this process may use cores 0-3"
        );
        let loose = Cores { pin: Some(false), ..nine };
        assert!(refusal(&loose, &Host::of(4)).contains("do not fit"));
        let every = Cores { control: None, ..named(0, &[0, 1]) };
        assert!(refusal(&every, &Host::of(2)).contains("leaves none for the control core"));
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused() {
        let why = refusal(&named(0, &[1, 7]), &Host::of(2));
        assert_eq!(why, "`cores.shards` names core 7, which does not exist: this host has cores 0-1");
        assert!(refusal(&named(9, &[1]), &Host::of(2)).starts_with("`cores.control` names core 9"));
    }

    #[test]
    fn a_core_outside_the_affinity_mask_is_refused() {
        let masked = Host { allowed: [CoreId(0), CoreId(1)].into(), ..Host::of(4) };
        let why = refusal(&named(0, &[1, 2]), &masked);
        assert!(
            why.contains("core 2, which this process may not run on") && why.ends_with("cores 0-1"),
            "{why}"
        );
    }

    #[test]
    fn duplicates_and_control_among_shards_are_refused() {
        assert!(refusal(&named(0, &[1, 1]), &Host::of(4)).contains("names core 1 twice"));
        assert!(
            refusal(&named(1, &[1, 2]), &Host::of(4)).contains("both `cores.control` and in `cores.shards`")
        );
        let only = Cores { control: Some(CoreId(0)), ..auto() };
        assert!(refusal(&only, &Host::of(1)).contains("leaves none for a shard"));
    }

    #[test]
    fn core_lists_round_trip_through_the_kernels_format() {
        for text in ["0", "0-3", "0-1,4,6-7", "none"] {
            let cores = parse_cores(text.trim_start_matches("none")).unwrap();
            assert_eq!(show_cores(&cores), text);
        }
        assert_eq!(parse_cores("1-3,6").unwrap().len(), 4);
    }

    #[test]
    fn every_plan_pins_all_or_nothing_and_never_shares_a_pinned_core() {
        for online in 1..=4u16 {
            for allowed in 1u16..1 << online {
                let allowed = (0..online).filter(|core| allowed >> core & 1 == 1).map(CoreId).collect();
                let host = Host { allowed, ..Host::of(online) };
                for count in [None, Some(1), Some(2), Some(4)] {
                    for pin in [None, Some(true), Some(false)] {
                        let Ok(plan) = CorePlan::resolve(&Cores { shard_count: count, pin, ..auto() }, &host)
                        else {
                            continue;
                        };
                        let used: BTreeSet<CoreId> =
                            plan.control.iter().chain(plan.shards.iter().flatten()).copied().collect();
                        assert!(!plan.shards.is_empty());
                        assert_eq!(
                            used.len(),
                            if plan.pinned { plan.shards.len() + 1 } else { 0 },
                            "{plan:?}"
                        );
                        assert!(used.is_subset(&host.allowed), "{plan:?}");
                    }
                }
            }
        }
    }
}
