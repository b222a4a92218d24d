//! What is asked of the daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};
use spore_network::Policy;

use super::key_value;

/// A month, the longest a sandbox can be given, in seconds.
const MONTH: i64 = 2_592_000;

/// What is asked of the daemon.
#[derive(Debug, Subcommand)]
pub enum Remote {
    /// Make sandboxes of an image or a checkpoint, and print their ids
    #[command(visible_alias = "new")]
    Create(Create),
    /// List sandboxes
    Ps(Ps),
    /// Run a command in a sandbox, and exit as it does
    Exec(Exec),
    /// Copy a file into a sandbox or out of one
    Cp(Cp),
    /// Give a sandbox other memory; done when the guest itself shows it
    Resize {
        /// Which sandbox
        id: String,
        /// MiB
        #[arg(value_name = "MB", value_parser = value_parser!(u32).range(1..))]
        memory: u32,
    },
    /// Fork a running sandbox, and print the ids of the forks
    Fork(Fork),
    /// Checkpoint a sandbox, and print the checkpoint's id
    Checkpoint(Checkpoint),
    /// List checkpoints, or remove some
    Checkpoints {
        /// What to do [default: list]
        #[command(subcommand)]
        action: Option<Checkpoints>,
    },
    /// Stop a sandbox's vCPUs; its memory stays
    Pause {
        /// Which
        id: String,
    },
    /// Let a paused sandbox's vCPUs run
    Resume {
        /// Which
        id: String,
    },
    /// End sandboxes
    Rm {
        /// Which
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// All there are
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Print the end of a sandbox's console
    Logs {
        /// Which
        id: String,
    },
    /// Show what the host has, and what of it is promised
    Host {
        /// What to do [default: show it]
        #[command(subcommand)]
        action: Option<Host>,
    },
    /// Follow what happens on the host
    Events {
        /// Begin after this event, of those that are still known [default: now]
        #[arg(long, value_name = "ID")]
        after: Option<u64>,
    },
    /// Watch what sandboxes use
    Top {
        /// Print it once; so does a pipe
        #[arg(long)]
        once: bool,
    },
}

/// Sandboxes to make.
#[derive(Debug, Args)]
pub struct Create {
    /// Name or id of an image
    #[arg(required_unless_present = "checkpoint")]
    pub image: Option<String>,
    /// Make it of this checkpoint instead, by name or id
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "image")]
    pub checkpoint: Option<String>,
    /// Memory in MiB; less than the floor is the floor [default: the floor]
    #[arg(long, value_name = "MB", value_parser = value_parser!(u32).range(1..))]
    pub memory: Option<u32>,
    /// vCPUs; the first with a new number boots the image once more [default: the checkpoint's]
    #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(1..=16))]
    pub cpus: Option<u8>,
    /// Size of the disk in MiB [default: the checkpoint's]
    #[arg(long, value_name = "MB", value_parser = value_parser!(u64).range(1..))]
    pub disk: Option<u64>,
    /// What is the same for forks
    #[command(flatten)]
    pub common: Common,
    /// How many [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=64))]
    pub count: Option<u32>,
}

/// What new sandboxes and forks have.
#[derive(Debug, Args)]
pub struct Common {
    /// Set a variable of every command
    #[arg(short, long, value_name = "K=V", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Remember this with it
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// End it after this many seconds [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..=MONTH))]
    pub timeout: Option<u32>,
    /// End it when nobody has used it for this many seconds; 0: never [default: as the daemon was told; for a fork as
    /// its parent]
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(0..=MONTH))]
    pub idle_timeout: Option<u32>,
    /// What it reaches: `none`, `nat` (everything beyond this host), or a list, e.g. `example.com:443,198.51.100.0/24`
    /// [default: none; for a fork what its parent does]
    #[arg(long, value_name = "POLICY", value_parser = crate::network::parse)]
    pub network: Option<Policy>,
}

/// Which sandboxes are listed.
#[derive(Debug, Args)]
pub struct Ps {
    /// Only those with this in their metadata
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// Only ids
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}

