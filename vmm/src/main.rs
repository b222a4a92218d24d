//! `spore-vm`: one virtual machine, as a process. It is started by `spore`, not by hand: its
//! standard input is the control stream (see `spore_vmm::process`).

use std::os::fd::AsFd;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_env("SPORE_VM_LOG").unwrap_or_else(|_| EnvFilter::new("warn,virtio_queue=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let result = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .and_then(spore_vmm::process::server::serve);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "spore-vm: {error} (this program is started by `spore`, with a control socket as standard input)"
            );
            ExitCode::FAILURE
        }
    }
}
