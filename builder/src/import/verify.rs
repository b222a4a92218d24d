//! Reading what may be damaged, and what may be without end.

use std::fmt::Write;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::ImportError;

/// Counts down what may still be unpacked, and hashes what is read.
pub struct Measured<'a, R> {
    from: R,
    hash: Sha256,
    left: &'a mut u64,
}

/// The kind of error that [`Measured`] ends with when nothing is left.
pub const TOO_MUCH: io::ErrorKind = io::ErrorKind::QuotaExceeded;

impl<'a, R: Read> Measured<'a, R> {
    /// Reads `from`; each byte is taken from `left`.
    pub fn new(from: R, left: &'a mut u64) -> Self {
        let hash = Sha256::new();
        Self { from, hash, left }
    }

    /// The SHA-256 of all there is, in hexadecimal; reads what has not been read yet.
    ///
    /// # Errors
    /// Of reading.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Measured<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => *self.left = left,
            None => return Err(TOO_MUCH.into()),
        }
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The SHA-256 of some bytes in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Whether this is a SHA-256 as digests are written: 64 lower-case digits, and so a safe file name.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Why something is not what it should be.
pub enum Mismatch {
    /// It could not be read.
    Unreadable(io::Error),
    /// It is something else.
    Differs(ImportError),
}

impl Mismatch {
    /// As an error about the file it is in.
    pub fn into_error(self, path: &Path) -> ImportError {
        match self {
            Mismatch::Unreadable(cause) => ImportError::file(path)(cause),
            Mismatch::Differs(error) => error,
        }
    }
}

/// Checks that what is read has this digest.
///
/// # Errors
/// [`Mismatch`].
pub fn check(what: &str, from: impl Read, expected: &str) -> Result<(), Mismatch> {
    let mut all = u64::MAX;
    let found = Measured::new(from, &mut all)
        .finish()
        .map_err(Mismatch::Unreadable)?;
    compare(what, expected, found).map_err(Mismatch::Differs)
}

/// Compares two digests.
///
/// # Errors
/// [`ImportError::Digest`].
pub fn compare(what: &str, expected: &str, found: String) -> Result<(), ImportError> {
    if found == expected {
        return Ok(());
    }
    Err(ImportError::Digest {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}
