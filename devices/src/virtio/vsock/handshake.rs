//! The line a client opens its stream with: `CONNECT <port>\n`.

use std::io::ErrorKind;

use super::HostStream;

/// Longest line, newline included. The longest valid one, `CONNECT 4294967294\n`, has 19 bytes.
const MAX_LINE: usize = 32;

/// How far the client has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete; wait until the stream is readable again.
    Pending,
    /// The client wants `port`, and went on with `early` bytes without awaiting the answer.
    Connect {
        /// Port in the guest.
        port: u32,
        /// What followed the line: the first bytes of the stream.
        early: Vec<u8>,
    },
    /// Not a CONNECT line, or the client is gone: drop it.
    Refused,
}

/// The bytes of the line so far.
#[derive(Debug, Default)]
pub(super) struct Handshake {
    line: Vec<u8>,
}

impl Handshake {
    /// Reads what is there.
    pub(super) fn advance(&mut self, stream: &mut dyn HostStream) -> Progress {
        let mut chunk = [0; MAX_LINE];
        loop {
            // The room is at least one byte here, so a count of zero is end-of-file.
            let room = MAX_LINE - self.line.len();
            let Some(into) = chunk.get_mut(..room) else {
                return Progress::Refused;
            };
            let count = match stream.read(into) {
                Ok(count) => count.min(room),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Pending,
                Err(_) => 0,
            };
            if count == 0 {
                return Progress::Refused;
            }
            self.line.extend_from_slice(into.get(..count).unwrap_or_default());
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let early = self.line.split_off(end + 1);
                return match parse(&self.line) {
                    Some(port) => Progress::Connect { port, early },
                    None => Progress::Refused,
                };
            }
            if self.line.len() == MAX_LINE {
                return Progress::Refused;
            }
        }
    }
}

/// The port of a whole line, newline included.
fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    // `parse` alone would take a sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // VMADDR_PORT_ANY is no port.
    (port != u32::MAX).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::super::testing::host_pair;
    use super::*;

    fn advance(chunks: &[&[u8]]) -> Progress {
        let (mut client, mut stream) = host_pair();
        let mut handshake = Handshake::default();
        let mut progress = Progress::Pending;
        for chunk in chunks {
            assert_eq!(progress, Progress::Pending);
            client.send(chunk);
            progress = handshake.advance(&mut stream);
        }
        progress
    }

    #[test]
    fn a_line_may_come_in_pieces_and_with_the_first_bytes_behind_it() {
        assert_eq!(
            advance(&[b"CON", b"NECT 52", b"7\nhi"]),
            Progress::Connect {
                port: 527,
                early: b"hi".to_vec()
            }
        );
        assert_eq!(
            advance(&[b"CONNECT 0\n"]),
            Progress::Connect {
                port: 0,
                early: vec![]
            }
        );
        assert_eq!(advance(&[b"CONNECT 52"]), Progress::Pending);
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            &b"GET / HTTP/1.1\n"[..],
            b"CONNECT \n",
            b"CONNECT +5\n",
            b"CONNECT -5\n",
            b"CONNECT 5 \n",
            b"CONNECT 4294967295\n",
            b"CONNECT 4294967296\n",
            b"connect 5\n",
            b"\n",
            b"CONNECT 00000000000000000000000000000000000000005\n",
            b"CONNECT \xff\n",
        ] {
            assert_eq!(advance(&[line]), Progress::Refused, "{line:?}");
        }
    }

    #[test]
    fn a_client_that_leaves_is_refused() {
        let (client, mut stream) = host_pair();
        let mut handshake = Handshake::default();
        drop(client);
        assert_eq!(handshake.advance(&mut stream), Progress::Refused);
    }
}
