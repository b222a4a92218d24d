//! `spore run`: fork, grow, run, destroy; by the daemon or by us, and told the same way.

mod local;
mod remote;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::side::{Side, side};
use super::{print_json, streams};
use crate::cli::{Global, Run};
use crate::client::exec::Stream;
use crate::failure::Failure;
use crate::ui;

/// `spore run` itself failed; the same number as docker's.
pub(super) const OWN_FAILURE: u8 = 125;
/// 128 and SIGPIPE, of which a program dies whose output nobody reads.
pub(super) const NO_READER: u8 = 141;
/// What is said of a command that came to its time limit.
pub(super) const TIMED_OUT: &str = "spore: the command was killed at its time limit";

/// Runs the command in a fork of the image that is destroyed afterwards, however it ended.
pub fn run(global: &Global, args: &Run) -> Result<ExitCode, Failure> {
    by_whom(global, args).map_err(|failure| match failure.exit_code() {
        // Refused before anything was started: 2, as everywhere.
        2 => failure,
        _ => failure.with_exit(OWN_FAILURE),
    })
}

fn by_whom(global: &Global, args: &Run) -> Result<ExitCode, Failure> {
    // Only who forks knows where the time went.
    if args.trace {
        return local::run(global, args);
    }
    match side(global)? {
        Side::Alone => local::run(global, args),
        Side::Daemon(daemon) => remote::run(&daemon, args),
    }
}

fn no_command() -> Failure {
    let message = "which command? The image has none of its own: spore run IMAGE -- COMMAND";
    Failure::refused("invalid_request", message)
}

/// Where a command's output goes.
enum Output {
    /// On, as it comes.
    Passed,
    /// Kept for a program.
    Kept {
        /// Standard output.
        stdout: Vec<u8>,
        /// Standard error.
        stderr: Vec<u8>,
    },
}

/// How a command ended.
struct Ended {
    exit_code: u8,
    timed_out: bool,
    oom_kills: u64,
}

impl Output {
    fn new(for_program: bool) -> Self {
        match for_program {
            true => Self::Kept {
                stdout: Vec::new(),
                stderr: Vec::new(),
            },
            false => Self::Passed,
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match (self, stream) {
            (Self::Passed, stream) => return streams::output(stream, bytes),
            (Self::Kept { stdout, .. }, Stream::Stdout) => stdout.extend_from_slice(bytes),
            (Self::Kept { stderr, .. }, Stream::Stderr) => stderr.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// Says how it ended, to a program with what the fork had.
    fn finish(&self, ended: &Ended, had: impl FnOnce() -> Value) -> Result<ExitCode, Failure> {
        match self {
            Self::Passed if ended.timed_out => ui::tell(format_args!("{TIMED_OUT}")),
            Self::Passed => {}
            Self::Kept { stdout, stderr } => {
                let mut told = had();
                told["exitCode"] = json!(ended.exit_code);
                told["timedOut"] = json!(ended.timed_out);
                told["oomKills"] = json!(ended.oom_kills);
                told["stdout"] = json!(String::from_utf8_lossy(stdout));
                told["stderr"] = json!(String::from_utf8_lossy(stderr));
                print_json(&told)?;
            }
        }
        Ok(ExitCode::from(ended.exit_code))
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
