//! How the process ends: one exit status per kind of failure, and the message that goes with it.

use std::fmt;
use std::process::ExitCode;

/// What the exit status of `highwater` means. Scripts may rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    Ok = 0,
    Refused = 1,
    Usage = 2,
    Environment = 3,
    Unreachable = 4,
    Storage = 5,
    Damaged = 6,
}

impl ExitStatus {
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::Refused,
        Self::Usage,
        Self::Environment,
        Self::Unreachable,
        Self::Storage,
        Self::Damaged,
    ];

    /// One line for `--help`.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done; a node stopped cleanly",
            Self::Refused => "the configuration is wrong, or the node refused the command",
            Self::Usage => "the command line is wrong",
            Self::Environment => {
                "this host does not let the node start: a port, a right, io_uring, a core, the disk"
            }
            Self::Unreachable => "no node answers at the bootstrap or admin address",
            Self::Storage => "the storage failed or is damaged; the message says what is safe and what to do",
            Self::Damaged => "`log inspect` found damage; the output says where",
        }
    }

    /// The list for `--help`.
    pub fn table() -> String {
        let lines = Self::ALL.map(|status| format!("  {}  {}\n", status as u8, status.meaning()));
        lines.concat()
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

/// Why a command ends, in words for the user, and the status it ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: ExitStatus,
    pub message: String,
}

impl Failure {
    pub fn new(status: ExitStatus, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_count_up_from_zero_so_that_none_is_listed_twice() {
        let numbers: Vec<u8> = ExitStatus::ALL.iter().map(|status| *status as u8).collect();
        assert_eq!(numbers, (0..ExitStatus::ALL.len() as u8).collect::<Vec<_>>());
        assert_eq!(ExitStatus::table().lines().count(), ExitStatus::ALL.len());
    }
}