/// A command in a sandbox.
#[derive(Debug, Args)]
pub struct Exec {
    /// Which sandbox
    pub id: String,
    /// Pass standard input on
    #[arg(short, long, conflicts_with = "json")]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long, conflicts_with = "json")]
    pub tty: bool,
    /// Set a variable
    #[arg(short, long, value_name = "K=V", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Run in this directory instead of the image's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Run as this user instead of the image's: `user`, `uid`, `user:group` or `uid:gid`
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Kill it after this many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..=86_400))]
    pub timeout: Option<u32>,
    /// The command and its arguments [default: the image's own, if it has one]
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// A file to copy. One side is `ID:/path`, the other a file here or `-`.
#[derive(Debug, Args)]
pub struct Cp {
    /// From: `ID:/path`, a file, or `-` for standard input
    pub from: String,
    /// To: `ID:/path`, a file, a directory, or `-` for standard output
    pub to: String,
}

/// Forks to make.
#[derive(Debug, Args)]
pub struct Fork {
    /// Of which sandbox
    pub id: String,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=64))]
    pub count: u32,
    /// Memory of each in MiB [default: what the sandbox has]
    #[arg(long, value_name = "MB", value_parser = value_parser!(u32).range(1..))]
    pub memory: Option<u32>,
    /// What is the same for new sandboxes
    #[command(flatten)]
    pub common: Common,
}

/// A checkpoint to take.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// Of which sandbox
    pub id: String,
    /// What it is to be called
    #[arg(long)]
    pub name: Option<String>,
    /// Boot the sandbox's disks cold with so many MiB and checkpoint that, without processes and memory [default: as it
    /// runs]
    #[arg(long, value_name = "MB", value_parser = value_parser!(u32).range(256..=16384))]
    pub finalize: Option<u32>,
}

/// What to do with checkpoints.
#[derive(Debug, Subcommand)]
pub enum Checkpoints {
    /// Remove checkpoints, by name or id
    Rm {
        /// Which
        #[arg(required = true)]
        checkpoints: Vec<String>,
    },
}

/// What to do with the host.
#[derive(Debug, Subcommand)]
pub enum Host {
    /// Refuse new sandboxes and builds
    Drain,
    /// Take them again
    Undrain,
}

/// Where manual pages go.
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this directory [default: print that of `spore`]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn remote(words: &[&str]) -> Result<Remote, clap::Error> {
        let cli = Cli::try_parse_from(["spore"].iter().chain(words))?;
        match cli.command {
            Command::Remote(remote) => Ok(remote),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sandbox_is_made_of_an_image_or_of_a_checkpoint() {
        let Ok(Remote::Create(create)) = remote(&["new", "img", "--memory", "2048", "--metadata", "a=b=c"])
        else {
            panic!()
        };
        assert_eq!(
            (create.image.as_deref(), create.memory),
            (Some("img"), Some(2048))
        );
        assert_eq!(create.common.metadata, [("a".to_owned(), "b=c".to_owned())]);
        assert!(remote(&["create", "--checkpoint", "c", "--count", "64"]).is_ok());
        for bad in [
            &["create"][..],
            &["create", "img", "--checkpoint", "c"],
            &["create", "img", "--count", "65"],
            &["create", "img", "--timeout", "0"],
            &["create", "img", "--network", "a b"],
        ] {
            assert!(remote(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_command_in_a_sandbox_keeps_its_own_options() {
        let words = [
            "exec", "-it", "-e", "A=1", "-w", "/tmp", "-u", "1:1", "id", "--", "sh", "-c", "--json",
        ];
        let Ok(Remote::Exec(exec)) = remote(&words) else {
            panic!()
        };
        assert!(exec.interactive && exec.tty);
        assert_eq!(exec.command, ["sh", "-c", "--json"]);
        assert_eq!(exec.workdir.as_deref(), Some("/tmp"));
        assert!(remote(&["exec", "-t", "--json", "id", "--", "sh"]).is_err());
    }

    #[test]
    fn nothing_is_removed_that_was_not_named() {
        assert!(remote(&["rm"]).is_err());
        assert!(remote(&["rm", "a", "--all"]).is_err());
        assert!(matches!(remote(&["rm", "--all"]), Ok(Remote::Rm { all: true, ids }) if ids.is_empty()));
        assert!(remote(&["checkpoints", "rm"]).is_err());
        assert!(matches!(
            remote(&["checkpoints"]),
            Ok(Remote::Checkpoints { action: None })
        ));
    }

    #[test]
    fn the_socket_may_stand_before_or_after_the_command() {
        for words in [
            ["spore", "--socket", "/x", "ps"],
            ["spore", "ps", "--socket", "/x"],
            ["spore", "serve", "--socket", "/x"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.global.socket, PathBuf::from("/x"));
        }
    }
}
