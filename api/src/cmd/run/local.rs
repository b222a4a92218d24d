//! Forks that we make, which are our own processes and end with us.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use spore_builder::Plugged;
use spore_protocol::{ClientError, ExecOutcome, ExecRequest, ExitStatus, OutputStream, StdinMode};
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::{Agent, Granted, Guest};
use spore_vmm::machine::Identity;

use super::super::host;
use super::{Ended, NO_READER, Output, millis, no_command};
use crate::cli::{Global, Run};
use crate::client::exec::Stream;
use crate::failure::Failure;
use crate::timeline::Timeline;
use crate::ui::{self, BuildProgress};

/// How long a fork may take to its agent's first answer.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Forks the image, runs the command in the fork, destroys the fork.
pub fn run(global: &Global, args: &Run) -> Result<ExitCode, Failure> {
    let host = host(global)?;
    let image = host.store().find_record(&args.image)?;
    spore_vmm::kvm::open().map_err(spore_builder::BuildError::from)?;
    let checkpoint = spore_builder::build::checkpoint_for(
        &host,
        &image,
        args.memory.unwrap_or(0),
        Some(args.cpus),
        &mut BuildProgress::new(),
    )?;
    let checkpoint = host.store().open_checkpoint(&checkpoint)?;
    let max_mb = checkpoint.manifest.max_mb();
    if let Some(asked) = args.memory.filter(|asked| *asked > max_mb) {
        let message = format!("--memory {asked}: an image's forks have at most {max_mb} MiB");
        return Err(Failure::refused("invalid_request", message));
    }
    let has_mb = checkpoint.manifest.disk_mb();
    if let Some(asked) = args.disk.filter(|asked| *asked < has_mb) {
        let message = format!("--disk {asked}: the image's disk has {has_mb} MiB, and disks only grow");
        return Err(Failure::refused("invalid_request", message));
    }

    let started = Instant::now();
    let asked_ns = monotonic_ns();
    let plugged = host
        .plug(&args.network)
        .map_err(spore_builder::BuildError::from)?;
    let who = Plugged::someone(plugged.as_ref(), Identity::default());
    let mut guest = Guest::fork_as(host.store(), &checkpoint, who)?;
    let mut agent = guest.agent(READY_LIMIT)?;
    agent.ping().map_err(|error| guest.explain(error))?;
    let ready = started.elapsed();
    let answered_ns = monotonic_ns();
    if args.command.is_empty() {
        let own = agent
            .get_defaults()
            .map_err(|error| guest.explain(error))?
            .command;
        if own.is_empty() {
            return Err(no_command());
        }
    }
    let floor = checkpoint.manifest.floor_mb;
    let granted = guest.resize(&mut agent, args.memory.unwrap_or(floor))?;
    let disk = match args.disk.filter(|asked| *asked > has_mb) {
        Some(asked) => Some(guest.grow_disk(&mut agent, asked)?),
        None => None,
    };
    if args.trace {
        let timeline = Timeline::new(asked_ns, guest.trace(), &[("agent answers", answered_ns)]);
        timeline
            .lines()
            .iter()
            .for_each(|line| ui::tell(format_args!("{line}")));
    }
    if global.verbose > 0 {
        say_times(&guest, ready, &granted);
        if let Some(disk) = &disk {
            ui::tell(format_args!(
                "disk: {} MiB, of which files can have {} and {} are free, in {} ms",
                disk.disk_mb, disk.total_mb, disk.free_mb, disk.took_ms
            ));
        }
    }
    let mut output = Output::new(global.json);
    let outcome = exec(args, &mut agent, &mut |stream, bytes| {
        let stream = match stream {
            OutputStream::Stdout => Stream::Stdout,
            OutputStream::Stderr => Stream::Stderr,
        };
        output.take(stream, bytes)
    });
    let outcome = match outcome {
        // Whoever read what the command says has gone: quietly, as every program at the head of a pipe.
        Err(ClientError::Local(error)) if error.kind() == ErrorKind::BrokenPipe => {
            return Ok(ExitCode::from(NO_READER));
        }
        outcome => outcome.map_err(|error| explain(&mut guest, args, error))?,
    };
    let ended = Ended {
        exit_code: outcome.status.shell_code(),
        timed_out: outcome.status == ExitStatus::TimedOut,
        oom_kills: outcome.oom_kills,
    };
    let times = guest.times();
    output.finish(&ended, || {
        json!({
            "memory": granted,
            "disk": disk,
            "timesMs": {
                "released": millis(times.released),
                "woke": times.woke.map(millis),
                "ready": times.ready.map(millis),
                "agent": millis(ready),
            },
        })
    })
}

fn exec(
    args: &Run,
    agent: &mut Agent,
    sink: &mut dyn FnMut(OutputStream, &[u8]) -> std::io::Result<()>,
) -> Result<ExecOutcome, ClientError> {
    let mut request = ExecRequest::new(&args.command);
    request.env = args.env.iter().cloned().collect();
    request.cwd.clone_from(&args.workdir);
    request.user.clone_from(&args.user);
    request.time_limit_ms = args.timeout.map(|seconds| seconds * 1000);
    if args.interactive {
        request.stdin = StdinMode::Piped;
    }
    agent.exec(&request, &mut std::io::stdin(), sink)
}

fn explain(guest: &mut Guest, args: &Run, error: ClientError) -> Failure {
    match error {
        // The agent refused the request itself: what was asked is wrong, not the guest.
        ClientError::Refused(refused) => {
            let command = match &args.command[..] {
                [] => "the image's command".to_owned(),
                words => words.join(" "),
            };
            Failure::internal(format!("{command}: {refused}"))
        }
        error => guest.explain(error).into(),
    }
}

fn say_times(guest: &Guest, ready: Duration, granted: &Granted) {
    let times = guest.times();
    ui::tell(format_args!(
        "fork {}: state set (T1) {}, first act (T2) {}, identity repaired (READY) {}, agent answers {}",
        guest.id(),
        ui::took(times.released),
        times.woke.map_or_else(|| "-".to_owned(), ui::took),
        times.ready.map_or_else(|| "-".to_owned(), ui::took),
        ui::took(ready)
    ));
    ui::tell(format_args!(
        "memory: floor {} MiB, requested {}, granted {}, MemTotal {}, in {} ms",
        granted.floor_mb, granted.requested_mb, granted.granted_mb, granted.mem_total_mb, granted.took_ms
    ));
}
