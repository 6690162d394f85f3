//! One core's io_uring: how it is set up on this kernel, how operations get in and completions get out.
//!
//! Owned by one shard core. It knows nothing of connections or files: an operation carries a [`Tag`] that says whose
//! it is, and whoever pushed it keeps its memory alive until its last completion was reaped.

#![expect(unsafe_code, reason = "driver: submission entries carry raw addresses")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use crate::reactor::boot::StartError;

/// Operations that one enter submits at most; more wait for the next turn.
const SUBMISSIONS: u32 = 1024;

/// Completions that the kernel keeps in the ring; beyond it keeps them itself, which is counted and costs more.
const COMPLETIONS: u32 = 8192;

/// The oldest kernel whose io_uring carries this driver.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Threads that the kernel may use for file operations of one ring that block.
pub(super) const WORKERS_MAX: u32 = 64;

/// What to use of the running kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KernelUse {
    /// Whatever it has.
    #[default]
    Newest,
    /// Only what the oldest supported kernel has: a way out when a newer feature misbehaves.
    Oldest,
}

/// What this kernel offers beyond 5.15.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Kernel {
    /// 5.19: one accept operation that yields many connections.
    pub accept_multi: bool,
    /// 6.0: one receive operation that yields many pieces, in buffers of a shared ring (5.19).
    pub recv_multi: bool,
    /// 6.1: waking another ring by an operation of one's own.
    pub msg_ring: bool,
}

/// Whose operation completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag {
    pub kind: Kind,
    /// A connection's or listener's slot, an operation's number, a shard: at most 24 bits.
    pub slot: u32,
    /// Of the connection in the slot, its lower 32 bits.
    pub generation: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Nobody waits for it: cancellations.
    Ignored = 1,
    /// Another core's ring woke this one.
    Woken = 2,
    /// This core's eventfd was read.
    Eventfd = 3,
    /// This core asked to wake the shard `slot`.
    Wake = 4,
    Accept = 5,
    Recv = 6,
    Send = 7,
    Disk = 8,
}

/// Slots fit into this many bits.
pub(super) const SLOT_BITS: u32 = 24;

impl Tag {
    pub const IGNORED: Self = Self { kind: Kind::Ignored, slot: 0, generation: 0 };
    pub const WOKEN: Self = Self { kind: Kind::Woken, slot: 0, generation: 0 };
    pub const EVENTFD: Self = Self { kind: Kind::Eventfd, slot: 0, generation: 0 };

    pub fn slot(kind: Kind, slot: u32) -> Self {
        Self { kind, slot, generation: 0 }
    }

