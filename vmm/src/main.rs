//! `spore-vm`: one virtual machine, as a process. It is started by `spore`, not by hand: its
//! standard input is the control stream (see `spore_vmm::process`).

use std::os::fd::AsFd;
use std::process::ExitCode;

use spore_vmm::{confine, kvm};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // SAFETY: this program has opened nothing yet.
    let closed = unsafe { confine::close_inherited() };
    let filter =
        EnvFilter::try_from_env("SPORE_VM_LOG").unwrap_or_else(|_| EnvFilter::new("warn,virtio_queue=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match closed.map_err(|error| error.to_string()).and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "spore-vm: {error} (this program is started by `spore`, with a control socket as standard input)"
            );
            ExitCode::FAILURE
        }
    }
}

/// The user it is to become, if any.
fn user() -> Result<Option<confine::User>, String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        ["--user", user] => Ok(Some(user.parse()?)),
        other => Err(format!("unknown arguments {other:?}")),
    }
}

/// An owner that the kernel is to spare when memory runs out (`OOMScoreAdjust=` of its unit) has VMs that it is not to
/// spare, though they are its children. See `/proc/PID/oom_score_adj` in proc(5).
fn be_chosen_before_the_owner() -> std::io::Result<()> {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let spared = std::fs::read_to_string(SCORE)?.trim_start().starts_with('-');
    if spared {
        std::fs::write(SCORE, "0")
    } else {
        Ok(())
    }
}

fn run() -> Result<(), String> {
    let user = user()?;
    // Everybody may raise it; where there is no /proc it stays.
    if let Err(error) = be_chosen_before_the_owner() {
        tracing::debug!(%error, "oom_score_adj");
    }
    kvm::hold();
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    let control = control.map_err(|error| error.to_string())?;
    let confinement = confine::apply(user);
    for (part, applied) in confinement.parts() {
        tracing::debug!(part, ?applied);
    }
    spore_vmm::process::server::serve(control, confinement).map_err(|error| error.to_string())
}
