//! The memory file: written once in ascending order, digested on the way, checked before it is mapped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::manifest::MemoryRecord;
use super::pages::{ChunkDigest, ChunkHasher, MEMORY_CHUNK, PAGE, runs};
use crate::files::{CHUNK, next_data, to_usize};

/// Writes guest memory to a sparse file. Pages of zeroes are left out, and what is never given is zero, so a
/// caller skips ranges that the guest never touched.
pub struct MemoryWriter {
    file: File,
    path: PathBuf,
    span: u64,
    /// Where the next region may begin.
    position: u64,
    chunk: ChunkHasher,
    chunks: Vec<ChunkDigest>,
    written: u64,
    expected: Option<u64>,
}

/// Proof that a memory file was written completely and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenMemory {
    pub(crate) record: MemoryRecord,
}

impl WrittenMemory {
    /// Bytes that were written: the guest's non-zero pages.
    pub fn bytes_written(&self) -> u64 {
        self.record.data_bytes
    }

    /// What the manifest says of the file, for a writer in another process than the publisher.
    pub fn into_record(self) -> MemoryRecord {
        self.record
    }
}

impl MemoryWriter {
    /// A writer to a new file at `path` for `span` bytes of guest memory, a multiple of [`PAGE`].
    ///
    /// # Errors
    /// When `span` is no multiple of a page or zero, or the file exists or can't be made.
    pub fn create(path: &Path, span: u64) -> Result<Self, CheckpointError> {
        check_span(span)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(CheckpointError::io("create", path))?;
        Self::to_file(file, path, span)
    }

    /// As [`MemoryWriter::create`], to an empty file that is open for reading and writing. `path` is what errors call it.
    ///
    /// # Errors
    /// When `span` is no multiple of a page or zero.
    pub fn to_file(file: File, path: &Path, span: u64) -> Result<Self, CheckpointError> {
        check_span(span)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            span,
            position: 0,
            chunk: ChunkHasher::new(0),
            chunks: Vec::new(),
            written: 0,
            expected: None,
        })
    }

    /// Tells how many bytes of non-zero pages the caller expects to write in all (resident memory is a good
    /// guess), so that an error can say how much space is missing. Without it, the rest of the span is named.
    pub fn expect_bytes(&mut self, bytes: u64) {
        self.expected = Some(bytes);
    }

    /// Writes guest memory at `offset` of the file. Both `offset` and the length are multiples of [`PAGE`], and
    /// regions come in ascending order.
    ///
    /// The bytes must not change meanwhile: the guest is paused, or this is a forked child's copy of it.
    ///
    /// # Errors
    /// When the region is not one that may come next, or the file can't be written. After an error the file is
    /// of no use.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let len = bytes.len() as u64;
        let bad = |why| Err(CheckpointError::BadRegion { offset, len, why });
        if !offset.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
            return bad("memory is written in whole pages of 4096 bytes");
        }
        if offset < self.position {
            return bad("memory is written in ascending order, and this was passed already");
        }
        if offset.checked_add(len).is_none_or(|end| end > self.span) {
            return bad("this is beyond the span of guest memory");
        }
        runs(offset, bytes, |at, pages| {
            self.file.write_all_at(pages, at).map_err(|source| {
                let missing = match self.expected {
                    Some(expected) => expected.saturating_sub(self.written).max(pages.len() as u64),
                    None => self.span - at,
                };
                CheckpointError::write(&self.path, self.written, missing)(source)
            })?;
            self.written += pages.len() as u64;
            if self.chunk.index() != at / MEMORY_CHUNK {
                let done = std::mem::replace(&mut self.chunk, ChunkHasher::new(at / MEMORY_CHUNK));
                self.chunks.extend(done.finish());
            }
            self.chunk.add(at, pages);
            Ok(())
        })?;
        self.position = offset + len;
        Ok(())
    }

    /// Gives the file its length, makes it durable and read-only (0444).
    ///
    /// # Errors
    /// When the file can't be made so; it is of no use then.
    pub fn finish(mut self) -> Result<WrittenMemory, CheckpointError> {
        let path = &self.path;
        self.file
            .set_len(self.span)
            .map_err(CheckpointError::write(path, self.written, 0))?;
        match self.file.set_permissions(Permissions::from_mode(0o444)) {
            // It belongs to who gave it to us, who makes it so.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            result => result.map_err(CheckpointError::io("make read-only", path))?,
        }
        // Space may be allotted only now, so this can be where it is found missing.
        self.file
            .sync_all()
            .map_err(CheckpointError::write(path, self.written, self.written))?;
        self.chunks.extend(self.chunk.finish());
        Ok(WrittenMemory {
            record: MemoryRecord {
                span_bytes: self.span,
                data_bytes: self.written,
                chunk_bytes: MEMORY_CHUNK,
                chunks: self.chunks,
            },
        })
    }
}