    pub fn to_bits(self) -> u64 {
        assert!(self.slot < 1 << SLOT_BITS, "slots are bounded below 2^24");
        (self.kind as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    fn from_bits(bits: u64) -> Self {
        let kind = match bits >> 56 {
            1 => Kind::Ignored,
            2 => Kind::Woken,
            3 => Kind::Eventfd,
            4 => Kind::Wake,
            5 => Kind::Accept,
            6 => Kind::Recv,
            7 => Kind::Send,
            8 => Kind::Disk,
            other => unreachable!("a completion of the kind {other} was never asked for"),
        };
        Self { kind, slot: (bits >> 32) as u32 & ((1 << SLOT_BITS) - 1), generation: bits as u32 }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub tag: Tag,
    /// What the system call would return, an error as a negative errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// Whether more completions of the same operation follow.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer that holds what was received.
    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// How long an enter may block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    No,
    AtMost(Duration),
    Forever,
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct RingCounters {
    pub enters: u64,
    pub submitted: u64,
    pub completions: u64,
    pub overflows: u64,
}

pub(super) struct Ring {
    uring: IoUring,
    /// Operations that found the submission queue full. Bounded by what connections, files and mail may have
    /// outstanding.
    backlog: VecDeque<squeue::Entry>,
    pub kernel: Kernel,
    pub counters: RingCounters,
}

impl Ring {
    /// Sets up a ring for the calling thread, which alone may use it.
    ///
    /// # Errors
    ///
    /// When the kernel is too old, denies io_uring, or lacks memory.
    pub fn new(kernel_use: KernelUse) -> Result<Self, StartError> {
        check_kernel()?;
        let uring = build(kernel_use)?;
        assert!(uring.params().is_feature_nodrop(), "5.5 and later keep completions that find the ring full");
        assert!(uring.params().is_feature_ext_arg(), "5.11 and later take a timeout");
        let kernel = match kernel_use {
            KernelUse::Newest => probe(&uring),
            KernelUse::Oldest => Kernel::default(),
        };
        // A refusal only leaves the kernel's own bound in place.
        let _ = uring.submitter().register_iowq_max_workers(&mut [WORKERS_MAX, WORKERS_MAX]);
        Ok(Self { uring, backlog: VecDeque::new(), kernel, counters: RingCounters::default() })
    }

    pub fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    pub fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Queues an operation for the next [`Self::enter`].
    ///
    /// # Safety
    ///
    /// All memory that `entry` points to stays valid, and untouched by anyone else as far as the operation writes
    /// to it, until the operation's last completion was reaped.
    pub unsafe fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.to_bits());
        // SAFETY: the caller answers for the entry's memory.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    /// Asks to end the operations that carry `tag`; their completions still come.
    pub fn cancel(&mut self, tag: Tag) {
        // SAFETY: the operation points to no memory.
        unsafe { self.push(opcode::AsyncCancel::new(tag.to_bits()).build(), Tag::IGNORED) };
    }

    fn fill(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: whoever pushed the entry answers for its memory.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Whether operations wait to be submitted.
    pub fn has_submissions(&mut self) -> bool {
        !self.backlog.is_empty() || !self.uring.submission().is_empty()
    }

    /// Whether completions are there or the kernel has some to make: what a spinning core looks at.
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.kernel_has_work()
    }

    /// Submits what is queued, lets the kernel finish what is due, and waits for a completion as `wait` says.
    pub fn enter(&mut self, wait: Wait) {
        self.fill();
        let queued = {
            let queue = self.uring.submission();
            if queue.cq_overflow() {
                self.counters.overflows += 1;
            }
            queue.len()
        };
        if wait == Wait::No && queued == 0 && !self.kernel_has_work() {
            return;
        }
        let submitter = self.uring.submitter();
        let wait = if self.backlog.is_empty() { wait } else { Wait::No };
        let entered = match wait {
            Wait::No => submitter.submit(),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::AtMost(time) => {
                let time = Timespec::new().sec(time.as_secs()).nsec(time.subsec_nanos());
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        self.counters.enters += 1;
        match entered {
            Ok(n) => self.counters.submitted += n as u64,
            Err(e) => match e.raw_os_error() {
                // The time is over, a signal came, or completions have to be reaped first: all are the caller's turn.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => panic!("io_uring_enter failed, which leaves nothing to go on with: {e}"),
            },
        }
    }

    /// Whether the kernel has completions for us that only an enter brings into the queue.
    fn kernel_has_work(&mut self) -> bool {
        let queue = self.uring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Takes the completions that are there, in order.
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        let before = into.len();
        into.extend(self.uring.completion().map(|c| Completion {
            tag: Tag::from_bits(c.user_data()),
            result: c.result(),
            flags: c.flags(),
        }));
        self.counters.completions += (into.len() - before) as u64;
    }
}

/// # Errors
///
/// When the kernel is older than [`KERNEL_MIN`].
fn check_kernel() -> Result<(), StartError> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL_MIN {
        return Err(StartError::KernelTooOld { release });
    }
    Ok(())
}

/// Tries the ways to set a ring up, the best first.
fn build(kernel_use: KernelUse) -> Result<IoUring, StartError> {
    let mut error = None;
    let ways = [Setup::Deferred, Setup::Cooperative, Setup::Plain];
    for way in ways.into_iter().filter(|way| kernel_use == KernelUse::Newest || *way == Setup::Plain) {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS).setup_clamp();
        if way != Setup::Plain {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        if way == Setup::Deferred {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        match builder.build(SUBMISSIONS) {
            Ok(uring) => return Ok(uring),
            Err(e) => {
                let refused = e.raw_os_error() == Some(libc::EINVAL);
                error = Some(e);
                if !refused {
                    break;
                }
            }
        }
    }
    let error = error.expect("the loop runs at least once and leaves only with an error");
    Err(match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => StartError::Denied { error },
        _ => StartError::Ring { error },
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    /// 6.1: completions are made only when this thread enters to fetch them.
    Deferred,
    /// 5.19: completions wait for this thread's next system call instead of interrupting it.
    Cooperative,
    Plain,
}

fn probe(uring: &IoUring) -> Kernel {
    let mut probe = Probe::new();
    if uring.submitter().register_probe(&mut probe).is_err() {
        return Kernel::default();
    }
    // Multishot forms have no operation code of their own: the codes that came with the same kernel tell.
    let v5_19 = probe.is_supported(opcode::Socket::CODE);
    let v6_0 = probe.is_supported(opcode::SendZc::CODE);
    let v6_1 = probe.is_supported(opcode::SendMsgZc::CODE);
    Kernel { accept_multi: v5_19, recv_multi: v5_19 && v6_0, msg_ring: v6_1 }
}

/// The errors of a system call that only say "again".
pub(super) fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
}

/// As [`io::Error`] from a completion's negative result.
pub(super) fn error_of(result: i32) -> io::Error {
    io::Error::from_raw_os_error(-result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_survives_its_bits() {
        for kind in [Kind::Ignored, Kind::Accept, Kind::Recv, Kind::Disk] {
            let tag = Tag { kind, slot: (1 << SLOT_BITS) - 1, generation: u32::MAX };
            assert_eq!(Tag::from_bits(tag.to_bits()), tag);
        }
    }
}
