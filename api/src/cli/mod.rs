//! The command line.

pub mod remote;

use std::path::{Component, Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use ipnet::Ipv4Net;
use spore_network::Policy;

use crate::bench::source::Arm;

/// Build big, sleep small, wake instantly, grow on demand: images built in VMs, forked in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "spore", version, max_term_width = 100, after_help = WHO_DOES_IT)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const WHO_DOES_IT: &str = "create, ps, exec, cp, resize, fork, checkpoint, checkpoints, pause, resume, rm, logs, host, \
events and top ask the daemon (`spore serve`). So do build, images, image and run if one listens at --socket (with \
--data, if it serves that directory); otherwise they work on the data directory themselves. cache, base, demo and bench \
always do.";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Where images are kept [default: $XDG_DATA_HOME/spore or ~/.local/share/spore]
    #[arg(long, global = true, value_name = "DIR", env = "SPORE_DATA")]
    pub data: Option<PathBuf>,
    /// Where kernels and bases are kept [default: $XDG_CACHE_HOME/spore or ~/.cache/spore]
    #[arg(long, global = true, value_name = "DIR", env = "SPORE_CACHE")]
    pub cache: Option<PathBuf>,
    /// Addresses for guests on a network: two for each
    #[arg(
        long,
        global = true,
        value_name = "CIDR",
        env = "SPORE_NETWORK_RANGE",
        default_value = "172.30.0.0/16"
    )]
    pub network_range: Ipv4Net,
    /// Where the daemon listens
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SPORE_SOCKET",
        default_value = "/run/spore/spore.sock"
    )]
    pub socket: PathBuf,
    /// Boot this kernel (uncompressed ELF or bzImage) instead of ours
    #[arg(long, global = true, value_name = "FILE", env = "SPORE_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a manifest
    Build(Build),
    /// List images
    Images,
    /// Work with one image
    #[command(subcommand)]
    Image(Image),
    /// Look at and prune what building remembers
    #[command(subcommand)]
    Cache(Cache),
    /// Work with the bases that images start from
    #[command(subcommand)]
    Base(Base),
    /// Run a command in a fork of an image that is destroyed afterwards
    Run(Run),
    /// Show the whole idea at work, with proofs
    Demo(Demo),
    /// Measure forks, live forks, growing and checkpoints on this host
    #[command(subcommand)]
    Bench(Bench),
    /// Say whether this host is ready, and what is missing
    Doctor,
    /// Run the host daemon: HTTP on a Unix socket
    Serve(Serve),
    /// What is asked of the daemon.
    #[command(flatten)]
    Remote(remote::Remote),
    /// Print a shell's completions
    Completions {
        /// Which shell's
        shell: Shell,
    },
    /// Print the manual page, or write those of all commands
    Man(remote::Man),
}

/// Run the host daemon: HTTP on a Unix socket. Stopped by SIGTERM or SIGINT.
///
/// It listens at `--socket`; a socket from systemd is used instead if there is one.
#[derive(Debug, Args)]
pub struct Serve {
    /// Memory kept for the host itself, in MiB
    #[arg(long, value_name = "MB", default_value_t = 1024)]
    pub reserve: u64,
    /// By how much the rest is promised to sandboxes: 1 promises what there is
    #[arg(long, value_name = "FACTOR", default_value_t = 4.0, value_parser = overcommit)]
    pub overcommit: f64,
    /// Sandboxes at once
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub max_sandboxes: u32,
    /// Builds at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_builds: u32,
    /// End sandboxes that nobody has used for this many seconds, unless they say otherwise [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=2_592_000))]
    pub idle_timeout: Option<u32>,
    /// Hang up on clients that stop reading an answer, or sending a file, for this many seconds; who reads less than
    /// 160 KiB in it counts as stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(10..=86_400))]
    pub client_timeout: u32,
    /// Control group below which VMs have theirs, for example `spore` [default: the daemon's own]
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub cgroup: Option<PathBuf>,
    /// Templates kept loaded
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub templates: u16,
    /// Shells kept armed in all
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub shells: u16,
    /// Shells kept armed of one template
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub shells_per_template: u16,
    /// Print the interface as OpenAPI instead
    #[arg(long)]
    pub openapi: bool,
}

fn overcommit(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.1..=100.0).contains(&factor) => Ok(factor),
        _ => Err("it must be 0.1 to 100".into()),
    }
}

fn group(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text.trim_start_matches('/'));
    let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
    match normal && path != Path::new("") {
        true => Ok(path),
        false => Err("it must be a path below the root of control groups, without `.` and `..`".into()),
    }
}

