//! Frames: a little-endian `u32` length and a postcard body of at most [`MAX_FRAME_BYTES`].

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// The longest body a frame may have. A longer one is refused before any of it is read.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;

const HEADER_BYTES: usize = 4;
/// What an idle [`FrameBuf`] holds: every request without bulk data fits.
const IDLE_BYTES: usize = 4096;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than [`MAX_FRAME_BYTES`].
    #[error("a frame of {length} bytes is longer than the {MAX_FRAME_BYTES} allowed")]
    TooLarge {
        /// The length it has or claims.
        length: u64,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The body is not the message it should be.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// The stream itself failed.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Appends `message` to `out` as one frame.
///
/// # Errors
/// [`FrameError::TooLarge`]; `out` is then as it was.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    let result = try_encode(message, out, start);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn try_encode<T: Serialize>(message: &T, out: &mut Vec<u8>, start: usize) -> Result<(), FrameError> {
    out.extend_from_slice(&[0; HEADER_BYTES]);
    postcard::to_io(message, &mut *out).map_err(|error| FrameError::Malformed(error.to_string()))?;
    let length = out.len() - start - HEADER_BYTES;
    let too_large = FrameError::TooLarge {
        length: length as u64,
    };
    if length > MAX_FRAME_BYTES {
        return Err(too_large);
    }
    let length = u32::try_from(length).map_err(|_| too_large)?;
    out[start..start + HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Reads a message from a frame's body. Bytes may be borrowed from it.
///
/// # Errors
/// [`FrameError::Malformed`], also when the message leaves bytes over.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameError> {
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|error| FrameError::Malformed(error.to_string()))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Malformed(format!("{} bytes left over", rest.len())))
    }
}

/// Collects bytes from a stream and hands out whole frames.
///
/// It reads as much as there is at a time, because a system call costs more than a copy. It can
/// be driven from a poll loop ([`space`](Self::space), [`advance`](Self::advance),
/// [`next_frame`](Self::next_frame)) or from a blocking stream ([`read_frame`](Self::read_frame)).
#[derive(Debug, Default)]
pub struct FrameBuf {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl FrameBuf {
    /// An empty buffer; it allocates with the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for the next read, never empty. Say how much was filled with
    /// [`advance`](Self::advance).
    pub fn space(&mut self) -> &mut [u8] {
        let held = self.end - self.start;
        // A claimed length is believed only as far as bytes have come: at most double each time.
        let claimed = self.claimed_frame().unwrap_or(HEADER_BYTES);
        let wanted = claimed.min(2 * held).max(IDLE_BYTES);
        if self.start > 0 && (held == 0 || self.start + wanted > self.buffer.len()) {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, held);
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        if self.end == self.buffer.len() {
            // Whole frames wait, unread, before this one; callers take them first, but need not.
            self.buffer.resize(self.end + IDLE_BYTES, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes were written to the start of [`space`](Self::space).
    pub fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Whether nothing is held, not even a part of a frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The body of the next frame if all of it is here.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`]; the stream is then of no more use.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        if !self.holds_frame()? {
            return Ok(None);
        }
        let Some(total) = self.claimed_frame() else {
            return Ok(None);
        };
        let body = self.start + HEADER_BYTES..self.start + total;
        self.start += total;
        Ok(Some(&self.buffer[body]))
    }

    /// Blocks until the next frame is here and returns its body, or `None` where the stream ends
    /// between frames.
    ///
    /// # Errors
    /// Any [`FrameError`]; after a time-out of the stream ([`FrameError::Io`]) the call may be
    /// repeated, nothing is lost.
    pub fn read_frame(&mut self, stream: &mut impl Read) -> Result<Option<&[u8]>, FrameError> {
        while !self.holds_frame()? {
            match stream.read(self.space()) {
                Ok(0) if self.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(count) => self.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.next_frame()
    }

    /// Whether the next frame is all here.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn holds_frame(&self) -> Result<bool, FrameError> {
        match self.claimed_frame() {
            Some(total) if total > HEADER_BYTES + MAX_FRAME_BYTES => Err(FrameError::TooLarge {
                length: (total - HEADER_BYTES) as u64,
            }),
            Some(total) => Ok(self.end - self.start >= total),
            None => Ok(false),
        }
    }

    /// Header and body length of the frame at the start, once its header is here.
    fn claimed_frame(&self) -> Option<usize> {
        let header = self
            .buffer
            .get(self.start..self.end)?
            .first_chunk::<HEADER_BYTES>()?;
        Some(HEADER_BYTES + u32::from_le_bytes(*header) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&message, &mut out).unwrap();
        out
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        struct Trickle<'a>(&'a [u8], usize);
        impl Read for Trickle<'_> {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                let count = self.1.min(out.len()).min(self.0.len());
                out[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        let long = "x".repeat(300_000);
        let mut bytes = framed("one");
        bytes.extend(framed(&long));
        bytes.extend(framed("three"));
        for step in [1, 3, 7, 4096, 1 << 20] {
            let mut stream = Trickle(&bytes, step);
            let mut buffer = FrameBuf::new();
            for expected in ["one", &long, "three"] {
                let body = buffer.read_frame(&mut stream).unwrap().unwrap();
                assert_eq!(decode::<&str>(body).unwrap(), expected);
            }
            assert!(buffer.read_frame(&mut stream).unwrap().is_none());
        }
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_truncated() {
        let bytes = framed("hello");
        for cut in 1..bytes.len() {
            let result = FrameBuf::new().read_frame(&mut &bytes[..cut]).map(|_| ());
            assert!(
                matches!(result, Err(FrameError::Truncated)),
                "cut at {cut}: {result:?}"
            );
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_its_body_is_read() {
        let claim = u32::try_from(MAX_FRAME_BYTES + 1).unwrap().to_le_bytes();
        let mut stream = io::Cursor::new(claim).chain(io::repeat(0));
        let mut buffer = FrameBuf::new();
        let result = buffer.read_frame(&mut stream).map(|_| ());
        assert!(
            matches!(result, Err(FrameError::TooLarge { length }) if length == MAX_FRAME_BYTES as u64 + 1)
        );
        assert!(buffer.buffer.len() <= 2 * IDLE_BYTES);
    }

    #[test]
    fn a_message_too_large_for_a_frame_leaves_the_output_untouched() {
        let mut out = framed("before");
        let before = out.clone();
        let result = encode(&vec![7u8; MAX_FRAME_BYTES], &mut out);
        assert!(matches!(result, Err(FrameError::TooLarge { .. })));
        assert_eq!(out, before);
    }

    #[test]
    fn bytes_left_over_are_malformed() {
        let mut body = framed("hello").split_off(HEADER_BYTES);
        body.push(0);
        assert!(matches!(decode::<&str>(&body), Err(FrameError::Malformed(_))));
    }

    #[test]
    fn space_is_never_empty_even_when_whole_frames_are_left_waiting() {
        let bytes = framed(&"y".repeat(1000));
        let mut buffer = FrameBuf::new();
        for chunk in bytes
            .iter()
            .cycle()
            .take(bytes.len() * 20)
            .copied()
            .collect::<Vec<_>>()
            .chunks(997)
        {
            let mut rest = chunk;
            while !rest.is_empty() {
                let space = buffer.space();
                assert!(!space.is_empty());
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                buffer.advance(count);
                rest = &rest[count..];
            }
        }
        let mut frames = 0;
        while let Some(body) = buffer.next_frame().unwrap() {
            assert_eq!(decode::<&str>(body).unwrap().len(), 1000);
            frames += 1;
        }
        assert_eq!(frames, 20);
    }
}
