//! `spore`: builds images in VMs, and runs commands in forks of them.
//!
//! `cli` is what may be said, `cmd` does it, `demo` is the demonstration, `bench` measures, `ui` is how it looks to a
//! person, `client` talks to the daemon. What a program is to read goes to standard output; progress, logs and errors go to standard error.
//! A library only so that tests can use [`leftovers`].

mod bench;
mod cli;
mod client;
mod cmd;
mod demo;
mod failure;
mod interrupt;
pub mod leftovers;
mod network;
mod scratch;
mod terminal;
mod timeline;
mod ui;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::Cli;

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("SPORE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Plain lines in a pipe.
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match cmd::run(&cli) {
        Ok(code) => code,
        Err(failure) => {
            failure.report(cli.global.json);
            ExitCode::from(failure.exit_code())
        }
    }
}
