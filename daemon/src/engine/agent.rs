//! Talking to the agent in a sandbox, without holding its VM.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use spore_protocol::{AGENT_PORT, ClientError, connect_handshake};
use spore_types::ErrorCode;
use spore_vmm::guest::Agent;
use spore_vmm::socket;

use super::activity::Use;
use super::sandbox::Sandbox;
use crate::error::{Error, Result};
use crate::scarce::resource;

/// How long an agent that is up may take to answer a connection.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it may take for what is no command and no copy: a tree of many files is removed in minutes where guests
/// are interpreted.
const QUESTION: Duration = Duration::from_secs(600);
/// What the daemon calls itself to agents.
const BUILD: &str = concat!("spored ", env!("CARGO_PKG_VERSION"));

/// Cuts a connection when it is dropped, whoever still uses it: so a command ends whose caller has gone. Until then
/// the sandbox is in use.
#[derive(Debug)]
pub struct Cut {
    stream: UnixStream,
    _use: Option<Use>,
}

impl Drop for Cut {
    fn drop(&mut self) {
        // It can only be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn unreachable(sandbox: &Sandbox, why: impl std::fmt::Display) -> Error {
    // A VM that ended is the better reason.
    match sandbox.changing().ended.clone() {
        Some(cause) => Error::new(ErrorCode::SandboxEnded, format!("the sandbox has ended: {cause}")),
        None => Error::new(
            ErrorCode::GuestUnreachable,
            format!("the agent of sandbox {} cannot be reached: {why}", sandbox.id()),
        ),
    }
}

/// A new connection to a sandbox's agent, and what cuts it. The sandbox is in use meanwhile.
///
/// # Errors
/// `conflict` if it is paused, `sandbox_ended`, `guest_unreachable`, `insufficient_capacity`.
pub fn connect(sandbox: &Sandbox) -> Result<(Agent, Cut)> {
    use_for(sandbox, None)
}

/// The same for a question that is answered at once, if not by each guest: one that takes ten minutes is given up.
///
/// # Errors
/// As [`connect`].
pub fn ask(sandbox: &Sandbox) -> Result<(Agent, Cut)> {
    use_for(sandbox, Some(QUESTION))
}

fn use_for(sandbox: &Sandbox, limit: Option<Duration>) -> Result<(Agent, Cut)> {
    let in_use = sandbox.activity().begin();
    let (agent, mut cut) = visit(sandbox, limit)?;
    cut._use = Some(in_use);
    Ok((agent, cut))
}

/// As [`connect`] for the daemon itself, which is no use. A guest that says nothing for so long is given up.
///
/// # Errors
/// As [`connect`].
pub fn visit(sandbox: &Sandbox, limit: Option<Duration>) -> Result<(Agent, Cut)> {
    sandbox.must_run()?;
    let failed = |why: &dyn std::fmt::Display| unreachable(sandbox, why);
    // That we are short of something says nothing of the guest. Too many who connect at once are told in the same words
    // as too many processes.
    let refused = |error: std::io::Error| match resource(&error) {
        Some("processes") | None => unreachable(sandbox, error),
        Some(_) => error.into(),
    };
    let mut stream = socket::connect(sandbox.vsock()).map_err(refused)?;
    let cut = Cut {
        stream: stream.try_clone().map_err(refused)?,
        _use: None,
    };
    stream
        .set_read_timeout(Some(ANSWER))
        .map_err(|error| failed(&error))?;
    connect_handshake(&mut stream, AGENT_PORT).map_err(|error| failed(&error))?;
    stream.set_read_timeout(limit).map_err(|error| failed(&error))?;
    Ok((Agent::new(stream, BUILD), cut))
}

/// What an error of a conversation means to whoever asked for it.
pub fn explain(sandbox: &Sandbox, error: ClientError) -> Error {
    match error {
        ClientError::Refused(refused) => {
            let kind = format!("{:?}", refused.kind);
            Error::new(ErrorCode::GuestRefused, refused.message).with("kind", camel(&kind))
        }
        ClientError::Local(error) => Error::new(ErrorCode::Cancelled, error.to_string()),
        error => unreachable(sandbox, error),
    }
}

fn camel(name: &str) -> String {
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| first.to_ascii_lowercase().to_string() + letters.as_str())
        .unwrap_or_default()
}
