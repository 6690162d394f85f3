//! CPU time of a process, as the kernel counts it, and a few words about the host.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// CPU time that a process used until now.
///
/// `/proc/PID/stat` counts whole ticks (mostly 10 ms) and includes threads that have ended; the tasks' `schedstat` counts
/// nanoseconds and does not. The difference of two readings uses the second unless a thread ended in between.
#[derive(Clone, Debug)]
pub struct CpuReading {
    stat_ns: u64,
    task_ns: BTreeMap<u32, u64>,
}

impl CpuReading {
    pub fn of(pid: u32) -> io::Result<CpuReading> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks = parse_stat(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has another form"))?;
        let ns_per_tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        let mut task_ns = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let Some(id) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Ok(text) = fs::read_to_string(task.path().join("schedstat"))
                && let Some(ns) = text.split_whitespace().next().and_then(|first| first.parse().ok())
            {
                task_ns.insert(id, ns);
            }
        }
        Ok(CpuReading { stat_ns: ticks * ns_per_tick, task_ns })
    }

    /// Nanoseconds of CPU between `earlier` and this reading.
    pub fn since(&self, earlier: &CpuReading) -> u64 {
        let is_whole =
            !earlier.task_ns.is_empty() && earlier.task_ns.keys().all(|id| self.task_ns.contains_key(id));
        if is_whole {
            let before: u64 = earlier.task_ns.values().sum();
            self.task_ns.values().sum::<u64>().saturating_sub(before)
        } else {
            self.stat_ns.saturating_sub(earlier.stat_ns)
        }
    }
}

/// User plus system ticks. The name in parentheses may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Where the numbers were taken.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
}

impl Host {
    pub fn here() -> Host {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host {
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 300 45 0 0 20 0 1 0 5";
        assert_eq!(parse_stat(stat), Some(345));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn work_shows_up_in_this_process_reading() {
        let before = CpuReading::of(std::process::id()).unwrap();
        let mut sum = 0u64;
        let mut after = before.clone();
        for round in 0..100_000u64 {
            for i in 0..10_000u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(i ^ round));
            }
            after = CpuReading::of(std::process::id()).unwrap();
            if after.since(&before) > 20_000_000 {
                break;
            }
        }
        assert!(after.since(&before) > 20_000_000, "{sum}");
    }

    #[test]
    fn an_ended_thread_falls_back_to_whole_ticks() {
        let reading =
            |stat_ns, tasks: &[(u32, u64)]| CpuReading { stat_ns, task_ns: tasks.iter().copied().collect() };
        let before = reading(100, &[(1, 7), (2, 9)]);
        assert_eq!(reading(200, &[(1, 8), (2, 9), (3, 5)]).since(&before), 6);
        assert_eq!(reading(200, &[(1, 8)]).since(&before), 100);
    }
}
