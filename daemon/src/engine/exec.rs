//! Commands in sandboxes.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use spore_protocol::{ExecOutcome, ExitStatus, OutputStream, StdinMode};
use spore_types::{Encoding, ExecRequest, ExecResult, TtySize};

use super::agent::{Cut, connect, explain};
use super::overdue::Overdue;
use super::sandbox::Sandbox;
use crate::error::{Error, Result};
use crate::time::millis;

/// What is kept of each output of a command that is not streamed.
pub const MAX_OUTPUT: usize = 8 << 20;
/// How long a command may run that nobody gave another limit, in seconds.
const DEFAULT_LIMIT: u32 = 3600;
/// The longest that may be asked for.
const MAX_LIMIT: u32 = 86_400;

/// What the agent is asked for.
///
/// # Errors
/// `invalid_request`.
pub fn to_agent(request: &ExecRequest, default_limit: Option<u32>) -> Result<spore_protocol::ExecRequest> {
    let limit = request.timeout_seconds.or(default_limit);
    if let Some(seconds) = limit.filter(|seconds| !(1..=MAX_LIMIT).contains(seconds)) {
        return Err(Error::invalid(format!(
            "timeoutSeconds {seconds}: it must be 1 to {MAX_LIMIT}"
        )));
    }
    Ok(spore_protocol::ExecRequest {
        argv: request.cmd.clone(),
        env: request.env.clone(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
        time_limit_ms: limit.map(|seconds| u64::from(seconds) * 1000),
        tty: request.tty.map(tty),
        ..spore_protocol::ExecRequest::default()
    })
}

/// As the agent has it.
pub fn tty(size: TtySize) -> spore_protocol::TtySize {
    spore_protocol::TtySize {
        rows: size.rows,
        cols: size.cols,
    }
}

/// How a command ended, without its output.
pub fn result(outcome: &ExecOutcome, started: Instant) -> ExecResult {
    ExecResult {
        exit_code: outcome.status.shell_code(),
        signal: match outcome.status {
            ExitStatus::Signal(signal) => Some(signal),
            ExitStatus::Code(_) | ExitStatus::TimedOut => None,
        },
        timed_out: outcome.status == ExitStatus::TimedOut,
        oom_kills: outcome.oom_kills,
        took_ms: millis(started.elapsed()),
        max_rss_bytes: outcome.max_rss_bytes,
        stdout: String::new(),
        stderr: String::new(),
        truncated: false,
    }
}

fn decode(text: &str, encoding: Encoding) -> Result<Vec<u8>> {
    match encoding {
        Encoding::Utf8 => Ok(text.as_bytes().to_vec()),
        Encoding::Base64 => BASE64
            .decode(text)
            .map_err(|error| Error::invalid(format!("stdin is not base64: {error}"))),
    }
}

fn encode(bytes: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Utf8 => String::from_utf8_lossy(bytes).into_owned(),
        Encoding::Base64 => BASE64.encode(bytes),
    }
}

/// A command that is about to run to its end, with all it writes kept.
pub struct Collected {
    request: spore_protocol::ExecRequest,
    stdin: Vec<u8>,
    encoding: Encoding,
}

impl Collected {
    /// Checks what is asked for.
    ///
    /// # Errors
    /// `invalid_request`.
    pub fn new(asked: &ExecRequest) -> Result<Self> {
        if asked.tty.is_some() {
            return Err(Error::invalid(
                "tty: only a stream has a terminal; open a WebSocket",
            ));
        }
        let mut request = to_agent(asked, Some(DEFAULT_LIMIT))?;
        let stdin = match &asked.stdin {
            Some(text) => {
                request.stdin = StdinMode::Piped;
                decode(text, asked.encoding)?
            }
            None => Vec::new(),
        };
        Ok(Self {
            request,
            stdin,
            encoding: asked.encoding,
        })
    }

    /// Runs it. `started` is given what cuts it short.
    ///
    /// # Errors
    /// `guest_refused` if it was not even tried, `timed_out` if its guest does not end it, and what comes between.
    pub fn run(&self, sandbox: &Sandbox, begun: impl FnOnce(Cut)) -> Result<ExecResult> {
        let (mut agent, cut) = connect(sandbox)?;
        begun(cut);
        let (started, overdue) = (Instant::now(), Overdue::of(&self.request));
        let connection = agent.stream().try_clone()?;
        overdue.arm(&connection)?;
        let mut kept = [Vec::new(), Vec::new()];
        let mut truncated = false;
        let mut stdin = &self.stdin[..];
        let outcome = agent.exec(&self.request, &mut stdin, &mut |stream, bytes| {
            let kept = &mut kept[usize::from(stream == OutputStream::Stderr)];
            let room = MAX_OUTPUT - kept.len();
            truncated |= bytes.len() > room;
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
            overdue.arm(&connection)
        });
        let outcome = outcome.map_err(|error| overdue.explain(explain(sandbox, error)))?;
        let [stdout, stderr] = kept.map(|bytes| encode(&bytes, self.encoding));
        Ok(ExecResult {
            stdout,
            stderr,
            truncated,
            ..result(&outcome, started)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        let ended = |status| {
            let outcome = ExecOutcome {
                status,
                oom_kills: 0,
                max_rss_bytes: 0,
            };
            let result = result(&outcome, Instant::now());
            (result.exit_code, result.signal, result.timed_out)
        };
        assert_eq!(ended(ExitStatus::Code(7)), (7, None, false));
        assert_eq!(ended(ExitStatus::Signal(9)), (137, Some(9), false));
        assert_eq!(ended(ExitStatus::TimedOut), (124, None, true));
    }

    #[test]
    fn what_cannot_be_run_is_refused_before_anything_is_asked_of_the_guest() {
        let refused = |request: ExecRequest| Collected::new(&request).err().map(|error| error.to_string());
        let base64 = ExecRequest {
            stdin: Some("%".into()),
            encoding: Encoding::Base64,
            ..ExecRequest::default()
        };
        assert!(refused(base64).is_some_and(|why| why.starts_with("stdin is not base64")));
        let limit = ExecRequest {
            timeout_seconds: Some(0),
            ..ExecRequest::default()
        };
        assert!(refused(limit).is_some_and(|why| why.contains("1 to 86400")));
        assert!(refused(ExecRequest::default()).is_none());
    }
}
