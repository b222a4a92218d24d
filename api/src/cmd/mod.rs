//! The commands.

mod base;
mod bench;
mod build;
mod cache;
mod checkpoint;
mod cp;
mod demo;
mod doctor;
mod events;
mod exec;
mod generate;
mod image;
mod node;
mod run;
mod sandbox;
mod serve;
mod side;
mod streams;
mod top;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use spore_builder::Host;

use crate::cli::remote::Remote;
use crate::cli::{Cli, Command, Global};
use crate::client::{Answer, Client};
use crate::failure::Failure;
use crate::ui;

/// Does what was asked; the exit code is that of a command in a guest, where there is one.
pub fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    match &cli.command {
        Command::Build(args) => build::run(&cli.global, args),
        Command::Images => image::list(&cli.global),
        Command::Image(args) => image::run(&cli.global, args),
        Command::Cache(args) => cache::run(&cli.global, args),
        Command::Base(args) => base::run(&cli.global, args),
        Command::Run(args) => run::run(&cli.global, args),
        Command::Bench(args) => bench::run(&cli.global, args),
        Command::Demo(args) => demo::run(&cli.global, args),
        Command::Doctor => doctor::run(&cli.global),
        Command::Serve(args) => serve::run(&cli.global, args),
        Command::Remote(remote) => ask(&cli.global, remote),
        Command::Completions { shell } => generate::completions(*shell),
        Command::Man(args) => generate::manual(args),
    }
}

/// Asks the daemon.
fn ask(global: &Global, remote: &Remote) -> Result<ExitCode, Failure> {
    let daemon = Daemon::new(global)?;
    match remote {
        Remote::Exec(args) => return exec::run(&daemon, args),
        Remote::Create(args) => sandbox::create(&daemon, args),
        Remote::Ps(args) => sandbox::list(&daemon, args),
        Remote::Cp(args) => cp::run(&daemon, args),
        Remote::Resize { id, memory } => sandbox::resize(&daemon, id, *memory),
        Remote::Fork(args) => sandbox::fork(&daemon, args),
        Remote::Checkpoint(args) => checkpoint::take(&daemon, args),
        Remote::Checkpoints { action } => checkpoint::run(&daemon, action.as_ref()),
        Remote::Pause { id } => sandbox::act(&daemon, id, "pause"),
        Remote::Resume { id } => sandbox::act(&daemon, id, "resume"),
        Remote::Rm { ids, all } => sandbox::remove(&daemon, ids, *all),
        Remote::Logs { id } => sandbox::logs(&daemon, id),
        Remote::Host { action } => node::run(&daemon, action.as_ref()),
        Remote::Events { after } => events::follow(&daemon, *after),
        Remote::Top { once } => top::run(&daemon, *once),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The daemon, and how its answers are told.
struct Daemon {
    client: Client,
    json: bool,
    verbose: bool,
}

impl Daemon {
    /// At the socket that was said; nothing is asked yet.
    fn new(global: &Global) -> Result<Self, Failure> {
        Ok(Self {
            client: Client::new(&global.socket)?,
            json: global.json,
            verbose: global.verbose > 0,
        })
    }

    /// Prints an answer as it came, for programs, or understands it for `told`.
    fn tell<T: serde::de::DeserializeOwned>(
        &self,
        answer: &Answer<T>,
        told: impl FnOnce(T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.json {
            return ui::line(format_args!("{}", answer.text.trim_end()));
        }
        told(answer.value()?)
    }
}

fn user_dir(chosen: Option<&PathBuf>, xdg: &str, below_home: &str) -> Result<PathBuf, Failure> {
    if let Some(chosen) = chosen {
        return Ok(chosen.clone());
    }
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set(xdg)
        .or_else(|| set("HOME").map(|home| home.join(below_home)))
        .map(|dir| dir.join("spore"))
        .ok_or_else(|| {
            Failure::refused(
                "invalid_request",
                "HOME is not set: say where with --data and --cache",
            )
        })
}

fn data_dir(global: &Global) -> Result<PathBuf, Failure> {
    let dir = user_dir(global.data.as_ref(), "XDG_DATA_HOME", ".local/share")?;
    std::path::absolute(&dir).map_err(Failure::internal)
}

fn cache_dir(global: &Global) -> Result<PathBuf, Failure> {
    user_dir(global.cache.as_ref(), "XDG_CACHE_HOME", ".cache")
}

fn host(global: &Global) -> Result<Host, Failure> {
    host_in(global, &data_dir(global)?)
}

/// With another data directory than the user's.
fn host_in(global: &Global, data: &Path) -> Result<Host, Failure> {
    let host = Host::open(data, &cache_dir(global)?, global.kernel.as_deref())?;
    Ok(host.with_network(spore_network::Config {
        range: global.network_range,
        ..spore_network::Config::default()
    }))
}

fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    ui::line(format_args!("{value:#}"))
}
