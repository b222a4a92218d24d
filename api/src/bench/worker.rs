//! The program that guests work with (`guest/worker.rs`), as the host drives it.

use std::time::Duration;

use spore_protocol::{ExecEvent, ExecRequest, ExitStatus, OutputStream, StdinMode};
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::{Agent, Guest};

use super::BenchError;

/// The program.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/worker"));
/// Where guests have it.
pub const PATH: &str = "/usr/local/bin/spore-bench-worker";
/// No answer is waited for longer: touching much memory takes a while on a slow host.
const LIMIT: Duration = Duration::from_secs(600);

/// A connection to a guest's agent on which answers are not waited for for ever.
///
/// # Errors
/// [`BenchError`].
pub fn connect(guest: &mut Guest) -> Result<Agent, BenchError> {
    let agent = guest.agent(LIMIT)?;
    let limited = agent.stream().set_read_timeout(Some(LIMIT));
    limited.map_err(|source| BenchError::File {
        path: guest.console(),
        source,
    })?;
    Ok(agent)
}

/// Puts the program into a guest.
///
/// # Errors
/// [`BenchError`].
pub fn install(guest: &mut Guest) -> Result<(), BenchError> {
    Ok(connect(guest)?.write_file(PATH, Some(0o755), &mut &*PROGRAM)?)
}

/// A worker that has touched memory, and keeps it for as long as this lives.
pub struct Holding(#[expect(dead_code, reason = "hanging up ends the worker")] Agent);

/// Has a worker write to every page of `megabytes` MiB.
///
/// # Errors
/// [`BenchError::Worker`] when it does not come to it.
pub fn touch(guest: &mut Guest, megabytes: u32) -> Result<Holding, BenchError> {
    let mut running = Running::start(guest, &["touch", &megabytes.to_string()])?;
    match running.line()?.as_str() {
        "touched" => Ok(Holding(running.agent)),
        other => Err(BenchError::Worker(format!("worker touch said {other:?}"))),
    }
}

/// A worker that watches the clock.
pub struct Watching {
    running: Running,
    millis: u64,
    seen_ns: u64,
}

impl Watching {
    /// Has a worker watch the guest's clock for `millis` milliseconds.
    ///
    /// # Errors
    /// [`BenchError::Worker`] when it does not.
    pub fn start(guest: &mut Guest, millis: u64) -> Result<Self, BenchError> {
        let mut running = Running::start(guest, &["watch", &millis.to_string()])?;
        match running.line()?.as_str() {
            "watching" => Ok(Self {
                running,
                millis,
                seen_ns: monotonic_ns(),
            }),
            other => Err(BenchError::Worker(format!("worker watch said {other:?}"))),
        }
    }

    /// The longest time it saw the clock jump by, in nanoseconds. What it should have seen was over at `until_ns`.
    ///
    /// # Errors
    /// [`BenchError::Worker`] when it may have stopped watching before.
    pub fn longest_gap_ns(mut self, until_ns: u64) -> Result<u64, BenchError> {
        // It began to watch a moment before we were told so.
        let surely_until = self.seen_ns + self.millis.saturating_sub(TOLD_AFTER_MS) * 1_000_000;
        let line = self.running.line()?;
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            _ if until_ns > surely_until => Err(BenchError::Worker(format!(
                "a worker watched the clock for {} ms, which was not long enough",
                self.millis
            ))),
            ["gap", nanos, "looks", _] => nanos
                .parse()
                .map_err(|_| BenchError::Worker(format!("worker watch said {line:?}"))),
            _ => Err(BenchError::Worker(format!("worker watch said {line:?}"))),
        }
    }
}

/// How long a worker's first word may take to us, in milliseconds.
const TOLD_AFTER_MS: u64 = 200;

struct Running {
    agent: Agent,
    output: Vec<u8>,
}

impl Running {
    fn start(guest: &mut Guest, arguments: &[&str]) -> Result<Self, BenchError> {
        let mut agent = connect(guest)?;
        let mut request = ExecRequest::new([PATH].iter().chain(arguments).copied());
        request.stdin = StdinMode::Piped;
        agent.start_exec(&request)?;
        Ok(Self {
            agent,
            output: Vec::new(),
        })
    }

    /// The next line it says.
    fn line(&mut self) -> Result<String, BenchError> {
        loop {
            if let Some(end) = self.output.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.output.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            match self.agent.next_event()? {
                ExecEvent::Output(OutputStream::Stdout | OutputStream::Stderr, bytes) => {
                    self.output.extend(bytes);
                }
                ExecEvent::StdinAck(_) => {}
                ExecEvent::Exited(outcome) => {
                    let said = String::from_utf8_lossy(&self.output).trim().to_owned();
                    let killed = match outcome.oom_kills {
                        0 => "",
                        _ => ", for want of memory",
                    };
                    return Err(BenchError::Worker(match outcome.status {
                        ExitStatus::Signal(signal) => {
                            format!("the worker was killed by signal {signal}{killed}: {said}")
                        }
                        status => format!("the worker ended with {status:?}: {said}"),
                    }));
                }
            }
        }
    }
}
