//! A larger disk for a guest that runs, believed only when the guest shows it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use spore_protocol::{ClientError, DiskReport};

use super::{Agent, Guest, GuestError};
use crate::layout::MIB;

/// The part of what a disk grew by that must show in what the file system can hold: the rest is its own tables, of
/// which inodes take most (1.6 % where there is one for each 16 KiB).
const SHOWN: (u64, u64) = (7, 8);

/// What growing a disk came to, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskGranted {
    /// Size of the disk, as the guest's kernel knows it.
    #[serde(rename = "diskMB")]
    pub disk_mb: u64,
    /// What its file system can hold: less by its own tables. Verified in the guest.
    #[serde(rename = "totalMB")]
    pub total_mb: u64,
    /// What of that is free.
    #[serde(rename = "freeMB")]
    pub free_mb: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Why a disk did not become what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Less than it has: a disk only grows.
    #[error("the disk has {disk_mb} MiB and cannot become {requested_mb} MiB: disks only grow")]
    Smaller {
        /// Asked for.
        requested_mb: u64,
        /// What it has.
        disk_mb: u64,
    },
    /// More than a disk may have.
    #[error("a disk of {requested_mb} MiB: it may have at most {max_mb} MiB")]
    AboveMaximum {
        /// Asked for.
        requested_mb: u64,
        /// The most possible.
        max_mb: u64,
    },
    /// The disk grew, and the file system on it did not, or not all the way.
    #[error("the disk grew to {disk_mb} MiB, but the guest's file system did not fill it: {why}")]
    NotFilled {
        /// What the disk has now; it does not go back.
        disk_mb: u64,
        /// Why, in the guest's words.
        why: String,
    },
    /// The file system says that it grew, and does not show it.
    #[error(
        "the disk grew from {before_mb} to {disk_mb} MiB, but the guest's file system holds {total_mb} MiB after {total_before_mb}"
    )]
    NotShown {
        /// What the disk had.
        before_mb: u64,
        /// What the disk has now; it does not go back.
        disk_mb: u64,
        /// What the file system could hold before.
        total_before_mb: u64,
        /// What it can hold now.
        total_mb: u64,
    },
}

/// The largest disk, in MiB (1 TiB).
pub const MAX_DISK_MB: u64 = 1 << 20;

impl Guest {
    /// The size of its root disk, in bytes.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn disk_bytes(&mut self) -> Result<u64, GuestError> {
        Ok(self.vm.stats()?.disk_bytes)
    }

    /// Makes the root disk `disk_mb` large and its file system with it, while the guest runs, and returns when the
    /// guest itself shows it. What is new takes no space on the host until it is written to. Its forks and
    /// checkpoints have what it has.
    ///
    /// A disk that has the size already is looked at, and its file system made to fill it if it does not: so what
    /// failed half-way can be tried again.
    ///
    /// # Errors
    /// [`DiskError`] in [`GuestError::Disk`] says how far it got; the guest runs on.
    pub fn grow_disk(&mut self, agent: &mut Agent, disk_mb: u64) -> Result<DiskGranted, GuestError> {
        let started = Instant::now();
        let before = self.vm.stats()?.disk_bytes;
        let wanted = check(disk_mb, before)?;
        // What the file system holds now, and that it can be asked, before anything is changed.
        let filled = self.fill(agent, before)?;
        let after = match wanted > before {
            true => {
                self.vm.grow_disk(wanted)?;
                self.fill(agent, wanted)?
            }
            false => filled,
        };
        let gained = after.total_bytes.saturating_sub(filled.total_bytes);
        let (part, of) = SHOWN;
        if after.disk_bytes < wanted || gained < (wanted - before) / of * part {
            return Err(DiskError::NotShown {
                before_mb: before / MIB,
                disk_mb: after.disk_bytes / MIB,
                total_before_mb: filled.total_bytes / MIB,
                total_mb: after.total_bytes / MIB,
            }
            .into());
        }
        Ok(DiskGranted {
            disk_mb: after.disk_bytes / MIB,
            total_mb: after.total_bytes / MIB,
            free_mb: after.free_bytes / MIB,
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Lets the file system fill a disk of `bytes`.
    fn fill(&mut self, agent: &mut Agent, bytes: u64) -> Result<DiskReport, GuestError> {
        match agent.grow_disk(bytes) {
            Ok(report) => Ok(report),
            Err(ClientError::Refused(why)) => Err(DiskError::NotFilled {
                disk_mb: bytes / MIB,
                why: why.to_string(),
            }
            .into()),
            Err(error) => Err(self.explain(error)),
        }
    }
}

/// The size in bytes that a disk of `before` bytes should have.
fn check(disk_mb: u64, before: u64) -> Result<u64, DiskError> {
    if disk_mb > MAX_DISK_MB {
        return Err(DiskError::AboveMaximum {
            requested_mb: disk_mb,
            max_mb: MAX_DISK_MB,
        });
    }
    let wanted = disk_mb * MIB;
    // A disk of odd sectors is asked for in whole MiB.
    if disk_mb < before.div_ceil(MIB) {
        return Err(DiskError::Smaller {
            requested_mb: disk_mb,
            disk_mb: before.div_ceil(MIB),
        });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_grows_or_stays_and_ends_at_the_most_it_may_have() {
        assert_eq!(check(5, 4 * MIB), Ok(5 * MIB));
        assert_eq!(check(4, 4 * MIB), Ok(4 * MIB));
        assert_eq!(
            check(3, 4 * MIB),
            Err(DiskError::Smaller {
                requested_mb: 3,
                disk_mb: 4
            })
        );
        assert!(check(4, 4 * MIB + 512).is_err());
        assert_eq!(check(MAX_DISK_MB, MIB), Ok(1 << 40));
        for more in [MAX_DISK_MB + 1, u64::MAX] {
            assert_eq!(
                check(more, MIB),
                Err(DiskError::AboveMaximum {
                    requested_mb: more,
                    max_mb: MAX_DISK_MB
                })
            );
        }
    }
}
