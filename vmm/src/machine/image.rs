//! Writing guest memory to a checkpoint's file.
//!
//! Only pages that may hold something are looked at: those the kernel has in the page table
//! (`/proc/self/pagemap`, `Documentation/admin-guide/mm/pagemap.rst`), and those that are data in
//! the checkpoint file this memory is a view of.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use spore_snapshot::checkpoint::{CheckpointError, MemoryWriter};

use super::Machine;
use crate::layout::PAGE_SIZE;
use crate::ram::{PluggedRun, Ram};

/// Bytes looked at in one go: a pagemap read of 128 KiB.
const WINDOW: u64 = 64 << 20;
/// Bits 62 and 63 of a pagemap entry: swapped, present.
const POPULATED: u64 = 0b11 << 62;

/// Why guest memory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The page table or the base file could not be looked at.
    #[error("guest memory: {what}: {source}")]
    Look {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] CheckpointError),
}

impl Machine {
    /// Writes all guest memory, plugged memory included. The machine stands still, so nothing
    /// changes meanwhile.
    ///
    /// # Errors
    /// [`ImageError`]; the machine is none the worse.
    pub fn write_memory(&self, plugged: &[PluggedRun], writer: &mut MemoryWriter) -> Result<(), ImageError> {
        let ram = &self.shared.ram;
        let boot = ram.layout().boot;
        let pagemap = File::open("/proc/self/pagemap").map_err(|source| ImageError::Look {
            what: "opening pagemap",
            source,
        })?;
        let ranges =
            std::iter::once((0, boot)).chain(plugged.iter().map(|&(start, bytes)| (boot + start, bytes)));
        for (start, bytes) in ranges {
            let mut at = start;
            while at < start + bytes {
                let length = WINDOW.min(start + bytes - at);
                for (run, run_bytes) in populated(ram, &pagemap, at, length)? {
                    // SAFETY: the run is RAM of ours, mapped readable, and no thread of the machine
                    // runs that could write it.
                    let bytes = unsafe {
                        std::slice::from_raw_parts(ram.host_address(run) as *const u8, to_usize(run_bytes))
                    };
                    writer.write(run, bytes)?;
                }
                at += length;
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_possible_truncation)] // x86_64 only: usize is 64 bits.
fn to_usize(bytes: u64) -> usize {
    bytes as usize
}

/// Runs of pages in a range of the span that may hold something, as `(span offset, bytes)`.
fn populated(ram: &Ram, pagemap: &File, start: u64, bytes: u64) -> Result<Vec<(u64, u64)>, ImageError> {
    let pages = to_usize(bytes / PAGE_SIZE);
    let mut entries = vec![0u8; pages * 8];
    pagemap
        .read_exact_at(&mut entries, ram.host_address(start) / PAGE_SIZE * 8)
        .map_err(|source| ImageError::Look {
            what: "reading pagemap",
            source,
        })?;
    let mut wanted: Vec<bool> = entries
        .as_chunks::<8>()
        .0
        .iter()
        .map(|entry| u64::from_le_bytes(*entry) & POPULATED != 0)
        .collect();
    for (from, to) in ram.file_data(start, bytes).map_err(|source| ImageError::Look {
        what: "SEEK_DATA",
        source,
    })? {
        let first = to_usize((from - start) / PAGE_SIZE);
        let last = to_usize((to - start).div_ceil(PAGE_SIZE)).min(pages);
        wanted[first..last].fill(true);
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (at, _) in (start..)
        .step_by(4096)
        .zip(&wanted)
        .filter(|(_, wanted)| **wanted)
    {
        match runs.last_mut() {
            Some((run, length)) if *run + *length == at => *length += PAGE_SIZE,
            _ => runs.push((at, PAGE_SIZE)),
        }
    }
    Ok(runs)
}
