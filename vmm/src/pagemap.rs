//! What the kernel's page table says of our own memory (`Documentation/admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layout::PAGE_SIZE;

/// Bits 62 and 63 of an entry: swapped, present.
const POPULATED: u64 = 0b11 << 62;
/// Bit 61: a page of a file, or shared; clear for private anonymous memory.
const OF_A_FILE: u64 = 1 << 61;

/// One page's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Whether there is a page, in memory or swapped out.
    pub fn is_populated(self) -> bool {
        self.0 & POPULATED != 0
    }

    /// Whether that page is private memory of ours: written to, not a view of a file.
    pub fn is_private(self) -> bool {
        self.is_populated() && self.0 & OF_A_FILE == 0
    }
}

/// The page table of this process, open for reading.
pub struct Pagemap(File);

impl Pagemap {
    /// Of a `/proc/PID/pagemap` of this process, which somebody opened.
    pub fn of(file: File) -> Self {
        Self(file)
    }

    /// Opens it.
    #[cfg(test)]
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// The entries of the pages from `address` on.
    ///
    /// # Errors
    /// What the read reports.
    pub fn entries(&self, address: u64, pages: usize) -> io::Result<Vec<Entry>> {
        let mut bytes = vec![0u8; pages * 8];
        self.0.read_exact_at(&mut bytes, address / PAGE_SIZE * 8)?;
        let entries = bytes.as_chunks::<8>().0.iter();
        Ok(entries.map(|entry| Entry(u64::from_le_bytes(*entry))).collect())
    }
}

/// Joins neighbouring pages among those that are wanted: `(offset, bytes)` runs from `start` on.
pub fn runs(start: u64, wanted: impl IntoIterator<Item = bool>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = start;
    for wanted in wanted {
        if wanted {
            match runs.last_mut() {
                Some((run, length)) if *run + *length == at => *length += PAGE_SIZE,
                _ => runs.push((at, PAGE_SIZE)),
            }
        }
        at += PAGE_SIZE;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join() {
        let page = PAGE_SIZE;
        assert_eq!(
            runs(page, [true, true, false, true]),
            [(page, 2 * page), (4 * page, page)]
        );
        assert_eq!(runs(0, []), []);
    }

    #[test]
    fn a_page_written_to_is_private_and_one_never_touched_is_not_there() {
        let pages = 4;
        let memory = vm_memory::MmapRegion::<()>::new(pages * 4096).unwrap();
        // SAFETY: the first byte of a mapping of ours.
        unsafe { memory.as_ptr().write_volatile(1) };
        let entries = Pagemap::open()
            .unwrap()
            .entries(memory.as_ptr() as u64, pages)
            .unwrap();
        assert!(entries[0].is_private());
        assert!(!entries[2].is_populated());
    }
}