fn check_span(span: u64) -> Result<(), CheckpointError> {
    if span == 0 || !span.is_multiple_of(PAGE) {
        let why = "the span of guest memory is a multiple of 4096 bytes, and not 0";
        return Err(CheckpointError::BadRegion {
            offset: 0,
            len: span,
            why,
        });
    }
    Ok(())
}

/// Reads all of a memory file and compares it with its record, which was checked for sense before.
pub(crate) fn verify_memory(file: &File, path: &Path, record: &MemoryRecord) -> Result<(), CheckpointError> {
    check_length(file, path, record)?;
    let mut expected: BTreeMap<u64, ChunkDigest> =
        record.chunks.iter().map(|chunk| (chunk.index, *chunk)).collect();
    let mut check = |found: Option<ChunkDigest>| match found {
        Some(found) => match expected.remove(&found.index) {
            Some(right) if right == found => Ok(()),
            Some(right) => Err(CheckpointError::corrupt(
                path,
                chunk_place(right.index),
                right.blake3,
                found.blake3,
            )),
            None => Err(CheckpointError::corrupt(
                path,
                chunk_place(found.index),
                "zeroes only",
                found.blake3,
            )),
        },
        None => Ok(()),
    };
    let mut chunk = ChunkHasher::new(0);
    let mut buf = vec![0; CHUNK];
    let mut done = 0;
    let span = record.span_bytes;
    while let Some(extent) = next_data(file, done, span).map_err(CheckpointError::io("read", path))? {
        let mut at = (extent.start / PAGE * PAGE).max(done);
        done = extent.end.next_multiple_of(PAGE).min(span);
        while at < done {
            let bytes = &mut buf[..CHUNK.min(to_usize(done - at))];
            file.read_exact_at(bytes, at)
                .map_err(CheckpointError::io("read", path))?;
            runs(at, bytes, |at, pages| {
                if chunk.index() != at / MEMORY_CHUNK {
                    let full = std::mem::replace(&mut chunk, ChunkHasher::new(at / MEMORY_CHUNK));
                    check(full.finish())?;
                }
                chunk.add(at, pages);
                Ok(())
            })?;
            at += bytes.len() as u64;
        }
    }
    check(chunk.finish())?;
    match expected.into_values().next() {
        Some(missing) => Err(CheckpointError::corrupt(
            path,
            chunk_place(missing.index),
            missing.blake3,
            "zeroes only",
        )),
        None => Ok(()),
    }
}

/// Compares the file's length, which mapping it relies on.
pub(crate) fn check_length(file: &File, path: &Path, record: &MemoryRecord) -> Result<(), CheckpointError> {
    let len = file
        .metadata()
        .map_err(CheckpointError::io("look at", path))?
        .len();
    if len != record.span_bytes {
        let bytes = |n| format!("{n} bytes");
        let place = format!("offset {}", len.min(record.span_bytes));
        return Err(CheckpointError::corrupt(
            path,
            place,
            bytes(record.span_bytes),
            bytes(len),
        ));
    }
    Ok(())
}

