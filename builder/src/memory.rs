//! Amounts of memory and disk, how much memory this host has, and what a manifest may ask for.

use std::{fmt, io};

/// The least memory either phase can have, and so the smallest floor.
pub const MIN_MEMORY: MiB = MiB(256);
/// What the build VM gets when the manifest does not say.
pub const DEFAULT_BUILDER_MEMORY: MiB = MiB(4096);
/// What the finalize VM gets, and so the image's floor, when the manifest does not say.
pub const DEFAULT_RUNTIME_MEMORY: MiB = MiB(1024);
/// The largest floor: the most memory a sandbox may have in all, since a fork is never smaller than its floor.
pub const MAX_RUNTIME_MEMORY: MiB = MiB(16384);

/// The least `diskMB` can be.
pub const MIN_DISK: MiB = MiB(256);
/// The most `diskMB` can be: 1 TiB.
pub const MAX_DISK: MiB = MiB(1 << 20);
const _: () = assert!(MAX_DISK.0 as u64 == spore_vmm::guest::MAX_DISK_MB);

/// A whole number of MiB (2^20 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MiB(u32);

impl MiB {
    /// This many MiB.
    pub const fn new(mib: u32) -> MiB {
        MiB(mib)
    }

    /// The number of MiB.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a memory field may be, both ends included, and what sets the upper end.
/// Prints as `256 to 23980 (this host's memory)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    max: MiB,
    reason: &'static str,
}

impl MemoryRange {
    /// What `builderMemoryMB` may be: up to all that the host has.
    pub fn builder(host: HostMemory) -> MemoryRange {
        MemoryRange {
            max: host.total(),
            reason: "this host's memory",
        }
    }

    /// What `runtimeMemoryMB` may be: up to [`MAX_RUNTIME_MEMORY`], or what the host has if that is less.
    pub fn runtime(host: HostMemory) -> MemoryRange {
        if host.total() < MAX_RUNTIME_MEMORY {
            MemoryRange {
                max: host.total(),
                reason: "this host's memory",
            }
        } else {
            MemoryRange {
                max: MAX_RUNTIME_MEMORY,
                reason: "the most a sandbox may have",
            }
        }
    }

    /// The least it may be.
    pub fn min(&self) -> MiB {
        MIN_MEMORY
    }

    /// The most it may be.
    pub fn max(&self) -> MiB {
        self.max
    }

    /// What sets the most.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// `value` as an amount in this range.
    pub fn check(&self, value: u64) -> Option<MiB> {
        let mib = MiB(u32::try_from(value).ok()?);
        (self.min()..=self.max).contains(&mib).then_some(mib)
    }

    /// `default`, or the most there may be where that is less.
    pub fn default_of(&self, default: MiB) -> MiB {
        default.min(self.max)
    }
}

/// The memory of the host that will build: the upper limit of what a manifest may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory(MiB);

/// The host's memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostMemoryError {
    /// `/proc/meminfo` could not be read.
    #[error("cannot read /proc/meminfo: {0}")]
    Unreadable(#[from] io::Error),
    /// `/proc/meminfo` has no `MemTotal: N kB` line.
    #[error("/proc/meminfo has no MemTotal line that can be understood")]
    NoMemTotal,
}

impl HostMemory {
    /// A host of `total` memory.
    pub fn new(total: MiB) -> HostMemory {
        HostMemory(total)
    }

    /// This host's memory: `MemTotal` of `/proc/meminfo`, rounded down.
    ///
    /// # Errors
    /// [`HostMemoryError`].
    pub fn read() -> Result<HostMemory, HostMemoryError> {
        HostMemory::from_meminfo(&std::fs::read_to_string("/proc/meminfo")?)
    }

    /// The memory in all.
    pub fn total(self) -> MiB {
        self.0
    }

    fn from_meminfo(text: &str) -> Result<HostMemory, HostMemoryError> {
        let kib: u64 = text
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse()
                    .ok()
            })
            .ok_or(HostMemoryError::NoMemTotal)?;
        // A host of 4 PiB and more may as well have 4 PiB.
        Ok(HostMemory(MiB(u32::try_from(kib / 1024).unwrap_or(u32::MAX))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_memtotal_in_whole_mib() {
        let host = HostMemory::from_meminfo("MemTotal:       24684404 kB\nMemFree: 1 kB\n").unwrap();
        assert_eq!(host.total(), MiB::new(24105));
        assert!(HostMemory::read().unwrap().total() > MiB::new(0));
    }

    #[test]
    fn a_meminfo_that_makes_no_sense_is_an_error() {
        for text in ["", "MemFree: 1 kB", "MemTotal: x kB", "MemTotal: 5 MB"] {
            assert!(
                matches!(HostMemory::from_meminfo(text), Err(HostMemoryError::NoMemTotal)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_range_has_both_its_ends() {
        let range = MemoryRange::builder(HostMemory::new(MiB::new(23980)));
        assert_eq!(range.check(256), Some(MiB::new(256)));
        assert_eq!(range.check(23980), Some(MiB::new(23980)));
        assert_eq!(range.check(255), None);
        assert_eq!(range.check(23981), None);
        assert_eq!(range.check(u64::MAX), None);
        assert_eq!(range.check((1 << 32) + 256), None);
        assert_eq!(range.to_string(), "256 to 23980 (this host's memory)");
    }

    #[test]
    fn a_floor_ends_at_the_most_a_sandbox_may_have_or_at_the_host() {
        let big = MemoryRange::runtime(HostMemory::new(MiB::new(65536)));
        assert_eq!(big.to_string(), "256 to 16384 (the most a sandbox may have)");
        let small = MemoryRange::runtime(HostMemory::new(MiB::new(2000)));
        assert_eq!(small.to_string(), "256 to 2000 (this host's memory)");
    }

    #[test]
    fn a_default_is_no_more_than_the_host_has() {
        let range = MemoryRange::builder(HostMemory::new(MiB::new(2000)));
        assert_eq!(range.default_of(DEFAULT_BUILDER_MEMORY), MiB::new(2000));
    }
}