/// Build an image from a manifest: by the daemon if there is one, otherwise into the data directory.
#[derive(Debug, Args)]
pub struct Build {
    /// The manifest, a JSON file; `-` for standard input
    pub file: PathBuf,
    /// Run every step, also those whose disk is known from earlier builds
    #[arg(long)]
    pub no_cache: bool,
    /// How long one step may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub step_timeout: u64,
    /// What the steps reach: `nat` (everything beyond this host), `none`, or a list as `spore run` takes it [default:
    /// nat where this host allows it]
    #[arg(long, value_name = "POLICY", value_parser = crate::network::parse)]
    pub network: Option<Policy>,
}

/// Look at and prune what building remembers: the disk after each step.
#[derive(Debug, Subcommand)]
pub enum Cache {
    /// List the steps, the most recently used first, and what the disk gains if they go
    Du,
    /// Forget steps, all of them unless told which; never what an image, a checkpoint or a running VM needs
    Prune(PruneArgs),
}

/// Which steps go.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Those that were not used for so many hours
    #[arg(long, value_name = "HOURS")]
    pub older_than: Option<u64>,
    /// The least recently used, until what only steps need takes no more than this
    #[arg(long, value_name = "MB")]
    pub keep_mb: Option<u64>,
}

/// Work with one image.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Remove images, by name, id or the first digits of an id
    Rm {
        /// Which
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show all that is known of an image
    Show {
        /// Which
        image: String,
    },
}

/// Work with the bases that images start from.
#[derive(Debug, Subcommand)]
pub enum Base {
    /// Build a base from its recipe, or find it built
    Build {
        /// Which: the name of a directory with a recipe (see docs/bases.md)
        name: String,
        /// Ask the archive for newer packages
        #[arg(long)]
        refresh: bool,
    },
    /// Make a base of a container image
    Import(BaseImport),
    /// List bases
    List,
    /// Remove bases; images built on them stay
    Rm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Make a base of a container image.
#[derive(Debug, Args)]
pub struct BaseImport {
    /// oci:DIR[:TAG], an OCI image layout, or docker-archive:FILE[:REFERENCE], as `docker save` writes it
    pub source: String,
    /// What it is to be called [default: as the directory or file]
    #[arg(long)]
    pub name: Option<String>,
    /// Size of its disk in MiB
    #[arg(long, value_name = "MB", default_value_t = 20_480, value_parser = clap::value_parser!(u64).range(256..=1_048_576))]
    pub disk_mb: u64,
    /// Refuse an image with more bytes than this in its layers when they are unpacked
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 30)]
    pub max_bytes: u64,
    /// Refuse an image with more entries than this in its layers
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    pub max_entries: u64,
}

/// Run a command in a fork of an image that is destroyed afterwards: by the daemon if there is one.
#[derive(Debug, Args)]
pub struct Run {
    /// Name, id or the first digits of an id
    pub image: String,
    /// Memory in MiB; less than the image's floor is the floor [default: the floor]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory: Option<u32>,
    /// Size of the disk in MiB; the image's is the least there can be [default: the image's]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..=spore_vmm::guest::MAX_DISK_MB))]
    pub disk: Option<u64>,
    /// vCPUs; the first run with a new number boots the image once more
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub cpus: u8,
    /// Set a variable, over those of the image
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Run in this directory instead of the image's
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run as this user instead of the image's: `user`, `uid`, `user:group` or `uid:gid`
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Kill the command and all it started after this many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub timeout: Option<u64>,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Print on standard error where each microsecond of the fork went; it is made without the daemon then
    #[arg(long)]
    pub trace: bool,
    /// The command and its arguments [default: the image's own, if it has one]
    #[arg(last = true)]
    pub command: Vec<String>,
    /// What it reaches: `none`, `nat` (everything beyond this host), or a list of what it may, e.g.
    /// `example.com:443,198.51.100.0/24`
    #[arg(long, value_name = "POLICY", default_value = "none", value_parser = crate::network::parse)]
    pub network: Policy,
}

/// Show the whole idea at work, with proofs.
#[derive(Debug, Args)]
pub struct Demo {
    /// Fill 90 % of the grown memory instead of 256 MB
    #[arg(long)]
    pub full: bool,
}

