//! The few bytes in front of everything: asking the VMM's vsock socket for a guest port.

use std::io::{self, Read, Write};

/// Longer than any answer the VMM gives: `OK 4294967295\n`.
const MAX_ANSWER_BYTES: usize = 32;

/// Why the VMM did not connect us to the guest's port.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The VMM closed the connection: nothing listens on that port in the guest (yet).
    #[error("nothing listens on vsock port {port} in the guest")]
    Refused {
        /// The port we asked for.
        port: u32,
    },
    /// The answer is not `OK <port>`.
    #[error("unexpected answer to CONNECT {port}: {answer:?}")]
    Unexpected {
        /// The port we asked for.
        port: u32,
        /// What came instead.
        answer: String,
    },
    /// The stream itself failed.
    #[error("the vsock stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Writes `CONNECT <port>\n` and reads `OK <host port>\n`, not a byte more. Returns the host
/// port the VMM chose.
///
/// # Errors
/// [`ConnectError`]; the stream is then of no more use.
pub fn connect_handshake(stream: &mut (impl Read + Write), port: u32) -> Result<u32, ConnectError> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::with_capacity(MAX_ANSWER_BYTES);
    while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER_BYTES {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) if answer.is_empty() => return Err(ConnectError::Refused { port }),
            Ok(0) => break,
            Ok(_) => answer.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ConnectError::Refused { port });
            }
            Err(error) => return Err(error.into()),
        }
    }
    std::str::from_utf8(&answer)
        .ok()
        .and_then(|line| line.strip_prefix("OK ")?.strip_suffix('\n')?.parse().ok())
        .ok_or_else(|| ConnectError::Unexpected {
            port,
            answer: String::from_utf8_lossy(&answer).into_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vmm {
        answer: io::Cursor<&'static [u8]>,
        heard: Vec<u8>,
    }

    impl Read for Vmm {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.answer.read(out)
        }
    }

    impl Write for Vmm {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn vmm(answer: &'static [u8]) -> Vmm {
        Vmm {
            answer: io::Cursor::new(answer),
            heard: Vec::new(),
        }
    }

    #[test]
    fn it_asks_for_the_port_and_leaves_what_follows_the_answer() {
        let mut stream = vmm(b"OK 1073741824\nrest");
        assert_eq!(connect_handshake(&mut stream, 1024).unwrap(), 1_073_741_824);
        assert_eq!(stream.heard, b"CONNECT 1024\n");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn a_closed_connection_means_nothing_listens() {
        assert!(matches!(
            connect_handshake(&mut vmm(b""), 7),
            Err(ConnectError::Refused { port: 7 })
        ));
    }

    #[test]
    fn any_other_answer_is_an_error() {
        for answer in [&b"OK\n"[..], b"OK x\n", b"NO 3\n", b"OK 1", &[b'O'; 100]] {
            assert!(matches!(
                connect_handshake(&mut vmm(answer), 7),
                Err(ConnectError::Unexpected { .. })
            ));
        }
    }
}
