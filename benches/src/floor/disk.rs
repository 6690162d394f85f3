//! The price of one durable write: a block written at the next place of a pre-written file, then fdatasync.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::FloorRow;
use crate::load::recorder::latency_histogram;
use crate::units::size;

/// Direct I/O wants memory and offsets aligned to the device's block; a page satisfies all.
const ALIGNMENT: usize = 4096;

pub fn measure(dir: &Path, block: usize, file_bytes: usize, duration: Duration) -> Result<Vec<FloorRow>> {
    if block == 0 || !block.is_multiple_of(ALIGNMENT) || file_bytes < block {
        bail!("--size must be a multiple of {ALIGNMENT} bytes and fit into --file-size");
    }
    let path = dir.join(format!("highwater-bench-floor-{}", std::process::id()));
    let _cleanup = RemoveAtEnd(&path);
    write_whole(&path, file_bytes).with_context(|| path.display().to_string())?;
    let mut rows = Vec::new();
    for (name, flags) in [("O_DIRECT", rustix::fs::OFlags::DIRECT.bits() as i32), ("page cache", 0)] {
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&path);
        let file = match file {
            Ok(file) => file,
            Err(error) if flags != 0 => {
                crate::report::note(&format!("{} does not take O_DIRECT: {error}", dir.display()));
                continue;
            }
            Err(error) => return Err(error).context("the file could not be opened again"),
        };
        let name = format!("{} write + fdatasync, {name}", size(block as u64));
        rows.push(measure_file(&file, name, block, file_bytes, duration)?);
    }
    Ok(rows)
}

fn measure_file(
    file: &File,
    name: String,
    block: usize,
    file_bytes: usize,
    duration: Duration,
) -> Result<FloorRow> {
    let memory = vec![0xA5u8; block + ALIGNMENT];
    let shift = memory.as_ptr().align_offset(ALIGNMENT);
    let page = &memory[shift..shift + block];
    let mut latencies = latency_histogram();
    let (mut at, mut writes) = (0u64, 0u64);
    let warm_until = Instant::now() + duration.min(Duration::from_millis(300));
    let mut begin = Instant::now();
    let mut is_warm = false;
    loop {
        let start = Instant::now();
        if !is_warm && start >= warm_until {
            (is_warm, begin, writes) = (true, start, 0);
            latencies.reset();
        }
        if is_warm && start.duration_since(begin) >= duration {
            break;
        }
        file.write_all_at(page, at).context("a write failed")?;
        file.sync_data().context("fdatasync failed")?;
        latencies.saturating_record(start.elapsed().as_nanos() as u64);
        writes += 1;
        at += block as u64;
        if at + block as u64 > file_bytes as u64 {
            at = 0;
        }
    }
    let rate = writes as f64 / begin.elapsed().as_secs_f64();
    Ok(FloorRow::new(name, rate, rate * block as f64).with_latency(&latencies))
}

/// Blocks that were never written cost a metadata update each, which a journal avoids by writing its files beforehand.
fn write_whole(path: &Path, bytes: usize) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let chunk = vec![0u8; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let count = chunk.len().min(bytes - at);
        file.write_all_at(&chunk[..count], at as u64)?;
        at += count;
    }
    file.sync_all()
}

struct RemoveAtEnd<'a>(&'a Path);

impl Drop for RemoveAtEnd<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_floor_measures_and_leaves_no_file_behind() {
        let dir = std::env::temp_dir().join(format!("highwater-bench-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let rows = measure(&dir, 4096, 1 << 20, Duration::from_millis(50)).unwrap();
        assert!(!rows.is_empty() && rows.iter().all(|row| row.per_second > 0.0 && row.p50_us.unwrap() > 0.0));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
        assert!(measure(&dir, 1000, 1 << 20, Duration::from_millis(1)).is_err(), "unaligned");
    }
}
