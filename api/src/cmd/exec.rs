//! `spore exec`: a command in a sandbox, with our standard streams or on our terminal.

use std::io::{IsTerminal, stdin, stdout};
use std::process::ExitCode;

use spore_types::{ExecControl, ExecRequest, ExecResult, ExecSignal, TtySize};
use tokio::signal::unix::SignalKind;

use super::Daemon;
use super::run::{OWN_FAILURE, TIMED_OUT};
use super::streams::{self, End, Signals};
use crate::cli::remote::Exec;
use crate::client::exec::Wish;
use crate::client::path;
use crate::failure::Failure;
use crate::terminal::{self, RawMode};
use crate::ui;

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
    if let End::Exited(ExecResult { timed_out: true, .. }) = &end {
        ui::tell(format_args!("{TIMED_OUT}"));
    }
    Ok(ExitCode::from(end.code()))
}

/// The size of the terminal that the command writes to.
fn our_size(on_terminal: bool) -> Option<TtySize> {
    if on_terminal {
        terminal::size(stdin())
    } else {
        terminal::size(stdout())
    }
}

async fn converse(
    daemon: &Daemon,
    args: &Exec,
    request: &ExecRequest,
    on_terminal: bool,
) -> Result<End, Failure> {
    let mut signals = Signals::new().map_err(Failure::internal)?;
    let (wishes, wished) = streams::input(args.interactive);
    let running = daemon.client.exec(&args.id, request, wished, streams::output);
    let mut running = std::pin::pin!(running);
    let mut passed_on = Vec::new();
    loop {
        let came = tokio::select! {
            end = &mut running => return Ok(End::of(end)?),
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
