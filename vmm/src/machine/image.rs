//! Writing guest memory to a checkpoint's file.
//!
//! Only pages that may hold something are looked at: those the kernel has in the page table, and
//! those that are data in the checkpoint file this memory is a view of.

use std::io;

use spore_snapshot::checkpoint::{CheckpointError, MemoryWriter};

use crate::layout::PAGE_SIZE;
use crate::pagemap::{Pagemap, runs};
use crate::ram::{PluggedRun, Ram};

/// Bytes looked at in one go: a pagemap read of 128 KiB.
const WINDOW: u64 = 64 << 20;

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

fn look(what: &'static str) -> impl FnOnce(io::Error) -> ImageError {
    move |source| ImageError::Look { what, source }
}

/// Writes all guest memory, plugged memory included. Nothing may write it meanwhile: the machine stands still, or
/// this is a forked process's copy of it.
///
/// # Errors
/// [`ImageError`]; the memory is none the worse.
pub fn write_memory(
    ram: &Ram,
    plugged: &[PluggedRun],
    pagemap: &Pagemap,
    writer: &mut MemoryWriter,
) -> Result<(), ImageError> {
    for (start, bytes) in ram.ranges(plugged) {
        let mut at = start;
        while at < start + bytes {
            let length = WINDOW.min(start + bytes - at);
            for (run, run_bytes) in populated(ram, pagemap, at, length)? {
                // SAFETY: the run is RAM of ours, mapped readable, and by the contract of this function
                // nothing writes it meanwhile.
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

#[allow(clippy::cast_possible_truncation)] // x86_64 only: usize is 64 bits.
fn to_usize(bytes: u64) -> usize {
    bytes as usize
}

/// Runs of pages in a range of the span that may hold something, as `(span offset, bytes)`.
fn populated(ram: &Ram, pagemap: &Pagemap, start: u64, bytes: u64) -> Result<Vec<(u64, u64)>, ImageError> {
    let pages = to_usize(bytes / PAGE_SIZE);
    let entries = pagemap
        .entries(ram.host_address(start), pages)
        .map_err(look("reading pagemap"))?;
    let mut wanted: Vec<bool> = entries.iter().map(|entry| entry.is_populated()).collect();
    for (from, to) in ram.file_data(start, bytes).map_err(look("SEEK_DATA"))? {
        let first = to_usize((from - start) / PAGE_SIZE);
        let last = to_usize((to - start).div_ceil(PAGE_SIZE)).min(pages);
        wanted[first..last].fill(true);
    }
    Ok(runs(start, wanted))
}
