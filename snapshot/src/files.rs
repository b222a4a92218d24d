//! What this crate asks of a file system beyond reading and writing: where a sparse file has data, holes,
//! durable directories.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

/// How many bytes are read at a time when a whole file is gone through.
pub(crate) const CHUNK: usize = 1 << 20;

const _: () = assert!(size_of::<usize>() == 8, "Spore is for 64-bit hosts");

/// A file offset or size as a size in memory, which on the hosts we build for has the same range.
#[allow(clippy::cast_possible_truncation)]
pub(crate) const fn to_usize(n: u64) -> usize {
    n as usize
}

/// Whether every byte is zero. Looks at 64 bytes a step, which the compiler turns into vector instructions.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// The first range of `file` in `from..end` that may hold anything but zeroes; the rest is a hole.
///
/// On a file system that doesn't know holes, everything is data.
pub(crate) fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) if start < end => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some(from..end)),
        Err(errno) => return Err(errno.into()),
    };
    let stop = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..stop.min(end)))
}

/// Makes `range` of `file` a hole, or where the file system has no holes, zeroes. The length stays.
pub(crate) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, range.start, range.end - range.start) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeroes(file, range),
        other => Ok(other?),
    }
}

fn write_zeroes(file: &File, range: Range<u64>) -> io::Result<()> {
    let zeroes = vec![0; CHUNK];
    // What lies beyond the end reads as zero already, and the file must not become longer.
    let end = range.end.min(file.metadata()?.len());
    let mut at = range.start;
    while at < end {
        let len = CHUNK.min(to_usize(end - at));
        file.write_all_at(&zeroes[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// Copies the first `len` bytes of `from` to the empty file `to`, sharing the blocks where the file system can.
/// Elsewhere holes stay holes, and 64 KiB of zeroes become one.
pub(crate) fn copy_sparse(from: &File, to: &File, len: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return to.set_len(len);
    }
    to.set_len(len)?;
    let mut buf = vec![0; CHUNK];
    let mut done = 0;
    while let Some(data) = next_data(from, done, len)? {
        let mut at = data.start;
        while at < data.end {
            let bytes = &mut buf[..CHUNK.min(to_usize(data.end - at))];
            from.read_exact_at(bytes, at)?;
            for (i, piece) in bytes.chunks(64 * 1024).enumerate() {
                if !is_zero(piece) {
                    to.write_all_at(piece, at + i as u64 * 64 * 1024)?;
                }
            }
            at += bytes.len() as u64;
        }
        done = data.end;
    }
    Ok(())
}

/// All of a file that should be small: an error if it has more than `max` bytes.
pub(crate) fn read_small(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {max} bytes"),
        )),
        false => Ok(bytes),
    }
}

/// Whether an error means that no more bytes fit: the file system is full, a quota or a file size limit is
/// reached.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw_os_error)
        .is_some_and(|errno| matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        let mut bytes = vec![0; 1000];
        assert!(is_zero(&bytes));
        for at in [0, 63, 64, 511, 959, 960, 999] {
            bytes[at] = 0x10;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
        assert!(is_zero(&[]));
    }

    #[test]
    fn holes_are_skipped_and_a_punched_range_is_one() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        assert_eq!(next_data(&file, 0, 10 << 20).unwrap(), None);
        file.write_all_at(&[1; 65536], 5 << 20).unwrap();
        let data = next_data(&file, 0, 10 << 20).unwrap().unwrap();
        assert_eq!(data, 5 << 20..(5 << 20) + 65536);
        assert_eq!(next_data(&file, data.end, 10 << 20).unwrap(), None);
        punch(&file, data).unwrap();
        assert_eq!(next_data(&file, 0, 10 << 20).unwrap(), None);
        assert_eq!(file.metadata().unwrap().len(), 10 << 20);
    }
}
