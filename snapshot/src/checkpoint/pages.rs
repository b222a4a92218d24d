//! The digests of guest memory, chunk by chunk.
//!
//! The digest of a chunk of 16 MiB is BLAKE3 over the bytes of its non-zero pages in order, then a bitmap of
//! 512 bytes of which pages these are (page `i` is bit `i % 8` of byte `i / 8`). The bitmap comes last so that
//! long runs of pages go to the hash as they lie, which lets it use wide vectors; the number of bytes before
//! it is the number of its bits, so no two contents give the same input. A chunk without a non-zero page has
//! no digest.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::files::{is_zero, to_usize};

/// Bytes in a page of guest memory.
pub const PAGE: u64 = 4096;

/// Bytes of guest memory that have one digest (16 MiB).
pub const MEMORY_CHUNK: u64 = 16 << 20;

const BITMAP: usize = to_usize(MEMORY_CHUNK / PAGE / 8);

/// The digest of one chunk of memory that isn't all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChunkDigest {
    /// The chunk's number: its offset divided by [`MEMORY_CHUNK`].
    pub index: u64,
    /// BLAKE3 of its non-zero pages and of which these are.
    pub blake3: Digest,
}

/// Hashes the non-zero pages of one chunk, in ascending order.
pub(crate) struct ChunkHasher {
    index: u64,
    hasher: blake3::Hasher,
    bitmap: [u8; BITMAP],
}

impl ChunkHasher {
    pub fn new(index: u64) -> Self {
        Self {
            index,
            hasher: blake3::Hasher::new(),
            bitmap: [0; BITMAP],
        }
    }

    pub fn index(&self) -> u64 {
        self.index
    }

    /// Adds a run of non-zero pages at `offset` of the memory, which must lie in this chunk.
    pub fn add(&mut self, offset: u64, pages: &[u8]) {
        debug_assert_eq!(offset / MEMORY_CHUNK, self.index);
        let first = to_usize(offset % MEMORY_CHUNK / PAGE);
        for page in first..first + pages.len() / to_usize(PAGE) {
            self.bitmap[page / 8] |= 1 << (page % 8);
        }
        self.hasher.update(pages);
    }

    /// The digest; none if nothing was added.
    pub fn finish(mut self) -> Option<ChunkDigest> {
        if is_zero(&self.bitmap) {
            return None;
        }
        self.hasher.update(&self.bitmap);
        Some(ChunkDigest {
            index: self.index,
            blake3: self.hasher.finalize().into(),
        })
    }
}

/// Calls `each` for the longest runs of non-zero pages in `bytes`, which lie at `offset` of the memory; no run
/// crosses the edge of a chunk.
pub(crate) fn runs<'a, E>(
    offset: u64,
    bytes: &'a [u8],
    mut each: impl FnMut(u64, &'a [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let page = to_usize(PAGE);
    let mut start = None;
    let mut flush = |start: &mut Option<usize>, end: usize| match start.take() {
        Some(from) => each(offset + from as u64, &bytes[from..end]),
        None => Ok(()),
    };
    for (index, content) in bytes.chunks(page).enumerate() {
        let at = index * page;
        let zero = is_zero(content);
        if zero || (offset + at as u64).is_multiple_of(MEMORY_CHUNK) {
            flush(&mut start, at)?;
        }
        if !zero && start.is_none() {
            start = Some(at);
        }
    }
    flush(&mut start, bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_at_zero_pages_and_at_chunks() {
        let mut bytes = vec![0; 6 * 4096];
        for page in [0, 1, 3, 4, 5] {
            bytes[page * 4096 + 4095] = 1;
        }
        let mut found = Vec::new();
        runs::<()>(MEMORY_CHUNK - 4 * 4096, &bytes, |at, run| {
            found.push((at, run.len() / 4096));
            Ok(())
        })
        .unwrap();
        let edge = MEMORY_CHUNK;
        assert_eq!(found, [(edge - 4 * 4096, 2), (edge - 4096, 1), (edge, 2)]);
    }

    #[test]
    fn a_digest_tells_where_a_page_lies() {
        let digest = |at: u64| {
            let mut hasher = ChunkHasher::new(0);
            hasher.add(at, &[7; 4096]);
            hasher.finish().unwrap().blake3
        };
        assert_eq!(digest(4096), digest(4096));
        assert_ne!(digest(4096), digest(8192));
        assert_eq!(ChunkHasher::new(3).finish(), None);
    }
}
