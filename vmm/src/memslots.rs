//! Which guest-physical ranges KVM maps: boot RAM, and exactly what is plugged of the virtio-mem region.
//!
//! Slots in the region follow the plugged blocks within chunks of one Linux memory block: a chunk
//! fully plugged (the usual case: Linux plugs a memory block at a time) is one slot; a chunk with
//! holes has one slot per run. Unplugged memory is in no slot, so a guest that touches it gets
//! the bus's answer (all ones), not somebody's bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use crate::layout::{self, HOTPLUG_BLOCK, LINUX_MEMORY_BLOCK};
use crate::ram::{PluggedRun, Ram};

/// KVM refused a memslot.
#[derive(Debug, thiserror::Error)]
#[error("memslot of {bytes} bytes at {gpa:#x}: {source}")]
pub struct MemslotError {
    gpa: u64,
    bytes: u64,
    source: kvm_ioctls::Error,
}

/// A slot in the virtio-mem region, by its offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HotSlot {
    id: u32,
    bytes: u64,
}

/// What has to happen to the slots of the region for it to show a new set of runs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Change {
    /// `(offset, bytes)` of slots that go.
    remove: Vec<PluggedRun>,
    /// `(offset, bytes)` of slots that come.
    add: Vec<PluggedRun>,
}

impl Change {
    /// Whether memory that stays plugged is in no slot while the change is under way.
    fn disturbs(&self) -> bool {
        self.remove.iter().any(|&(gone, length)| {
            self.add
                .iter()
                .any(|&(start, bytes)| gone < start + bytes && start < gone + length)
        })
    }
}

/// The memslots of one VM.
pub struct Memslots {
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
    hot: BTreeMap<u64, HotSlot>,
    free_ids: Vec<u32>,
    next_id: u32,
}

impl Memslots {
    /// Maps boot RAM and the plugged runs. Call it before any irqchip exists: afterwards every
    /// change costs KVM a grace period.
    ///
    /// # Errors
    /// [`MemslotError`].
    pub fn new(vm: Arc<VmFd>, ram: Arc<Ram>, plugged: &[PluggedRun]) -> Result<Self, MemslotError> {
        let mut slots = Self {
            vm,
            ram,
            hot: BTreeMap::new(),
            free_ids: Vec::new(),
            next_id: 0,
        };
        let mut offset = 0;
        for (gpa, bytes) in layout::boot_ram(slots.ram.layout().boot) {
            let id = slots.take_id();
            slots.set(id, gpa, bytes, offset)?;
            offset += bytes;
        }
        for run in chunked(plugged) {
            slots.add(run)?;
        }
        Ok(slots)
    }

