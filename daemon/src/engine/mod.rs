//! What the daemon does, without HTTP: blocking calls from any thread.
//!
//! Each call is one file's; this one has what they share.

pub mod activity;
mod adopt;
pub mod agent;
pub mod builds;
pub mod cgroup;
pub mod checkpoints;
pub mod create;
pub mod events;
pub mod exec;
pub mod facts;
pub mod files;
pub mod fork;
pub mod host;
pub mod images;
pub mod keeper;
pub mod ledger;
pub mod metrics;
mod naming;
pub mod overdue;
mod prepare;
pub mod pressure;
pub mod record;
mod records;
pub mod sandbox;
pub mod update;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spore_builder::Host;
use spore_types::{ErrorCode, EventKind};
use spore_vmm::pool::Pool;

use self::builds::Builds;
use self::cgroup::Groups;
use self::events::{Events, cause};
use self::facts::FactsCache;
use self::ledger::Ledger;
use self::metrics::Metrics;
use self::naming::Naming;
use self::records::RecordCache;
use self::sandbox::Sandbox;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::time::since_1970;

/// How long somebody who only looks at a VM may be at it.
const LOOKED_AT: Duration = Duration::from_millis(50);

/// Seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    since_1970().as_secs()
}

/// One host's sandboxes, images and checkpoints.
pub struct Engine {
    config: Config,
    host: Arc<Host>,
    pool: Pool,
    /// After the pool: groups can be removed when their VMs are gone.
    groups: Arc<Groups>,
    ledger: Ledger,
    events: Arc<Events>,
    builds: Builds,
    metrics: Metrics,
    facts: Arc<FactsCache>,
    records: RecordCache,
    naming: Naming,
    /// Held by whoever has a guest give up its caches.
    squeezing: Arc<()>,
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    draining: AtomicBool,
    /// Memory stays short whatever is given back.
    short: AtomicBool,
    execs: AtomicUsize,
    started_at: u64,
    /// What holds for VM processes here.
    confinement: Vec<String>,
}

/// Room for one command among all that run.
pub struct ExecSlot<'a>(&'a AtomicUsize);

impl Drop for ExecSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine {
    /// Opens the data directory.
    ///
    /// # Errors
    /// What is wrong with it, or with this host.
    pub fn open(config: Config) -> Result<Self> {
        spore_vmm::kvm::open().map_err(|error| Error::new(ErrorCode::Unsupported, error.to_string()))?;
        let (host, found) = adopt::open(&config)?;
        let host = host.with_network(spore_network::Config {
            range: config.network_range,
            ..spore_network::Config::default()
        });
        let pool = Pool::new(host.store().clone(), config.budget).map_err(Error::internal)?;
        let groups = Arc::new(Groups::find(
            Path::new("/sys/fs/cgroup"),
            config.cgroup.as_deref(),
        ));
        let host = Arc::new(host);
        let facts = Arc::new(FactsCache::default());
        pool.on_armed(prepare::shells(
            host.store().clone(),
            groups.clone(),
            facts.clone(),
        ));
        let events = Arc::<Events>::default();
        let told = events.clone();
        pool.on_lost(Box::new(move |checkpoint, error| {
            told.tell(EventKind::TemplateLost {
                checkpoint: checkpoint.to_string(),
                cause: cause(error),
            });
        }));
        let memory = spore_builder::HostMemory::read().map_err(Error::internal)?;
        let metrics = Metrics::default();
        let engine = Self {
            ledger: Ledger::new(memory.total().get().into(), &config.limits),
            builds: Builds::new(config.limits.builds),
            host,
            pool,
            events,
            metrics,
            facts,
            records: RecordCache::default(),
            naming: Naming::default(),
            squeezing: Arc::default(),
            sandboxes: Mutex::default(),
            draining: AtomicBool::new(false),
            short: AtomicBool::new(false),
            execs: AtomicUsize::new(0),
            started_at: now(),
            confinement: host::confinement(&groups),
            groups,
            config,
        };
        engine.adopt(found);
        Ok(engine)
    }