/// Measure on this host.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// A daemon that runs (`--socket`): what it adds to a fork, how much it answers, what it keeps
    Api {
        /// Name or id of an image that it has
        #[arg(long)]
        image: String,
        /// Creates without a command and with one, of each at each concurrency
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// How many at once, in turn
        #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,16,64", value_parser = clap::value_parser!(u16).range(1..=256))]
        concurrency: Vec<u16>,
        /// Creates and deletes between two looks at what the daemon has; 0: no look
        #[arg(long, value_name = "N", default_value_t = 1000)]
        cycles: u32,
    },
    /// Forks: how long they take, what they cost, how many can be had at once
    Fork(BenchFork),
    /// Live forks: how long the parent stands still, as the host and as a process in it sees it
    LiveFork {
        /// Of what
        #[command(flatten)]
        of: BenchOf,
        /// vCPUs of the guest; with one, what watches the clock in it also waits for the agent
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
        cpus: u8,
        /// Live forks at each size
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// Memory that a process in the guest has touched, in MiB
        #[arg(long, value_name = "MB,…", value_delimiter = ',', default_value = "0,256,800")]
        touched: Vec<u32>,
    },
    /// Growing and shrinking, each step verified in the guest
    Grow {
        /// Of what
        #[command(flatten)]
        of: BenchOf,
        /// Sizes to grow through, in MiB; then back
        #[arg(
            long,
            value_name = "MB,…",
            value_delimiter = ',',
            default_value = "2048,4096,8192,16384"
        )]
        sizes: Vec<u32>,
    },
    /// Checkpoints of a running guest: how long it stands still, and how long they take in all
    Checkpoint {
        /// Of what
        #[command(flatten)]
        of: BenchOf,
        /// Checkpoints at each size
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
        count: u16,
        /// Memory that a process in the guest has touched, in MiB
        #[arg(long, value_name = "MB,…", value_delimiter = ',', default_value = "0,256,800")]
        touched: Vec<u32>,
    },
    /// A step of every kind, built, finalized and forked at many sizes; stops at the first thing that is wrong
    Matrix {
        /// Memory of build VMs, in MiB
        #[arg(
            long,
            value_name = "MB,…",
            value_delimiter = ',',
            default_value = "1024,4096,8192"
        )]
        builds: Vec<u32>,
        /// Memory at rest, in MiB
        #[arg(
            long,
            value_name = "MB,…",
            value_delimiter = ',',
            default_value = "512,1024,2048"
        )]
        floors: Vec<u32>,
        /// What forks of each floor ask for, in MiB, beside half of their floor
        #[arg(
            long,
            value_name = "MB,…",
            value_delimiter = ',',
            default_value = "1024,2048,4096,8192,16384"
        )]
        sizes: Vec<u32>,
    },
}

/// What is measured.
#[derive(Debug, Args)]
pub struct BenchOf {
    /// Name or id of an image [default: a small one of our own, which is built]
    #[arg(long)]
    pub image: Option<String>,
    /// Memory at rest in MiB; an image without such a checkpoint is booted once more [default: what it has]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(256..=16384))]
    pub memory: Option<u32>,
}

/// Forks.
#[derive(Debug, Args)]
pub struct BenchFork {
    /// Of what
    #[command(flatten)]
    pub of: BenchOf,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub count: u16,
    /// How many at the same moment; the next so many follow when these are done
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// How they are made
    #[arg(long, value_enum, default_value = "fork")]
    pub arm: Arm,
    /// Keep all of them until the last one is measured
    #[arg(long)]
    pub keep: bool,
    /// Run no command in them: T1 to T3 only
    #[arg(long)]
    pub no_exec: bool,
    /// Leave out what one costs in memory, idle and after a workload
    #[arg(long)]
    pub no_memory: bool,
    /// So many at the same moment, and how long until the last is READY; 0 for none
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,4,16,64", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub fan_outs: Vec<u16>,
    /// Also print where each microsecond of the fork with the median T3 went
    #[arg(long)]
    pub trace: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let cli = Cli::try_parse_from([
            "spore", "run", "img", "--env", "A=b=c", "--", "ls", "--json", "-v",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!(run.command, ["ls", "--json", "-v"]);
        assert_eq!(run.env, [("A".to_owned(), "b=c".to_owned())]);
        assert!(!cli.global.json);
    }

    #[test]
    fn absurd_numbers_are_refused() {
        for bad in [
            ["--memory", "0"],
            ["--memory", "-1"],
            ["--cpus", "17"],
            ["--cpus", "0"],
            ["--env", "=x"],
        ] {
            let words = ["spore", "run", "img"].iter().chain(&bad).chain(&["--", "true"]);
            assert!(Cli::try_parse_from(words).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_benchmark_takes_a_hundred_samples_unless_told_otherwise() {
        let cli = Cli::try_parse_from(["spore", "bench", "fork", "--fan-outs", "0"]).unwrap();
        let Command::Bench(Bench::Fork(fork)) = cli.command else {
            panic!()
        };
        assert_eq!((fork.count, fork.concurrency, fork.arm), (100, 1, Arm::Fork));
        assert_eq!(fork.fan_outs, [0]);
        assert!(Cli::try_parse_from(["spore", "bench", "fork", "--arm", "hot"]).is_err());
    }
}
