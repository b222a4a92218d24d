//! Where forks come from, by arm. The arms are never mixed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use spore_builder::Host;
use spore_snapshot::CheckpointId;
use spore_snapshot::store::Store;
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::Guest;
use spore_vmm::machine::Identity;
use spore_vmm::pool::{Budget, Origin, Pool};

use super::BenchError;
use super::cold;
use super::image::Target;

/// How a fork is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// A shell is taken: a pool hit.
    Shell,
    /// The loaded template is forked: a pool miss.
    Fork,
    /// A new process loads the checkpoint, none of whose files is in the page cache.
    Cold,
}

impl Arm {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Fork => "fork",
            Self::Cold => "cold",
        }
    }
}

/// How long the pool may take to make its shells.
const REFILL_LIMIT: Duration = Duration::from_secs(60);

/// A fork, and when what was done for it.
pub struct Forked {
    /// The fork.
    pub guest: Guest,
    /// When it was asked for.
    pub asked_ns: u64,
    /// When its checkpoint had been opened, where that was part of it.
    pub opened_ns: Option<u64>,
}

/// Makes forks of one arm.
pub struct Source<'a> {
    store: &'a Store,
    checkpoint: CheckpointId,
    arm: Arm,
    /// Absent in the cold arm: a template would keep the files in the page cache.
    pool: Option<Pool>,
    /// Shells that the pool keeps.
    shells: usize,
    /// Files to be dropped from the page cache.
    files: Vec<PathBuf>,
}

impl<'a> Source<'a> {
    /// Gets ready to make `at_once` forks at the same time.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn open(host: &'a Host, target: &Target, arm: Arm, at_once: usize) -> Result<Self, BenchError> {
        let store = host.store();
        let shells = match arm {
            Arm::Shell => at_once,
            Arm::Fork | Arm::Cold => 0,
        };
        let mut source = Self {
            store,
            checkpoint: target.checkpoint,
            arm,
            pool: None,
            shells,
            files: Vec::new(),
        };
        if arm == Arm::Cold {
            source.files = cold::files(store, &target.open(host)?);
            return Ok(source);
        }
        let budget = Budget {
            templates: 1,
            shells_per_template: shells,
            shells,
        };
        let pool = Pool::new(store.clone(), budget).map_err(|cause| BenchError::File {
            path: store.root().to_owned(),
            source: cause,
        })?;
        // Also without shells: the first fork shows what the others will touch.
        pool.warm(&target.checkpoint, shells)?;
        source.pool = Some(pool);
        Ok(source)
    }

    /// Waits until all that was destroyed is gone, the shells are there and nothing is being made. In the cold arm
    /// the checkpoint's files leave the page cache; says how many bytes of them stay.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn settle(&self) -> Result<Option<u64>, BenchError> {
        let Some(pool) = &self.pool else {
            return cold::drop_from_cache(&self.files);
        };
        pool.settle();
        let started = Instant::now();
        loop {
            let have = pool.stats().shells;
            if have >= self.shells {
                return Ok(None);
            }
            if started.elapsed() > REFILL_LIMIT {
                let wanted = self.shells;
                return Err(BenchError::NoShells { have, wanted });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes a fork. The outer error ends the benchmark, the inner one is a fork that failed.
    ///
    /// # Errors
    /// [`BenchError::WrongOrigin`].
    pub fn fork(&self) -> Result<Result<Forked, BenchError>, BenchError> {
        let asked_ns = monotonic_ns();
        let identity = Identity::default();
        let Some(pool) = &self.pool else {
            let opened = self.store.open_checkpoint(&self.checkpoint);
            let opened_ns = monotonic_ns();
            let guest = opened
                .map_err(BenchError::from)
                .and_then(|checkpoint| Ok(Guest::fork_as(self.store, &checkpoint, &identity)?));
            return Ok(guest.map(|guest| Forked {
                guest,
                asked_ns,
                opened_ns: Some(opened_ns),
            }));
        };
        let (forked, expected) = match self.arm {
            Arm::Shell => (pool.fork(&self.checkpoint, &identity), Origin::Shell),
            Arm::Fork | Arm::Cold => (pool.fork_without_shell(&self.checkpoint, &identity), Origin::Fork),
        };
        match forked {
            Ok(forked) if forked.origin != expected => Err(BenchError::WrongOrigin {
                arm: self.arm.name(),
                got: match forked.origin {
                    Origin::Shell => "shell",
                    Origin::Fork => "fork",
                },
            }),
            Ok(forked) => Ok(Ok(Forked {
                guest: forked.guest,
                asked_ns,
                opened_ns: None,
            })),
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// Ends a fork. [`Source::settle`] waits until it is gone.
    pub fn destroy(&self, guest: Guest) {
        match &self.pool {
            Some(pool) => pool.destroy(guest),
            // Waits, so that nothing of it is mapped when the next files are dropped.
            None => drop(guest),
        }
    }
}

/// A duration in nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
