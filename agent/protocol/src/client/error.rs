//! Why a call to the agent did not succeed.

use std::io;

use crate::frame::FrameError;
use crate::hello::HandshakeError;
use crate::message::Failure;

/// Why a call to the agent did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent says no, and why. The connection can be used on.
    #[error("the guest refused: {0}")]
    Refused(#[from] Failure),
    /// The two ends cannot talk.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The agent closed the connection, or the guest is gone.
    #[error("the guest closed the connection")]
    Closed,
    /// A frame could not be written or read, or the stream failed or timed out.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The agent answered with something that is no answer to this request.
    #[error("unexpected reply from the guest: {0}")]
    Unexpected(String),
    /// The caller's own reader or writer failed; the conversation was left in the middle.
    #[error("local input or output failed: {0}")]
    Local(#[source] io::Error),
    /// An earlier call left this connection in the middle of a conversation.
    #[error("this connection was left in the middle of a conversation; open another one")]
    Abandoned,
}

impl ClientError {
    /// Whether a read or write of the stream ran into its time-out.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Frame(FrameError::Io(error))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Self::Closed
            }
            _ => Self::Frame(FrameError::Io(error)),
        }
    }
}
