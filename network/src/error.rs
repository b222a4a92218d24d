//! Why there is no network.

use std::io;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::io::Errno;

use crate::tap;

/// Why there is no network. Whatever the reason, nothing half-made is left.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A value that can't be.
    #[error("network configuration: {0}")]
    Config(String),
    /// [`Policy::None`](crate::Policy::None) was to be attached.
    #[error("the policy \"none\" means no network interface: there is nothing to attach")]
    NothingAsked,
    /// The process may not change the network.
    #[error(
        "no permission to change the network ({doing}): CAP_NET_ADMIN is missing; run as root, or give the \
         capability as an ambient one (systemd: AmbientCapabilities=CAP_NET_ADMIN), so that nft gets it too"
    )]
    NoCapability {
        /// What failed.
        doing: String,
    },
    /// No `/dev/net/tun`, or it can't be opened.
    #[error(
        "{device}: {source}; load the module (modprobe tun), in a container pass the device on (--device {device})",
        device = tap::DEVICE
    )]
    NoTun {
        /// What opening it said.
        source: io::Error,
    },
    /// No `nft`.
    #[error(
        "no program nft in PATH ({path}): install the package nftables, or add the directory it is in (/usr/sbin)"
    )]
    NoNft {
        /// Where it was looked for.
        path: String,
    },
    /// No default route.
    #[error(
        "the host has no default route for IPv4, so there is no uplink: connect the host, or name the interface in \
         the configuration"
    )]
    NoUplink,
    /// The configured uplink isn't there.
    #[error("the uplink {name} does not exist (ip link shows what does)")]
    UplinkMissing {
        /// Its name.
        name: String,
    },
    /// The range is in use on the host.
    #[error("the range {range} for sandboxes collides with {with} on this host: configure another range")]
    Collision {
        /// The configured range.
        range: Ipv4Net,
        /// With what.
        with: String,
    },
    /// A table of our name that isn't ours.
    #[error(
        "the nftables table `inet {table}` exists, and was not made with the state directory {}: configure another \
         table name, or if nothing uses it, remove it (nft delete table inet {table})", .state_dir.display()
    )]
    TableTaken {
        /// Its name.
        table: String,
        /// Our state directory.
        state_dir: PathBuf,
    },
    /// The state directory is in use with other settings, or in another network namespace.
    #[error(
        "{} is in use by another process with {theirs}, not with {ours}: use the same, or another state directory",
        .state_dir.display()
    )]
    InUse {
        /// The directory.
        state_dir: PathBuf,
        /// What it is in use with.
        theirs: String,
        /// What was configured.
        ours: String,
    },
    /// The calling thread has another network namespace than the one the network was opened in.
    #[error("this thread is in another network namespace than the one in which the network was opened")]
    WrongNamespace,
    /// An allow list names what is never reached.
    #[error(
        "allow list entry {entry:?}: {address} is in {within}, which a sandbox never reaches; leave it out"
    )]
    NeverReached {
        /// The entry.
        entry: String,
        /// Its address.
        address: Ipv4Net,
        /// What it is part of.
        within: Ipv4Net,
    },
    /// A name has no address.
    #[error("allow list entry {entry:?}: {source}")]
    Unresolved {
        /// The entry.
        entry: String,
        /// What the host's resolver said.
        source: io::Error,
    },
    /// Every index is taken.
    #[error("all {count} pairs of addresses in {range} are in use: configure a larger range")]
    Full {
        /// The range.
        range: Ipv4Net,
        /// Pairs in it.
        count: u32,
    },
    /// Others have interfaces of our names.
    #[error(
        "interfaces named as ours would be exist already ({first} and more): configure another TAP prefix"
    )]
    TapNamesInUse {
        /// The first that was tried.
        first: String,
    },
    /// `nft` refused what we said.
    #[error("nft could not {doing}: {said}")]
    Nft {
        /// What was to be done.
        doing: &'static str,
        /// Its last lines.
        said: String,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A lock or record can't be read or written.
    #[error("{}: {source}", .path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl NetworkError {
    /// For `map_err`: a system call that failed while `doing`; where it isn't permitted, that is what is said.
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
        let doing = doing.into();
        move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::PERM) => NetworkError::NoCapability {
                doing: format!("{doing}: {source}"),
            },
            _ => NetworkError::System { doing, source },
        }
    }

    /// For `map_err`: a file of the state directory.
    pub(crate) fn state(path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
        let path = path.to_owned();
        move |source| NetworkError::State { path, source }
    }
}