    /// What has happened.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Builds.
    pub fn builds(&self) -> &Builds {
        &self.builds
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Sandbox>>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox that has not ended.
    ///
    /// # Errors
    /// `not_found`.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let found = self.map().get(id).cloned();
        found.ok_or_else(|| Error::not_found("sandbox", id))
    }

    /// All sandboxes, the newest first.
    pub fn list(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.map().values().cloned().collect();
        all.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.fixed.created_at));
        all
    }

    /// Makes a sandbox known, and outlive the daemon.
    pub fn register(&self, sandbox: Sandbox) -> Arc<Sandbox> {
        let sandbox = Arc::new(sandbox);
        self.metrics.sandboxes_created.inc();
        let mut map = self.map();
        map.insert(sandbox.id().to_owned(), sandbox.clone());
        // Told before anybody can find it and end it.
        self.events.tell(EventKind::SandboxCreated {
            sandbox: sandbox.id().to_owned(),
        });
        drop(map);
        sandbox
    }

    /// Ends a sandbox.
    ///
    /// # Errors
    /// `not_found`.
    pub fn delete(self: &Arc<Self>, id: &str) -> Result<()> {
        let sandbox = self.sandbox(id)?;
        self.end(&sandbox, "deleted");
        Ok(())
    }

    /// A sandbox is no more, or is to be no more: its VM is ended when what it used was read, and taken apart off the path.
    pub fn end(self: &Arc<Self>, sandbox: &Arc<Sandbox>, cause: &str) {
        if !sandbox.note_end(cause) {
            return;
        }
        // Of a VM that runs, while it can be seen.
        let usage = self.usage(sandbox);
        sandbox.kill();
        self.map().remove(sandbox.id());
        self.metrics.sandboxes_ended.inc();
        match sandbox.try_work_within(LOOKED_AT) {
            Some(mut work) => self.discard(work.take()),
            // Whoever works with it fails soon, since its VM is dead.
            None => {
                let (engine, busy) = (self.clone(), sandbox.clone());
                let later = move || engine.discard(busy.work().take());
                if std::thread::Builder::new().spawn(later).is_err() {
                    self.discard(sandbox.work().take());
                }
            }
        }
        // Told when its memory can be had again, if nobody works with it.
        self.events.tell(EventKind::SandboxEnded {
            sandbox: sandbox.id().to_owned(),
            cause: cause.to_owned(),
            usage,
        });
    }

    fn discard(&self, held: Option<sandbox::Held>) {
        if let Some(held) = held {
            // Off the network at once; the address is free when the VM is gone, which the pool sees to.
            self.pool.destroy(held.guest);
            drop(held.plugged);
            drop(held.promise);
        }
    }

    /// # Errors
    /// `draining`, `insufficient_capacity`.
    pub fn must_take_work(&self) -> Result<()> {
        match self.draining.load(Ordering::Relaxed) {
            false => self.must_have_memory(),
            true => Err(Error::new(
                ErrorCode::Draining,
                "this host is draining: it takes no new sandboxes and builds",
            )),
        }
    }

    /// Takes new work, or none.
    pub fn drain(&self, draining: bool) {
        if self.draining.swap(draining, Ordering::Relaxed) != draining {
            self.events.tell(EventKind::Draining { draining });
        }
    }

    /// For how long a client may stop in the middle of what it reads or sends.
    pub fn stalled(&self) -> Duration {
        self.config.limits.stalled
    }

    /// Room for one more command.
    ///
    /// # Errors
    /// `busy`.
    pub fn exec_slot(&self) -> Result<ExecSlot<'_>> {
        let most = self.config.limits.execs;
        if self.execs.fetch_add(1, Ordering::Relaxed) >= most {
            self.execs.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{most} commands run already on this host; try again");
            return Err(Error::new(ErrorCode::Busy, message));
        }
        Ok(ExecSlot(&self.execs))
    }
}
