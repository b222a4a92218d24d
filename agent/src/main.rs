//! The agent: the program inside the guest, PID 1 of our bases.
//!
//! It mounts what a Linux system expects ([`boot`]), reaps every orphan ([`reaper`]), and serves
//! the host's requests on a vsock port ([`serve`], [`conversation`]): running commands
//! ([`exec`]), files ([`files`]), memory and health ([`status`]), its network ([`network`]), sleeping
//! to be checkpointed and waking as somebody else ([`fork_port`], [`views`], [`hooks`]).
//!
//! It is written for guests in which the kernel is slow: a system call may cost a quarter of a
//! millisecond and a fresh page more than a whole one. So it has no runtime, no polling, no
//! timers, few threads, and it counts its system calls where a command is run.
//!
//! `spore-agent --test SOCKET [--defaults FILE] [--network INTERFACE]` serves the same requests as an ordinary process
//! on a Unix socket, without mounts and without power over the machine but for that interface: the
//! tests run it so.

mod boot;
mod conversation;
mod defaults;
mod disk;
mod exec;
mod files;
mod fork_port;
mod hooks;
mod integrity;
mod network;
mod power;
mod reaper;
mod serve;
mod status;
mod sys;
mod views;
mod wake;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use crate::conversation::Agent;
use crate::defaults::Defaults;
use crate::network::Networking;
use crate::views::Views;

/// Where the defaults of every exec are kept.
const DEFAULTS_FILE: &str = "/etc/spore/exec.json";

/// Version and build, as the hello and the status say them.
const BUILD: &str = match option_env!("SPORE_AGENT_BUILD") {
    Some(build) => build,
    None => concat!("spore-agent ", env!("CARGO_PKG_VERSION"), " (dev)"),
};

fn main() -> ExitCode {
    if std::process::id() == 1 {
        run_as_init()
    } else {
        run_as_process()
    }
}

/// PID 1 must not end, by return or by panic: the kernel would panic.
fn run_as_init() -> ! {
    sys::report_panics();
    sys::tune_memory();
    sys::keep_inherited_descriptors();
    // What is missing after a panic in here, the host will find out from us.
    let network = Networking::of_the_machine();
    let views = catch_unwind(AssertUnwindSafe(|| boot::boot(&network))).unwrap_or_default();
    exec::look_at_registers();
    let defaults = Defaults::load(DEFAULTS_FILE.into());
    let agent: &'static Agent = Box::leak(Box::new(Agent::new(defaults, views, network, true)));
    let thread = std::thread::Builder::new()
        .name("listen".to_owned())
        .stack_size(serve::STACK_BYTES);
    let listening = thread.spawn(move || {
        serve::forever(
            agent,
            Arc::new(sys::listen_vsock_until_it_works(spore_protocol::AGENT_PORT)),
        );
    });
    match listening {
        Ok(_) => eprintln!("{BUILD}: ready"),
        Err(error) => eprintln!("{BUILD}: cannot start a thread: {error}"),
    }
    loop {
        let Err(_) = catch_unwind(AssertUnwindSafe(|| agent.reaper.run()));
    }
}

/// The same service as an ordinary process.
fn run_as_process() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (mut socket, mut defaults, mut interface) = (None, PathBuf::from(DEFAULTS_FILE), None);
    while let Some(argument) = arguments.next() {
        match (argument.to_str(), arguments.next()) {
            (Some("--version"), None) => {
                println!("{BUILD}");
                return ExitCode::SUCCESS;
            }
            (Some("--test"), Some(path)) => socket = Some(path),
            (Some("--defaults"), Some(path)) => defaults = path.into(),
            (Some("--network"), Some(name)) => interface = name.into_string().ok(),
            _ => socket = None,
        }
    }
    let Some(socket) = socket else {
        eprintln!(
            "usage: spore-agent --test SOCKET [--defaults FILE] [--network INTERFACE] | --version; in a guest it is PID 1"
        );
        return ExitCode::from(2);
    };
    sys::report_panics();
    sys::forget_inherited_signals();
    sys::keep_inherited_descriptors();
    let listener = match std::os::unix::net::UnixListener::bind(&socket) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("spore-agent: {}: {error}", socket.display());
            return ExitCode::FAILURE;
        }
    };
    sys::adopt_orphans();
    if let Err(error) = std::env::set_current_dir("/") {
        eprintln!("spore-agent: /: {error}");
        return ExitCode::FAILURE;
    }
    let agent: &'static Agent = Box::leak(Box::new(Agent::new(
        Defaults::load(defaults),
        Views::default(),
        Networking::of_a_process(interface),
        false,
    )));
    serve::forever(agent, Arc::new(listener.into()));
    agent.reaper.run()
}