    /// Brings the slots of the region to exactly `plugged`. When a slot has to be replaced by
    /// smaller ones, `hold` is called first and must return a guard that keeps every vCPU out of
    /// the guest until it is dropped.
    ///
    /// # Errors
    /// [`MemslotError`]; the slots are then as before as far as KVM let them be put back.
    pub fn update<G>(
        &mut self,
        plugged: &[PluggedRun],
        hold: impl FnOnce() -> G,
    ) -> Result<(), MemslotError> {
        let change = self.change_to(plugged);
        let _held = change.disturbs().then(hold);
        for (done, &run) in change.remove.iter().enumerate() {
            if let Err(error) = self.remove(run) {
                self.put_back(&[], &change.remove[..done]);
                return Err(error);
            }
        }
        for (done, &run) in change.add.iter().enumerate() {
            if let Err(error) = self.add(run) {
                self.put_back(&change.add[..done], &change.remove);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes the part of a change that was made. KVM has just held these very slots, so it takes
    /// them again; if it does not, the guest loses memory and the vCPU's next exit says so.
    fn put_back(&mut self, added: &[PluggedRun], removed: &[PluggedRun]) {
        for &run in added {
            if let Err(error) = self.remove(run) {
                tracing::error!(%error, "a memslot could not be taken back");
            }
        }
        for &run in removed {
            if let Err(error) = self.add(run) {
                tracing::error!(%error, "a memslot could not be put back");
            }
        }
    }

    fn change_to(&self, plugged: &[PluggedRun]) -> Change {
        let wanted: BTreeMap<u64, u64> = chunked(plugged).into_iter().collect();
        let stays = |offset: &u64, bytes: u64| wanted.get(offset) == Some(&bytes);
        Change {
            remove: self
                .hot
                .iter()
                .filter(|(offset, slot)| !stays(offset, slot.bytes))
                .map(|(&offset, slot)| (offset, slot.bytes))
                .collect(),
            add: wanted
                .iter()
                .filter(|(offset, bytes)| self.hot.get(offset).is_none_or(|slot| slot.bytes != **bytes))
                .map(|(&offset, &bytes)| (offset, bytes))
                .collect(),
        }
    }

    fn add(&mut self, (offset, bytes): PluggedRun) -> Result<(), MemslotError> {
        let id = self.take_id();
        let result = self.set(
            id,
            layout::HOTPLUG + offset,
            bytes,
            self.ram.layout().boot + offset,
        );
        match result {
            Ok(()) => {
                self.hot.insert(offset, HotSlot { id, bytes });
                Ok(())
            }
            Err(error) => {
                self.free_ids.push(id);
                Err(error)
            }
        }
    }

    fn remove(&mut self, (offset, _): PluggedRun) -> Result<(), MemslotError> {
        if let Some(slot) = self.hot.get(&offset).copied() {
            // Size 0 deletes a slot.
            self.set(
                slot.id,
                layout::HOTPLUG + offset,
                0,
                self.ram.layout().boot + offset,
            )?;
            self.hot.remove(&offset);
            self.free_ids.push(slot.id);
        }
        Ok(())
    }

    fn take_id(&mut self) -> u32 {
        self.free_ids.pop().unwrap_or_else(|| {
            self.next_id += 1;
            self.next_id - 1
        })
    }

    fn set(&self, slot: u32, gpa: u64, bytes: u64, offset: u64) -> Result<(), MemslotError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: self.ram.host_address(offset),
        };
        // SAFETY: the range lies in `ram`'s reservation, which outlives the VM fd's use: `self`
        // holds both, and the vCPUs that could reach it are gone before `ram` is dropped (Machine).
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| MemslotError {
            gpa,
            bytes,
            source,
        })
    }
}

/// Cuts runs at chunk borders and joins nothing across them.
fn chunked(plugged: &[PluggedRun]) -> Vec<PluggedRun> {
    debug_assert!(LINUX_MEMORY_BLOCK.is_multiple_of(HOTPLUG_BLOCK));
    let mut cut = Vec::new();
    for &(mut offset, mut bytes) in plugged {
        while bytes > 0 {
            let piece = bytes.min(LINUX_MEMORY_BLOCK - offset % LINUX_MEMORY_BLOCK);
            cut.push((offset, piece));
            offset += piece;
            bytes -= piece;
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MIB;
    use crate::ram::RamLayout;

    #[test]
    fn runs_are_cut_at_chunk_borders() {
        assert_eq!(
            chunked(&[(126 * MIB, 4 * MIB), (256 * MIB, 128 * MIB)]),
            vec![(126 * MIB, 2 * MIB), (128 * MIB, 2 * MIB), (256 * MIB, 128 * MIB)]
        );
    }

    /// Slots without a VM behind them: what `change_to` decides is all that is looked at.
    fn planned(have: &[PluggedRun]) -> Option<Memslots> {
        let kvm = crate::kvm::open().ok()?;
        let vm = Arc::new(kvm.create_vm().ok()?);
        let ram = Arc::new(
            Ram::anonymous(RamLayout {
                boot: 64 * MIB,
                hotplug: 512 * MIB,
            })
            .ok()?,
        );
        for &(offset, bytes) in have {
            ram.plug(offset, bytes).ok()?;
        }
        Memslots::new(vm, ram, have).ok()
    }

    #[test]
    fn growing_into_other_chunks_leaves_the_slots_alone_and_splitting_one_disturbs_it() {
        let Some(mut slots) = planned(&[(0, 128 * MIB)]) else {
            eprintln!("SKIPPED: no usable KVM");
            return;
        };
        let grow = slots.change_to(&[(0, 256 * MIB)]);
        assert_eq!(
            grow,
            Change {
                remove: vec![],
                add: vec![(128 * MIB, 128 * MIB)]
            }
        );
        assert!(!grow.disturbs());
        let hole = [(0, 64 * MIB), (66 * MIB, 62 * MIB)];
        let split = slots.change_to(&hole);
        assert!(split.disturbs());
        let mut held = false;
        slots.update(&hole, || held = true).unwrap();
        assert!(held);
        assert_eq!(slots.change_to(&hole), Change::default());
        slots
            .update(&[], || panic!("taking all away needs no hold"))
            .unwrap();
        assert!(slots.hot.is_empty());
    }
}
