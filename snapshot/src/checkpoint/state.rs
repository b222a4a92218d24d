//! The state file: opaque bytes behind a header that says how many and which.
//!
//! All numbers are little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic, `SPORESTA` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the payload in bytes, at most 64 MiB |
//! | 24 | 32 | BLAKE3 of the payload |
//! | 56 | | the payload, to the end of the file |

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::CheckpointError;
use super::manifest::StateRecord;
use crate::Digest;
use crate::files::to_usize;

/// The largest state in bytes (64 MiB).
pub const MAX_STATE: u64 = 64 << 20;

const MAGIC: &[u8; 8] = b"SPORESTA";
const VERSION: u32 = 1;
const HEADER: usize = 56;

/// Proof that a state file was written and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenState {
    pub(crate) record: StateRecord,
}

impl WrittenState {
    /// What the manifest says of the file, for a writer in another process than the publisher.
    pub fn into_record(self) -> StateRecord {
        self.record
    }
}

/// Writes a new state file, read-only (0444) and durable.
pub fn write_state(path: &Path, payload: &[u8]) -> Result<WrittenState, CheckpointError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(CheckpointError::io("create", path))?;
    write_state_to(&file, path, payload)
}

/// As [`write_state`], to an empty file that is open for writing. `path` is what errors call it.
pub fn write_state_to(file: &File, path: &Path, payload: &[u8]) -> Result<WrittenState, CheckpointError> {
    let len = payload.len() as u64;
    if len > MAX_STATE {
        return Err(CheckpointError::StateTooLarge { len, max: MAX_STATE });
    }
    let digest = Digest::of(payload);
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(digest.as_bytes());
    bytes.extend(payload);
    let write = |error| CheckpointError::write(path, 0, bytes.len() as u64)(error);
    file.write_all_at(&bytes, 0).map_err(write)?;
    file.sync_all().map_err(write)?;
    Ok(WrittenState {
        record: StateRecord {
            bytes: len,
            blake3: digest,
        },
    })
}

/// The payload of a state file, if it is the one that the manifest speaks of.
pub fn read_state(file: &File, path: &Path, expected: &StateRecord) -> Result<Vec<u8>, CheckpointError> {
    let io = || CheckpointError::io("read", path);
    let corrupt = |offset: u64, expected: String, found: String| {
        Err(CheckpointError::corrupt(
            path,
            format!("offset {offset}"),
            expected,
            found,
        ))
    };
    let bytes = |n: u64| format!("{n} bytes");
    let len = file.metadata().map_err(io())?.len();
    let whole = HEADER as u64 + expected.bytes;
    if expected.bytes > MAX_STATE || len != whole {
        return corrupt(len.min(whole), bytes(whole), bytes(len));
    }
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(io())?;
    let field = |at: usize, len: usize| crate::digest::hex(&header[at..at + len]);
    if header[..8] != MAGIC[..] {
        return corrupt(0, crate::digest::hex(MAGIC), field(0, 8));
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version != VERSION {
        let (path, found) = (path.to_owned(), version.into());
        return Err(CheckpointError::UnsupportedVersion {
            path,
            found,
            supported: VERSION,
        });
    }
    if header[12..16] != [0; 4] {
        return corrupt(12, "zeroes".into(), field(12, 4));
    }
    if header[16..24] != expected.bytes.to_le_bytes() {
        return corrupt(
            16,
            crate::digest::hex(&expected.bytes.to_le_bytes()),
            field(16, 8),
        );
    }
    if header[24..] != expected.blake3.as_bytes()[..] {
        return corrupt(24, expected.blake3.to_string(), field(24, 32));
    }
    let mut payload = vec![0; to_usize(expected.bytes)];
    file.read_exact_at(&mut payload, HEADER as u64).map_err(io())?;
    let found = Digest::of(&payload);
    if found != expected.blake3 {
        return corrupt(HEADER as u64, expected.blake3.to_string(), found.to_string());
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(path: &Path, record: &StateRecord) -> Result<Vec<u8>, CheckpointError> {
        read_state(&File::open(path).unwrap(), path, record)
    }

    #[test]
    fn a_state_comes_back_and_every_flipped_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let record = write_state(&path, b"vcpus and devices").unwrap().record;
        assert_eq!(read(&path, &record).unwrap(), b"vcpus and devices");
        let good = std::fs::read(&path).unwrap();
        let bad = dir.path().join("bad");
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&bad, bytes).unwrap();
            let error = read(&bad, &record).unwrap_err();
            let version = matches!(error, CheckpointError::UnsupportedVersion { .. });
            assert_eq!(version, (8..12).contains(&at), "{error}");
        }
    }

    #[test]
    fn an_empty_state_is_a_state_and_a_huge_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let record = write_state(&dir.path().join("empty"), b"").unwrap().record;
        assert_eq!(read(&dir.path().join("empty"), &record).unwrap(), b"");
        let error = write_state(&dir.path().join("huge"), &vec![0; (64 << 20) + 1]).unwrap_err();
        assert!(matches!(error, CheckpointError::StateTooLarge { .. }));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0..100u64) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state");
            std::fs::write(&path, bytes).unwrap();
            let record = StateRecord { bytes: len, blake3: Digest::of(b"x") };
            prop_assert!(read(&path, &record).is_err());
        }
    }
}
