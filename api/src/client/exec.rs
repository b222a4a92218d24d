//! A command in a sandbox with its input and output as they come: a WebSocket.

use futures_util::{SinkExt, StreamExt};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use spore_types::{ExecControl, ExecRequest, ExecResult};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::error::Refusal;
use super::{Client, ClientError, http, path};

/// What is said to a command that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Standard input, at most 64 KiB at a time.
    Input(Vec<u8>),
    /// Something else.
    Control(ExecControl),
}

/// Where a piece of output belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What the daemon said.
#[derive(Debug)]
enum Said {
    Output(Stream, Vec<u8>),
    End(ExecResult),
    Nothing,
}

const WHAT: &str = "the command";

impl From<WsError> for ClientError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed => Self::BrokenOff(WHAT),
            error => Self::Wire(error.to_string()),
        }
    }
}

impl Client {
    /// Runs a command to its end. What `wishes` has is sent to it; the closing of `wishes` says nothing. Whoever drops
    /// the future ends the command.
    ///
    /// # Errors
    /// As of every call; those of `output` are [`ClientError::Local`].
    pub async fn exec(
        &self,
        id: &str,
        request: &ExecRequest,
        mut wishes: mpsc::Receiver<Wish>,
        mut output: impl FnMut(Stream, &[u8]) -> std::io::Result<()>,
    ) -> Result<ExecResult, ClientError> {
        let mut socket = self.upgrade(&path::of_sandbox(id, "exec")).await?;
        socket.send(text(request)?).await?;
        let (mut to, mut from) = socket.split();
        let telling = async {
            while let Some(wish) = wishes.recv().await {
                let message = match wish {
                    Wish::Input(bytes) => Message::Binary(bytes.into()),
                    Wish::Control(control) => text(&control)?,
                };
                // The command has ended: its report says how, and is on its way.
                if to.send(message).await.is_err() {
                    break;
                }
            }
            std::future::pending::<Result<ExecResult, ClientError>>().await
        };
        let hearing = async {
            while let Some(message) = from.next().await {
                match understand(message?)? {
                    Said::Output(stream, bytes) => output(stream, &bytes).map_err(ClientError::Local)?,
                    Said::End(result) => return Ok(result),
                    Said::Nothing => {}
                }
            }
            Err(ClientError::BrokenOff(WHAT))
        };
        // Both at once: a command that takes no input still has its output taken.
        tokio::select! {
            end = hearing => end,
            failed = telling => failed,
        }
    }

    async fn upgrade(
        &self,
        call: &str,
    ) -> Result<WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, ClientError> {
        let key = generate_key();
        let headers = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", key.as_str()),
        ];
        let sent = http::send(&self.socket, Method::GET, call, &headers, http::nothing());
        let response = http::good(sent.await?).await?;
        let accepted = response.headers().get("sec-websocket-accept");
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accepted
                .is_none_or(|accepted| accepted.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes())
        {
            return Err(ClientError::Answer("it is no WebSocket".to_owned()));
        }
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
    }
}

fn text(value: &impl serde::Serialize) -> Result<Message, ClientError> {
    let text = serde_json::to_string(value).map_err(|error| ClientError::Local(error.into()))?;
    Ok(Message::Text(text.into()))
}

fn understand(message: Message) -> Result<Said, ClientError> {
    let unknown = |what: &str| Err(ClientError::Answer(what.to_owned()));
    match message {
        Message::Binary(bytes) => match bytes.split_first() {
            Some((1, output)) => Ok(Said::Output(Stream::Stdout, output.to_vec())),
            Some((2, output)) => Ok(Said::Output(Stream::Stderr, output.to_vec())),
            _ => unknown("output of no stream"),
        },
        Message::Text(text) => {
            let report: serde_json::Value = match serde_json::from_str(&text) {
                Ok(report) => report,
                Err(error) => return unknown(&error.to_string()),
            };
            match report["type"].as_str() {
                Some("exit") => match serde_json::from_value(report) {
                    Ok(result) => Ok(Said::End(result)),
                    Err(error) => unknown(&error.to_string()),
                },
                Some("error") => match Refusal::of(0, &report) {
                    Some(refusal) => Err(ClientError::Refused(refusal)),
                    None => unknown("an error that does not say which"),
                },
                // There may be new ones.
                _ => Ok(Said::Nothing),
            }
        }
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(Said::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use spore_types::{ErrorBody, ErrorCode, ExecReport};

    use super::*;

    #[test]
    fn the_first_byte_says_which_output() {
        let said = understand(Message::Binary(vec![2, b'h', b'i'].into())).unwrap();
        assert!(matches!(said, Said::Output(Stream::Stderr, bytes) if bytes == b"hi"));
        for bad in [vec![], vec![3, b'x']] {
            assert!(understand(Message::Binary(bad.into())).is_err());
        }
    }

    #[test]
    fn the_last_message_is_the_end_or_why_there_is_none() {
        let result = ExecResult {
            exit_code: 7,
            signal: None,
            timed_out: false,
            oom_kills: 0,
            took_ms: 1,
            max_rss_bytes: 0,
            stdout: String::new(),
            stderr: String::new(),
            truncated: false,
        };
        let said = understand(text(&ExecReport::Exit(result)).unwrap()).unwrap();
        assert!(matches!(said, Said::End(result) if result.exit_code == 7));
        let error = ErrorBody {
            code: ErrorCode::GuestRefused,
            message: "no such directory".to_owned(),
            details: serde_json::Map::new(),
        };
        let failed = understand(text(&ExecReport::Error(error)).unwrap()).unwrap_err();
        assert!(matches!(failed, ClientError::Refused(refusal) if refusal.code == "guest_refused"));
    }

    #[test]
    fn a_report_of_a_newer_daemon_is_passed_over_and_nonsense_is_not() {
        let newer = Message::Text(r#"{"type": "progress"}"#.into());
        assert!(matches!(understand(newer), Ok(Said::Nothing)));
        for bad in ["", "{", r#"{"type": "exit"}"#, r#"{"type": "error"}"#] {
            assert!(understand(Message::Text(bad.into())).is_err(), "{bad}");
        }
    }
}
