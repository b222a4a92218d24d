//! The first frame each way. Its layout never changes, whatever becomes of the rest.

use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;
use crate::frame::{self, FrameError};

const MAGIC: [u8; 4] = *b"SPOR";

/// Who is speaking: the first frame of a connection, one each way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    magic: [u8; 4],
    /// The sender's [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// The sender's version and build, for people.
    pub build: String,
}

/// Why two ends cannot talk.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other end speaks another version of the protocol.
    #[error(
        "protocol versions differ: we speak {ours}, the other end speaks {theirs} (build {build:?}); rebuild \
         the image with this host's base, or run it on a host of its version"
    )]
    Version {
        /// Our [`PROTOCOL_VERSION`].
        ours: u32,
        /// Theirs.
        theirs: u32,
        /// What the other end calls itself.
        build: String,
    },
    /// The first frame was not a hello.
    #[error("the other end does not speak the agent protocol: {0}")]
    NotAHello(FrameError),
}

impl Hello {
    /// This end's hello; `build` names it for people.
    pub fn new(build: impl Into<String>) -> Self {
        Self {
            magic: MAGIC,
            protocol: PROTOCOL_VERSION,
            build: build.into(),
        }
    }

    /// Reads the other end's hello from a frame's body and checks that we can talk to it.
    ///
    /// # Errors
    /// [`HandshakeError::NotAHello`] for anything else, [`HandshakeError::Version`] for a hello
    /// of another version.
    pub fn accept(body: &[u8]) -> Result<Self, HandshakeError> {
        let hello: Self = frame::decode(body).map_err(HandshakeError::NotAHello)?;
        if hello.magic != MAGIC {
            return Err(HandshakeError::NotAHello(FrameError::Malformed(
                "wrong magic".to_owned(),
            )));
        }
        if hello.protocol != PROTOCOL_VERSION {
            return Err(HandshakeError::Version {
                ours: PROTOCOL_VERSION,
                theirs: hello.protocol,
                build: hello.build,
            });
        }
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(hello: &Hello) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode(hello, &mut out).unwrap();
        out.split_off(4)
    }

    #[test]
    fn our_own_hello_is_accepted() {
        let hello = Hello::new("agent 1");
        assert_eq!(Hello::accept(&body(&hello)).unwrap(), hello);
    }

    #[test]
    fn another_version_is_refused_and_the_error_says_both() {
        let hello = Hello {
            protocol: 77,
            ..Hello::new("from the future")
        };
        let error = Hello::accept(&body(&hello)).unwrap_err();
        assert!(matches!(
            error,
            HandshakeError::Version {
                ours: PROTOCOL_VERSION,
                theirs: 77,
                ..
            }
        ));
        let text = error.to_string();
        assert!(
            text.contains("77") && text.contains(&PROTOCOL_VERSION.to_string()),
            "{text}"
        );
    }

    #[test]
    fn something_else_is_not_a_hello() {
        let hello = Hello {
            magic: *b"HTTP",
            ..Hello::new("x")
        };
        assert!(matches!(
            Hello::accept(&body(&hello)),
            Err(HandshakeError::NotAHello(_))
        ));
        assert!(matches!(
            Hello::accept(b"GET / HTTP/1.1"),
            Err(HandshakeError::NotAHello(_))
        ));
        assert!(matches!(Hello::accept(b""), Err(HandshakeError::NotAHello(_))));
    }
}
