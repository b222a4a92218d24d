//! `spore exec`: a command in a sandbox, with our standard streams or on our terminal.

use std::io::{self, ErrorKind, IsTerminal, Read, Write, stdin, stdout};
use std::process::ExitCode;

use spore_types::{ExecControl, ExecRequest, ExecResult, ExecSignal, TtySize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::Daemon;
use super::run::{NO_READER, OWN_FAILURE};
use crate::cli::remote::Exec;
use crate::client::exec::{Stream, Wish};
use crate::client::{ClientError, path};
use crate::failure::Failure;
use crate::terminal::{self, RawMode};
use crate::ui;

/// Standard input read at a time, in bytes.
const PIECE: usize = 32 * 1024;
/// Pieces on their way.
const PIECES: usize = 8;
/// The terminal a command has where ours does not say how large it is.
const USUAL: TtySize = TtySize { rows: 24, cols: 80 };

/// Runs it; the exit code is the command's.
pub fn run(daemon: &Daemon, args: &Exec) -> Result<ExitCode, Failure> {
    run_inner(daemon, args).map_err(|failure| failure.with_exit(OWN_FAILURE))
}

fn run_inner(daemon: &Daemon, args: &Exec) -> Result<ExitCode, Failure> {
    let mut request = ExecRequest {
        cmd: args.command.clone(),
        env: args.env.iter().cloned().collect(),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        timeout_seconds: args.timeout,
        ..ExecRequest::default()
    };
    if daemon.json {
        let call = path::of_sandbox(&args.id, "exec");
        let answer = daemon.client.post::<ExecResult>(&call, &request)?;
        ui::line(format_args!("{}", answer.text.trim_end()))?;
        return Ok(ExitCode::from(answer.value()?.exit_code));
    }
    let on_terminal = args.interactive && args.tty;
    if on_terminal && !stdin().is_terminal() {
        let message = "-it: standard input is no terminal; leave -t out";
        return Err(Failure::refused("invalid_request", message));
    }
    if args.tty {
        request.tty = Some(our_size(on_terminal).unwrap_or(USUAL));
    }
    let end = {
        // Put back when this block is left, however that is.
        let _raw = if on_terminal {
            Some(RawMode::enter(stdin()).map_err(Failure::internal)?)
        } else {
            None
        };
        daemon
            .client
            .block_on(converse(daemon, args, &request, on_terminal))?
    };
    match end {
        End::Exited(result) => {
            if result.timed_out {
                ui::tell(format_args!("spore: the command was killed at its time limit"));
            }
            Ok(ExitCode::from(result.exit_code))
        }
        End::NoReader => Ok(ExitCode::from(NO_READER)),
        End::Told(signal) => Ok(ExitCode::from(
            u8::try_from(128 + signal.as_raw_value()).unwrap_or(u8::MAX),
        )),
    }
}

/// The size of the terminal that the command writes to.
fn our_size(on_terminal: bool) -> Option<TtySize> {
    if on_terminal {
        terminal::size(stdin())
    } else {
        terminal::size(stdout())
    }
}

/// How it came to its end.
enum End {
    Exited(ExecResult),
    /// Whoever read our output has gone.
    NoReader,
    /// We are to end, and the command with us.
    Told(SignalKind),
}

async fn converse(
    daemon: &Daemon,
    args: &Exec,
    request: &ExecRequest,
    on_terminal: bool,
) -> Result<End, Failure> {
    let mut signals = Signals::new().map_err(Failure::internal)?;
    let (wishes, wished) = mpsc::channel(PIECES);
    if args.interactive {
        let wishes = wishes.clone();
        // A thread of its own, which nobody waits for: a read of a terminal ends when somebody presses a key.
        std::thread::spawn(move || feed(stdin(), &wishes));
    } else {
        // There is room in an empty channel.
        let _ = wishes.try_send(Wish::Control(ExecControl::StdinEnd));
    }
    let running = daemon.client.exec(&args.id, request, wished, |stream, bytes| {
        let mut out: Box<dyn Write> = match stream {
            Stream::Stdout => Box::new(stdout().lock()),
            Stream::Stderr => Box::new(io::stderr().lock()),
        };
        out.write_all(bytes)?;
        out.flush()
    });
    let mut running = std::pin::pin!(running);
    let mut passed_on = Vec::new();
    loop {
        let came = tokio::select! {
            end = &mut running => return match end {
                Ok(result) => Ok(End::Exited(result)),
                Err(ClientError::Local(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(End::NoReader),
                Err(error) => Err(error.into()),
            },
            came = signals.next() => came,
        };
        let control = if came == SignalKind::window_change() {
            match our_size(on_terminal).filter(|_| args.tty) {
                Some(size) => ExecControl::Resize(size),
                None => continue,
            }
        } else if on_terminal || passed_on.contains(&came) {
            // On a terminal Ctrl-C is a key like others: this one is meant for us. So is a second one.
            return Ok(End::Told(came));
        } else {
            passed_on.push(came);
            ExecControl::Signal(ExecSignal {
                signal: came.as_raw_value(),
            })
        };
        if wishes.try_send(Wish::Control(control)).is_err() && came != SignalKind::window_change() {
            // The command takes no input and so would not hear of it.
            return Ok(End::Told(came));
        }
    }
}

/// Hands over all of an input, and its end.
fn feed(mut input: impl Read, wishes: &mpsc::Sender<Wish>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let wish = match input.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => Wish::Control(ExecControl::StdinEnd),
            Ok(count) => Wish::Input(buffer[..count].to_vec()),
        };
        let last = wish == Wish::Control(ExecControl::StdinEnd);
        if wishes.blocking_send(wish).is_err() || last {
            return;
        }
    }
}

/// The signals that mean something to a command.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    window: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.window.recv() => SignalKind::window_change(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_handed_over_with_its_end() {
        let (give, mut wishes) = mpsc::channel(PIECES);
        let text = vec![b'x'; PIECE + 1];
        feed(&text[..], &give);
        assert_eq!(wishes.try_recv(), Ok(Wish::Input(vec![b'x'; PIECE])));
        assert_eq!(wishes.try_recv(), Ok(Wish::Input(b"x".to_vec())));
        assert_eq!(wishes.try_recv(), Ok(Wish::Control(ExecControl::StdinEnd)));
        drop(give);
        assert!(wishes.try_recv().is_err());
    }

    #[test]
    fn an_input_nobody_wants_is_read_no_further() {
        let (give, wishes) = mpsc::channel(1);
        drop(wishes);
        feed(io::repeat(b'x'), &give);
    }
}
