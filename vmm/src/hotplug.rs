//! Host memory and memslots behind virtio-mem.

use std::sync::{Arc, Mutex, PoisonError};

use spore_devices::virtio::mem::{BackendError, BlockRange, MemBackend};

use crate::layout::HOTPLUG_BLOCK;
use crate::memslots::Memslots;
use crate::ram::{PluggedRun, Ram};
use crate::vcpu::gate::Gate;

/// Gives the blocks of the region memory and memslots, and takes them away.
pub struct Hotplug {
    ram: Arc<Ram>,
    slots: Memslots,
    gate: Arc<Gate>,
    plugged: Vec<PluggedRun>,
    settle: Arc<Settle>,
}

/// Runs whose pages have been given back but whose addresses are still accessible, because a device
/// in the middle of its queue may hold an older view of memory. [`Settle::finish`] ends that.
#[derive(Default)]
pub struct Settle(Mutex<Vec<PluggedRun>>);

impl Settle {
    /// Makes what was unplugged inaccessible (`PROT_NONE`). Call it on the I/O thread, between two
    /// events, when no device is at work on a queue.
    pub fn finish(&self, ram: &Ram) {
        let pending = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (offset, bytes) in pending {
            if let Err(error) = ram.unplug(offset, bytes) {
                // The pages are gone already; only the address range stays readable (as zeros).
                tracing::warn!(%error, "unplugged memory could not be made inaccessible");
            }
        }
    }

    fn forget(&self, run: PluggedRun) {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *pending = pending.iter().flat_map(|&p| subtract(p, run)).collect();
    }

    fn add(&self, run: PluggedRun) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(run);
    }
}

impl Hotplug {
    /// A backend over memory that has `plugged` mapped and in `slots`.
    pub fn new(ram: Arc<Ram>, slots: Memslots, gate: Arc<Gate>, plugged: Vec<PluggedRun>) -> Self {
        Self {
            ram,
            slots,
            gate,
            plugged,
            settle: Arc::default(),
        }
    }

    /// What is still to be made inaccessible after an unplug.
    pub fn settle(&self) -> Arc<Settle> {
        self.settle.clone()
    }

    fn show(&mut self, plugged: Vec<PluggedRun>) -> Result<(), BackendError> {
        let gate = self.gate.clone();
        self.slots
            .update(&plugged, || gate.hold())
            .map_err(BackendError::new)?;
        self.ram.publish(&plugged).map_err(BackendError::new)?;
        self.plugged = plugged;
        Ok(())
    }
}

/// A block range as bytes of the region.
pub fn run_of(range: BlockRange) -> PluggedRun {
    (
        u64::from(range.first().0) * HOTPLUG_BLOCK,
        u64::from(range.count()) * HOTPLUG_BLOCK,
    )
}

/// What is left of `run` without `hole`.
fn subtract((start, bytes): PluggedRun, (hole, hole_bytes): PluggedRun) -> Vec<PluggedRun> {
    let (end, hole_end) = (start + bytes, hole + hole_bytes);
    [(start, hole.clamp(start, end)), (hole_end.clamp(start, end), end)]
        .into_iter()
        .filter(|(from, to)| from < to)
        .map(|(from, to)| (from, to - from))
        .collect()
}

/// Runs in order with neighbours joined.
fn joined(mut runs: Vec<PluggedRun>) -> Vec<PluggedRun> {
    runs.sort_unstable();
    let mut joined: Vec<PluggedRun> = Vec::with_capacity(runs.len());
    for (start, bytes) in runs {
        match joined.last_mut() {
            Some((last, length)) if *last + *length == start => *length += bytes,
            _ => joined.push((start, bytes)),
        }
    }
    joined
}

impl MemBackend for Hotplug {
    fn plug(&mut self, range: BlockRange) -> Result<(), BackendError> {
        let run = run_of(range);
        // An unplug of the same blocks may be waiting to be settled: it must not hit the new memory.
        self.settle.forget(run);
        self.ram.plug(run.0, run.1).map_err(BackendError::new)?;
        let mut plugged = self.plugged.clone();
        plugged.push(run);
        self.show(joined(plugged)).inspect_err(|_| self.settle.add(run))
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), BackendError> {
        let run = run_of(range);
        let plugged = self.plugged.iter().flat_map(|&p| subtract(p, run)).collect();
        self.show(plugged)?;
        // Fresh anonymous memory in its place frees the old pages now; devices with an older view
        // of memory may still look at it until the end of this event.
        self.settle.add(run);
        self.ram.plug(run.0, run.1).map_err(BackendError::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_and_split() {
        assert_eq!(joined(vec![(4, 2), (0, 2), (2, 2), (8, 2)]), vec![(0, 6), (8, 2)]);
        assert_eq!(subtract((0, 10), (4, 2)), vec![(0, 4), (6, 4)]);
        assert_eq!(subtract((0, 10), (0, 10)), vec![]);
        assert_eq!(subtract((4, 2), (0, 1)), vec![(4, 2)]);
        assert_eq!(subtract((4, 2), (8, 1)), vec![(4, 2)]);
        assert_eq!(subtract((4, 4), (0, 6)), vec![(6, 2)]);
    }
}