fn chunk_place(index: u64) -> String {
    format!(
        "chunk {index} (16 MiB from offset {})",
        index.saturating_mul(MEMORY_CHUNK)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; 4096]
    }

    fn written(dir: &Path, regions: &[(u64, Vec<u8>)], span: u64) -> (PathBuf, WrittenMemory) {
        let path = dir.join("memory");
        let mut writer = MemoryWriter::create(&path, span).unwrap();
        for (offset, bytes) in regions {
            writer.write(*offset, bytes).unwrap();
        }
        (path, writer.finish().unwrap())
    }

    #[test]
    fn only_pages_that_are_not_zero_take_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut mixed = page(1);
        mixed.extend(page(0));
        mixed.extend(page(2));
        let span = 16 << 30;
        let (path, memory) = written(dir.path(), &[(0, mixed), (span - 4096, page(3))], span);
        assert_eq!(memory.bytes_written(), 3 * 4096);
        assert_eq!(
            memory.record.chunks.iter().map(|c| c.index).collect::<Vec<_>>(),
            [0, 1023]
        );
        let file = File::open(&path).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), span);
        assert_eq!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512, 3 * 4096);
        verify_memory(&file, &path, &memory.record).unwrap();
    }

    #[test]
    fn how_the_memory_was_cut_into_regions_makes_no_difference() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let span = 2 * MEMORY_CHUNK;
        let all: Vec<u8> = (0..span / PAGE)
            .flat_map(|i| page(if i % 3 == 0 { 0 } else { 9 }))
            .collect();
        let (_, whole) = written(dirs[0].path(), &[(0, all.clone())], span);
        let parts: Vec<_> = all
            .chunks(5 * 4096)
            .enumerate()
            .map(|(i, part)| (i as u64 * 5 * PAGE, part.to_vec()))
            .collect();
        let (_, parted) = written(dirs[1].path(), &parts, span);
        assert_eq!(whole, parted);
    }

    #[test]
    fn a_changed_added_or_erased_page_is_found_with_its_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let span = 4 * MEMORY_CHUNK;
        let (path, memory) = written(
            dir.path(),
            &[(4096, page(1)), (2 * MEMORY_CHUNK + 8192, page(2))],
            span,
        );
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let change = |at: u64, byte: u8, chunk: &str| {
            let mut before = [0];
            file.read_exact_at(&mut before, at).unwrap();
            file.write_all_at(&[byte], at).unwrap();
            let error = verify_memory(&file, &path, &memory.record)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(chunk) && error.contains("memory is damaged"),
                "{error}"
            );
            file.write_all_at(&before, at).unwrap();
            verify_memory(&file, &path, &memory.record).unwrap();
        };
        change(5000, 9, "chunk 0");
        change(2 * MEMORY_CHUNK + 100, 1, "chunk 2");
        change(3 * MEMORY_CHUNK + 100, 1, "chunk 3");
        change(span - 1, 1, "chunk 3");
        crate::files::punch(&file, 2 * MEMORY_CHUNK..3 * MEMORY_CHUNK).unwrap();
        let error = verify_memory(&file, &path, &memory.record)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("chunk 2") && error.contains("zeroes only"),
            "{error}"
        );
        file.set_len(span - 4096).unwrap();
        let error = verify_memory(&file, &path, &memory.record)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("{span} bytes")), "{error}");
    }

    #[test]
    fn regions_out_of_order_out_of_span_or_not_of_pages_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MemoryWriter::create(&dir.path().join("memory"), 1 << 20).unwrap();
        writer.write(8192, &page(1)).unwrap();
        for (offset, len) in [
            (4096, 4096),
            (8192, 4096),
            (12289, 4096),
            (12288, 5),
            (1 << 20, 4096),
        ] {
            let error = writer.write(offset, &vec![1; len]).unwrap_err();
            assert!(matches!(error, CheckpointError::BadRegion { .. }), "{error}");
        }
        assert!(writer.write(u64::MAX - 4095, &page(1)).is_err());
        assert!(MemoryWriter::create(&dir.path().join("other"), 4097).is_err());
    }
}
