//! Forks that the daemon makes: sandboxes that are there while their command runs.

use std::process::ExitCode;

use serde_json::{Value, json};
use spore_types::{CreateSandbox, ExecRequest, Sandbox};

use super::super::Daemon;
use super::super::sandbox::{network, say_times};
use super::super::streams::{self, End, Signals};
use super::{Ended, OWN_FAILURE, Output, millis, no_command};
use crate::cli::Run;
use crate::client::ClientError;
use crate::failure::Failure;
use crate::ui::{self, micros};

/// After how many seconds the daemon ends a sandbox whose `spore run` was killed before it could.
const FORGOTTEN: u32 = 60;

/// Makes a sandbox, runs the command in it, ends the sandbox. A signal ends all of it.
pub fn run(daemon: &Daemon, args: &Run) -> Result<ExitCode, Failure> {
    let mut output = Output::new(daemon.json);
    let (sandbox, end) = match daemon.client.block_on(live(daemon, args, &mut output))? {
        (Some(sandbox), end) => (sandbox, end),
        (None, end) => return Ok(ExitCode::from(end.code())),
    };
    match &end {
        End::Exited(result) => {
            let ended = Ended {
                exit_code: result.exit_code,
                timed_out: result.timed_out,
                oom_kills: result.oom_kills,
            };
            output.finish(&ended, || had(&sandbox))
        }
        End::NoReader | End::Told(_) => Ok(ExitCode::from(end.code())),
    }
}

/// A sandbox's life. None, if a signal came before it began.
async fn live(daemon: &Daemon, args: &Run, output: &mut Output) -> Result<(Option<Sandbox>, End), Failure> {
    let mut signals = Signals::new().map_err(Failure::internal)?;
    let wanted = wanted(args);
    let sandbox = tokio::select! {
        made = daemon.client.create(&wanted) => made?,
        signal = signals.told() => return Ok((None, End::Told(signal))),
    };
    if daemon.verbose {
        say_times(&sandbox);
    }
    let end = work(daemon, args, &sandbox, &mut signals, output).await;
    let ended = tokio::select! {
        ended = daemon.client.end(&sandbox.id) => ended,
        // Who does not want to wait need not.
        _ = signals.told() => Ok(()),
    };
    match ended {
        Err(ClientError::Refused(refusal)) if refusal.code == "not_found" => {}
        Err(error) => ui::tell(format_args!("spore: sandbox {} may be left: {error}", sandbox.id)),
        Ok(()) => {}
    }
    Ok((Some(sandbox), end?))
}

fn wanted(args: &Run) -> CreateSandbox {
    CreateSandbox {
        image: Some(args.image.clone()),
        memory_mb: args.memory,
        disk_mb: args.disk,
        cpus: Some(args.cpus),
        network: network(&args.network),
        idle_timeout_seconds: Some(FORGOTTEN),
        ..CreateSandbox::default()
    }
}

async fn work(
    daemon: &Daemon,
    args: &Run,
    sandbox: &Sandbox,
    signals: &mut Signals,
    output: &mut Output,
) -> Result<End, Failure> {
    let request = ExecRequest {
        cmd: args.command.clone(),
        env: args.env.iter().cloned().collect(),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        // More than this can say is more than the daemon takes.
        timeout_seconds: args
            .timeout
            .map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
        ..ExecRequest::default()
    };
    let (_wishes, wished) = streams::input(args.interactive);
    let running = daemon
        .client
        .exec(&sandbox.id, &request, wished, |stream, bytes| {
            output.take(stream, bytes)
        });
    tokio::select! {
        end = running => End::of(end).map_err(|error| explain(args, error)),
        signal = signals.told() => Ok(End::Told(signal)),
    }
}

/// Something was started: it is no refusal, unless what was asked for can never be.
fn explain(args: &Run, error: ClientError) -> Failure {
    let code = match &error {
        ClientError::Refused(refusal) => refusal.code.as_str(),
        _ => "",
    };
    match code {
        "guest_refused" if args.command.is_empty() => no_command(),
        "invalid_request" => error.into(),
        _ => Failure::from(error).with_exit(OWN_FAILURE),
    }
}

/// What it had, as far as the daemon tells.
fn had(sandbox: &Sandbox) -> Value {
    let (memory, times) = (&sandbox.memory, &sandbox.times);
    json!({
        "memory": {
            "floorMB": memory.floor_mb,
            "requestedMB": memory.requested_mb,
            "grantedMB": memory.granted_mb,
        },
        "timesMs": {
            "released": millis(micros(times.released_us)),
            "woke": millis(micros(times.woke_us)),
            "ready": millis(micros(times.ready_us)),
        },
    })
}
