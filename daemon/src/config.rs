//! What whoever starts a daemon decides.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use spore_vmm::pool::Budget;

/// A daemon's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens: a path of at most 107 bytes.
    pub socket: PathBuf,
    /// Images, checkpoints and what sandboxes write.
    pub data: PathBuf,
    /// Bases and guest kernels.
    pub cache: PathBuf,
    /// The guest kernel; absent: the one in the cache.
    pub kernel: Option<PathBuf>,
    /// Addresses of sandboxes.
    pub network_range: Ipv4Net,
    /// The control group below which VMs have theirs, as a path in each hierarchy; absent: the daemon's own.
    pub cgroup: Option<PathBuf>,
    /// What may be promised.
    pub limits: Limits,
    /// Templates and shells that are kept.
    pub budget: Budget,
}

/// What a daemon may promise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Memory kept for the host itself, in MiB.
    pub reserve_mb: u64,
    /// By how much the rest is promised: 1 promises what there is.
    pub overcommit: f64,
    /// Sandboxes at once.
    pub sandboxes: u32,
    /// Builds at once.
    pub builds: u32,
    /// Commands that run at once, in all sandboxes.
    pub execs: usize,
    /// After how many seconds without use a sandbox is destroyed that does not say it itself.
    pub idle_seconds: Option<u32>,
    /// For how long a client may stop reading an answer, or sending a file, in the middle of it.
    pub stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reserve_mb: 1024,
            overcommit: 4.0,
            sandboxes: 2048,
            builds: 4,
            execs: 1024,
            idle_seconds: None,
            stalled: Duration::from_secs(600),
        }
    }
}
