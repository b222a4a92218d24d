//! What a build tells while it goes on.

use std::time::Duration;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent<'a> {
    /// Another process builds the same; its result will be used.
    Waiting,
    /// The disks of an earlier build are used.
    DisksCached,
    /// The steps run without a network: this host gives none.
    NoNetwork {
        /// Why not.
        why: &'a str,
    },
    /// The build VM boots.
    Booting {
        /// Its memory, in MiB.
        memory_mb: u32,
    },
    /// Its agent is up.
    Booted {
        /// How long that took.
        took: Duration,
    },
    /// A step begins.
    StepStarted {
        /// Its number, from 0.
        step: usize,
        /// How many there are.
        of: usize,
        /// What it is, on one line.
        label: &'a str,
    },
    /// A step need not run: its disk is known.
    StepCached {
        /// Its number, from 0.
        step: usize,
        /// How many there are.
        of: usize,
        /// What it is, on one line.
        label: &'a str,
    },
    /// The running step wrote to its standard output or error.
    Output(&'a [u8]),
    /// A step succeeded.
    StepDone {
        /// Its number, from 0.
        step: usize,
        /// How long it took.
        took: Duration,
    },
    /// All steps are done and their disk is sealed.
    Sealed {
        /// How long the whole build phase took.
        took: Duration,
    },
    /// The finished disks boot at the floor.
    Finalizing {
        /// The floor, in MiB.
        floor_mb: u32,
    },
    /// Its agent is up, its memory settled.
    Settled {
        /// How long that took.
        took: Duration,
    },
    /// The checkpoint is in the store.
    Checkpointed {
        /// How long the guest stood still for it, at most.
        took: Duration,
        /// Size of its memory file, in bytes.
        memory_bytes: u64,
    },
}

/// Who listens.
pub trait Observer {
    /// Hears of `event`.
    fn event(&mut self, event: BuildEvent<'_>);
}

/// Nobody listens.
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: BuildEvent<'_>) {}
}
