//! What can be wrong with a call.

use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value};

/// What the daemon says is wrong: an `ErrorReply`, also one with a code newer than this client.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The HTTP status; 0 where the error came in a stream.
    pub status: u16,
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// What more there is, by code.
    pub details: Map<String, Value>,
}

impl Refusal {
    /// From the body of an answer that is not a success.
    pub fn parse(status: u16, body: &str) -> Self {
        let reply: Option<Value> = serde_json::from_str(body).ok();
        let found = reply.as_ref().and_then(|reply| Self::of(status, &reply["error"]));
        found.unwrap_or_else(|| Self {
            status,
            code: "internal".to_owned(),
            message: format!("the daemon answered with status {status} and no error that is understood"),
            details: Map::new(),
        })
    }

    /// From an `ErrorBody`.
    pub fn of(status: u16, error: &Value) -> Option<Self> {
        Some(Self {
            status,
            code: error["code"].as_str()?.to_owned(),
            message: error["message"].as_str()?.to_owned(),
            details: error["details"].as_object().cloned().unwrap_or_default(),
        })
    }
}

/// Why a call did not come to its answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon listens at {}: start one with `spore serve`, or say where it is with --socket or SPORE_SOCKET",
        .0.display()
    )]
    NoDaemon(PathBuf),
    /// Somebody listens who is not for us.
    #[error("{}: {source}", .socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The daemon says no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The connection ended in the middle.
    #[error("the daemon broke off {0}")]
    BrokenOff(&'static str),
    /// The connection failed.
    #[error("talking to the daemon: {0}")]
    Wire(String),
    /// The answer is not one that this client knows.
    #[error("the daemon's answer is not understood: {0}")]
    Answer(String),
    /// Our own side failed.
    #[error(transparent)]
    Local(io::Error),
}

impl From<hyper::Error> for ClientError {
    fn from(error: hyper::Error) -> Self {
        // What hyper itself says is short; the cause is what helps.
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Self::Wire(match cause {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reply_is_taken_apart() {
        let body =
            r#"{"error": {"code": "below_floor", "message": "too small", "details": {"floorMB": 1024}}}"#;
        let refusal = Refusal::parse(400, body);
        assert_eq!(
            (refusal.code.as_str(), refusal.message.as_str()),
            ("below_floor", "too small")
        );
        assert_eq!(refusal.details["floorMB"], 1024);
    }

    #[test]
    fn a_code_that_is_not_known_yet_stays_what_it_is() {
        let refusal = Refusal::parse(
            418,
            r#"{"error": {"code": "teapot", "message": "short and stout"}}"#,
        );
        assert_eq!(refusal.code, "teapot");
    }

    #[test]
    fn an_answer_that_is_no_error_reply_is_told_by_its_status() {
        for body in ["", "<html>", "[]", r#"{"error": 3}"#] {
            let refusal = Refusal::parse(502, body);
            assert!(refusal.message.contains("502"), "{body}");
            assert_eq!(refusal.code, "internal");
        }
    }

    #[test]
    fn who_finds_no_daemon_is_told_how_to_get_one() {
        let said = ClientError::NoDaemon("/run/x.sock".into()).to_string();
        assert!(
            said.contains("/run/x.sock") && said.contains("`spore serve`"),
            "{said}"
        );
    }
}
