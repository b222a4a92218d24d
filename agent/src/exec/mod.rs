//! Running commands: from a request to a process ([`mod@spawn`]), through its pipes or its
//! [`terminal`] ([`pump`]), to how it ended.

mod prepare;
mod pump;
mod registers;
mod session;
mod spawn;
mod terminal;
mod user;

use prepare::command;
pub use prepare::prepare;
pub use registers::look as look_at_registers;
pub use session::kill as kill_session;
pub use spawn::{Stdio, spawn};

use std::io;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use spore_protocol::{ExecOutcome, ExecRequest, ExitStatus, Failure, FailureKind, Reply, StdinMode, TtySize};

use crate::conversation::{Agent, Buffers, Conn};
use crate::reaper::Exit;
use pump::{Ended, Pipes, Pump};
use spawn::SpawnError;
use terminal::Terminal;
use user::User;

/// The host hung up or broke the protocol; there is nobody to tell.
#[derive(Debug)]
pub struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl From<spore_protocol::FrameError> for Gone {
    fn from(_: spore_protocol::FrameError) -> Self {
        Self
    }
}

/// Runs a command to its end. Its output is sent, or queued in `buffers`; its outcome is
/// returned.
///
/// # Errors
/// The outer one if the host is gone: the command's process group has been killed then. The
/// inner one if the command was not even tried.
pub fn run(
    agent: &Agent,
    request: &ExecRequest,
    connection: &Conn,
    buffers: &mut Buffers,
) -> Result<Result<ExecOutcome, Failure>, Gone> {
    let started = Instant::now();
    let defaults = agent.defaults.for_exec();
    let user = request.user.as_deref().or(defaults.user.as_deref());
    let prepared = user
        .map(user::resolve)
        .transpose()
        .and_then(|user| prepare(request, &defaults, user));
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return Ok(Err(failure)),
    };
    let opened = match request.tty {
        Some(size) => open_terminal(size, request.stdin, prepared.user.as_ref()),
        None => open_pipes(request.stdin, prepared.user.as_ref())
            .map_err(|error| Failure::from_io("pipes for the command", &error)),
    };
    let (child_end, pipes) = match opened {
        Ok(opened) => opened,
        Err(failure) => return Ok(Err(failure)),
    };
    let wake = buffers.wake()?;
    let oom_before = agent.oom.count();
    let spawned = agent.reaper.spawn(&wake, || spawn(&prepared, &child_end));
    drop(child_end);
    let child = match spawned {
        Ok(child) => child,
        Err(SpawnError::Exec(error)) => {
            let name = command(request, &defaults).first().map_or("", String::as_str);
            return cannot_execute(name, &error, request.tty.is_some(), buffers);
        }
        Err(SpawnError::Chdir(error)) => {
            let cwd = prepared.cwd.as_deref().unwrap_or_default().to_string_lossy();
            return Ok(Err(Failure::from_io(
                format!("working directory {cwd:?}"),
                &error,
            )));
        }
        Err(SpawnError::Terminal(error)) => {
            return Ok(Err(Failure::from_io("controlling terminal", &error)));
        }
        Err(SpawnError::User(error)) => {
            let who = user.unwrap_or_default();
            return Ok(Err(Failure::from_io(format!("become user {who:?}"), &error)));
        }
        Err(SpawnError::Clone(error)) => return Ok(Err(Failure::from_io("new process", &error))),
    };
    let deadline = request
        .time_limit_ms
        .and_then(|limit| started.checked_add(Duration::from_millis(limit)));
    let ended = Pump::new(connection, buffers, &child, &wake, pipes, deadline).run();
    // The thread's next process must not be woken for this one.
    let _ = rustix::io::read(&*wake, &mut [0; 8]);
    let Ended { exit, timed_out } = ended?;
    Ok(Ok(ExecOutcome {
        status: if timed_out {
            ExitStatus::TimedOut
        } else {
            status_of(exit)
        },
        oom_kills: agent.oom.count().saturating_sub(oom_before),
        max_rss_bytes: exit.max_rss_bytes,
    }))
}

/// What a shell would say and return.
fn cannot_execute(
    name: &str,
    error: &io::Error,
    on_terminal: bool,
    buffers: &mut Buffers,
) -> Result<Result<ExecOutcome, Failure>, Gone> {
    let (code, reason) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) if name.contains('/') => (127, "no such file".to_owned()),
        Some(libc::ENOENT | libc::ENOTDIR) => (127, "command not found".to_owned()),
        Some(libc::E2BIG) => {
            return Ok(Err(Failure::new(
                FailureKind::TooLarge,
                "arguments and environment are longer than the guest's kernel takes",
            )));
        }
        Some(libc::ENOMEM | libc::EAGAIN | libc::ENFILE | libc::EMFILE) => {
            return Ok(Err(Failure::from_io(format!("execute {name:?}"), error)));
        }
        _ => (126, error.to_string()),
    };
    let message = format!("spore: {name}: {reason}");
    match on_terminal {
        true => buffers.push(&Reply::Stdout(format!("{message}\r\n").as_bytes()))?,
        false => buffers.push(&Reply::Stderr(format!("{message}\n").as_bytes()))?,
    }
    Ok(Ok(ExecOutcome {
        status: ExitStatus::Code(code),
        oom_kills: 0,
        max_rss_bytes: 0,
    }))
}

fn status_of(exit: Exit) -> ExitStatus {
    if libc::WIFSIGNALED(exit.wait_status) {
        ExitStatus::Signal(libc::WTERMSIG(exit.wait_status))
    } else {
        ExitStatus::Code(u8::try_from(libc::WEXITSTATUS(exit.wait_status)).unwrap_or(u8::MAX))
    }
}

fn open_pipes(stdin: StdinMode, user: Option<&User>) -> io::Result<(Stdio, Pipes)> {
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (child_stdin, stdin) = match stdin {
        StdinMode::None => (
            rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
            None,
        ),
        StdinMode::Piped => {
            let (child_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
            // Only our end: the command must find an ordinary pipe.
            rustix::fs::fcntl_setfl(&stdin, OFlags::NONBLOCK)?;
            (child_stdin, Some(stdin))
        }
    };
    // Who opens /dev/stdout opens the pipe anew, and may do so only as its owner.
    if let Some(user) = user {
        let uid = Some(rustix::fs::Uid::from_raw(user.uid));
        let piped = stdin.is_some().then_some(&child_stdin);
        for end in [&child_stdout, &child_stderr].into_iter().chain(piped) {
            rustix::fs::fchown(end, uid, None)?;
        }
    }
    Ok((
        Stdio::Apart {
            stdin: child_stdin,
            stdout: child_stdout,
            stderr: child_stderr,
        },
        Pipes {
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
            terminal: None,
        },
    ))
}

fn open_terminal(size: TtySize, stdin: StdinMode, user: Option<&User>) -> Result<(Stdio, Pipes), Failure> {
    let (terminal, child_end) = Terminal::open(size, user)?;
    let descriptor = || {
        let descriptor = terminal.descriptor();
        descriptor.map_err(|error| Failure::from_io("terminal for the command", &error))
    };
    let pipes = Pipes {
        stdin: (stdin == StdinMode::Piped).then(descriptor).transpose()?,
        stdout: Some(descriptor()?),
        stderr: None,
        terminal: Some(terminal),
    };
    Ok((Stdio::Terminal(child_end), pipes))
}
