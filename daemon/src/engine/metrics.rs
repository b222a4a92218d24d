//! What is counted, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use spore_types::{HostInfo, Origin};
use spore_vmm::guest::ForkTimes;

/// Upper bounds of what forks take, in seconds: 50 µs to 10 s.
const FORK: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0,
];
/// Upper bounds of what builds take, in seconds.
const BUILD: [f64; 9] = [1.0, 5.0, 15.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 7200.0];

/// Where a fork came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OriginLabel {
    origin: &'static str,
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    result: &'static str,
}

/// An error of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    code: String,
}

type Times = Family<OriginLabel, Histogram, fn() -> Histogram>;

/// Counters and histograms.
pub struct Metrics {
    registry: Registry,
    /// Sandboxes that were made.
    pub sandboxes_created: Counter,
    /// Sandboxes that are no more.
    pub sandboxes_ended: Counter,
    /// Forks that came to nothing.
    pub fork_failures: Counter,
    released: Times,
    woke: Times,
    ready: Times,
    exec: Histogram,
    share: Histogram,
    builds: Family<ResultLabel, Histogram, fn() -> Histogram>,
    errors: Family<CodeLabel, Counter>,
    gauges: Gauges,
}

/// What is looked up when it is asked for.
#[derive(Default)]
struct Gauges {
    sandboxes: Gauge,
    shells: Gauge,
    templates: Gauge,
    builds: Gauge,
    committed: Gauge,
    limit: Gauge,
    plugged: Gauge,
    unique: Gauge,
    draining: Gauge,
}

fn fork_times() -> Histogram {
    Histogram::new(FORK)
}

fn build_times() -> Histogram {
    Histogram::new(BUILD)
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("spore"),
            sandboxes_created: Counter::default(),
            sandboxes_ended: Counter::default(),
            fork_failures: Counter::default(),
            released: Family::new_with_constructor(fork_times),
            woke: Family::new_with_constructor(fork_times),
            ready: Family::new_with_constructor(fork_times),
            exec: Histogram::new(FORK),
            share: Histogram::new(FORK),
            builds: Family::new_with_constructor(build_times),
            errors: Family::default(),
            gauges: Gauges::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        let gauges = &self.gauges;
        registry.register(
            "sandboxes_created",
            "Sandboxes that were made",
            self.sandboxes_created.clone(),
        );
        registry.register(
            "sandboxes_ended",
            "Sandboxes that are no more",
            self.sandboxes_ended.clone(),
        );
        registry.register(
            "fork_failures",
            "Forks that came to nothing",
            self.fork_failures.clone(),
        );
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "fork_t1_released",
            "Asked to machine state set",
            seconds(),
            self.released.clone(),
        );
        registry.register_with_unit(
            "fork_t2_woke",
            "Asked to the guest's first act",
            seconds(),
            self.woke.clone(),
        );
        registry.register_with_unit(
            "fork_t3_ready",
            "Asked to identity repaired",
            seconds(),
            self.ready.clone(),
        );
        registry.register_with_unit(
            "exec_t4",
            "A create with a command: asked to its result",
            seconds(),
            self.exec.clone(),
        );
        registry.register_with_unit(
            "create_share",
            "The daemon's part of a create of one sandbox: request read to answer ready, less its T3",
            seconds(),
            self.share.clone(),
        );
        registry.register_with_unit(
            "build",
            "Builds, by how they ended",
            seconds(),
            self.builds.clone(),
        );
        registry.register("errors", "Answers that were errors, by code", self.errors.clone());
        registry.register("sandboxes", "Sandboxes that run", gauges.sandboxes.clone());
        registry.register("shells", "Shells that are armed", gauges.shells.clone());
        registry.register("templates", "Templates that are loaded", gauges.templates.clone());
        registry.register("builds_running", "Builds that run", gauges.builds.clone());
        let bytes = || Unit::Bytes;
        registry.register_with_unit(
            "memory_committed",
            "Promised memory",
            bytes(),
            gauges.committed.clone(),
        );
        registry.register_with_unit(
            "memory_limit",
            "The most that is promised",
            bytes(),
            gauges.limit.clone(),
        );
        registry.register_with_unit(
            "memory_plugged",
            "Memory beyond floors",
            bytes(),
            gauges.plugged.clone(),
        );
        registry.register_with_unit(
            "memory_unique",
            "Memory of VMs that they do not share",
            bytes(),
            gauges.unique.clone(),
        );
        registry.register("draining", "1 if no new work is taken", gauges.draining.clone());
        self
    }

    /// A fork is ready.
    pub fn observe(&self, origin: Origin, times: ForkTimes) {
        let label = OriginLabel {
            origin: match origin {
                Origin::Shell => "shell",
                Origin::Fork => "fork",
                Origin::LiveFork => "live_fork",
            },
        };
        let observe = |family: &Times, took: Option<Duration>| {
            if let Some(took) = took {
                family.get_or_create(&label).observe(took.as_secs_f64());
            }
        };
        observe(&self.released, Some(times.released));
        observe(&self.woke, times.woke);
        observe(&self.ready, times.ready);
    }

    /// A create with a command was answered (T4).
    pub fn exec_answered(&self, took: Duration) {
        self.exec.observe(took.as_secs_f64());
    }

    /// A create of one sandbox, without a command, is about to be answered.
    pub fn created(&self, took: Duration, ready: Duration) {
        self.share.observe(took.saturating_sub(ready).as_secs_f64());
    }

    /// A build ended.
    pub fn build_ended(&self, succeeded: bool, took: Duration) {
        let result = if succeeded { "succeeded" } else { "failed" };
        self.builds
            .get_or_create(&ResultLabel { result })
            .observe(took.as_secs_f64());
    }

    /// An answer was an error.
    pub fn error(&self, code: &str) {
        self.errors
            .get_or_create(&CodeLabel {
                code: code.to_owned(),
            })
            .inc();
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self, host: &HostInfo) -> String {
        let gauges = &self.gauges;
        let mib = |mb: u64| i64::try_from(mb << 20).unwrap_or(i64::MAX);
        gauges.sandboxes.set(host.sandboxes.into());
        gauges.shells.set(host.shells.into());
        gauges.templates.set(host.templates.into());
        gauges.builds.set(host.builds.into());
        gauges.committed.set(mib(host.memory.committed_mb));
        gauges.limit.set(mib(host.memory.limit_mb));
        gauges.plugged.set(mib(host.memory.plugged_mb));
        gauges.unique.set(mib(host.memory.unique_mb));
        gauges.draining.set(host.draining.into());
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
