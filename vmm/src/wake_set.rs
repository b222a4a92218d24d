//! The pages that waking touches.
//!
//! A fork that wakes faults in every page it touches: some it only reads, some it copies because it writes.
//! Which these are hardly differs between forks of one template. So the first fork's are recorded, and a shell
//! is given them when it is armed (`MADV_POPULATE_READ`, `MADV_POPULATE_WRITE`, madvise(2)): the faults are then
//! off the path. The idea is REAP's (ASPLOS 2021), for pages instead of a file.

use std::io;

use serde::{Deserialize, Serialize};

use crate::layout::PAGE_SIZE;
use crate::pagemap::{Pagemap, runs};
use crate::ram::{PluggedRun, Ram};

/// Pages looked at in one go: a pagemap read of 128 KiB.
const WINDOW: u64 = 64 << 20;

/// Runs of pages, as offsets in the memory span and lengths, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeSet {
    /// Written: copied from the checkpoint's pages.
    pub written: Vec<(u64, u64)>,
    /// Only read: mapped from the page cache.
    pub read: Vec<(u64, u64)>,
}

impl WakeSet {
    /// What a machine has touched of its memory since it was made.
    ///
    /// # Errors
    /// When the page table cannot be read.
    pub fn record(ram: &Ram, plugged: &[PluggedRun], pagemap: &Pagemap) -> io::Result<Self> {
        let mut set = Self::default();
        for (start, bytes) in ram.ranges(plugged) {
            let mut at = start;
            while at < start + bytes {
                let length = WINDOW.min(start + bytes - at);
                let pages = usize::try_from(length / crate::layout::PAGE_SIZE).map_err(io::Error::other)?;
                let entries = pagemap.entries(ram.host_address(at), pages)?;
                set.written
                    .extend(runs(at, entries.iter().map(|entry| entry.is_private())));
                let only_read = |entry: &crate::pagemap::Entry| entry.is_populated() && !entry.is_private();
                set.read.extend(runs(at, entries.iter().map(only_read)));
                at += length;
            }
        }
        Ok(set)
    }

    /// Whether all of it is memory that a machine has, and no more than that.
    pub fn fits(&self, ram: &Ram, plugged: &[PluggedRun]) -> bool {
        let ranges: Vec<(u64, u64)> = ram.ranges(plugged).into_iter().collect();
        let inside = |&(at, bytes): &(u64, u64)| {
            let end = at.checked_add(bytes);
            let whole = at.is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE) && bytes > 0;
            whole
                && ranges
                    .iter()
                    .any(|(start, length)| at >= *start && end.is_some_and(|end| end <= start + length))
        };
        let all: u64 = ranges.iter().map(|(_, bytes)| bytes).sum();
        let runs = || self.written.iter().chain(&self.read);
        runs().all(inside)
            && runs()
                .try_fold(0u64, |sum, (_, bytes)| sum.checked_add(*bytes))
                .is_some_and(|sum| sum <= all)
    }

    /// Brings the pages in. It is advice: a kernel that does not know it (before 5.14) leaves the faults to the guest.
    ///
    /// # Errors
    /// When the host is out of memory.
    pub fn populate(&self, ram: &Ram) -> io::Result<()> {
        for (runs, advice) in [
            (&self.written, libc::MADV_POPULATE_WRITE),
            (&self.read, libc::MADV_POPULATE_READ),
        ] {
            for &(offset, bytes) in runs {
                match ram.advise(offset, bytes, advice) {
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Bytes of private memory that populating costs.
    pub fn written_bytes(&self) -> u64 {
        self.written.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes that are only mapped.
    pub fn read_bytes(&self) -> u64 {
        self.read.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;
    use crate::ram::RamLayout;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

    #[test]
    fn what_one_fork_touched_is_brought_in_for_another_and_nothing_else() {
        let layout = RamLayout {
            boot: 64 * MIB,
            hotplug: 2 * MIB,
        };
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![5; 8 << 20]).unwrap();
        file.set_len(layout.span()).unwrap();
        let first = Ram::from_checkpoint(layout, &file, &[]).unwrap();
        first
            .view()
            .memory()
            .write_obj(1u8, GuestAddress(2 * MIB))
            .unwrap();
        let _: u8 = first.view().memory().read_obj(GuestAddress(4 * MIB)).unwrap();
        let set = WakeSet::record(&first, &[], &Pagemap::open().unwrap()).unwrap();
        assert_eq!(set.written, [(2 * MIB, 4096)]);
        assert!(
            set.read
                .iter()
                .any(|&(at, bytes)| (at..at + bytes).contains(&(4 * MIB)))
        );

        let second = Ram::from_checkpoint(layout, &file, &[]).unwrap();
        set.populate(&second).unwrap();
        let got = WakeSet::record(&second, &[], &Pagemap::open().unwrap()).unwrap();
        assert_eq!(got.written, set.written);
        assert_eq!(
            second
                .view()
                .memory()
                .read_obj::<u8>(GuestAddress(2 * MIB))
                .unwrap(),
            5
        );
        let wild = WakeSet {
            written: vec![(layout.span(), 4096)],
            read: vec![],
        };
        assert!(wild.populate(&second).is_err());
        assert!(set.fits(&second, &[]) && !wild.fits(&second, &[]));
        for (at, bytes) in [
            (1, 4096),
            (0, 0),
            (0, 100),
            (u64::MAX - 4095, 4096),
            (64 * MIB, 4096),
        ] {
            let read = vec![(at, bytes)];
            assert!(
                !WakeSet {
                    written: vec![],
                    read
                }
                .fits(&second, &[]),
                "{at} {bytes}"
            );
        }
        let twice = WakeSet {
            written: vec![(0, 64 * MIB)],
            read: vec![(0, 64 * MIB)],
        };
        assert!(!twice.fits(&second, &[]));
    }
}
