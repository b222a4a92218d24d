//! A machine at rest, ready to be copied: its state, and its memory mapped.
//!
//! A template is loaded from a checkpoint ([`Template::load`]), or it is what a forked child has of a machine that
//! stood still when the process was forked ([`Template::of`]). It runs nothing and owns nothing of KVM's but the
//! device, so its process can be forked; [`Template::into_machine`] makes a machine of it, once.

use std::fs::File;
use std::sync::Arc;

use kvm_ioctls::Kvm;

use super::{MAX_VCPUS, Machine, MachineError, MachineState, ioctl};
use crate::kvm;
use crate::ram::{PluggedRun, Ram};
use crate::vcpu::cpuid;
use crate::wake_set::WakeSet;

/// A machine at rest.
pub struct Template {
    pub(super) kvm: Kvm,
    pub(super) state: MachineState,
    pub(super) ram: Arc<Ram>,
    pub(super) plugged: Vec<PluggedRun>,
    pub(super) wake_set: Option<WakeSet>,
}

/// How many vCPUs a saved machine has.
pub(super) fn vcpu_count(state: &MachineState) -> Result<u8, MachineError> {
    u8::try_from(state.vcpus.len())
        .ok()
        .filter(|count| (1..=MAX_VCPUS).contains(count))
        .ok_or(MachineError::VcpuCount(state.vcpus.len()))
}

impl Template {
    /// The machine `state` was saved from, over a private view of its `memory`. Nothing of it is read.
    ///
    /// # Errors
    /// [`MachineError`]; also when this host lacks CPU features that its guest was promised.
    pub fn load(state: MachineState, memory: &File) -> Result<Self, MachineError> {
        vcpu_count(&state)?;
        if !state.at_port {
            return Err(MachineError::NotAtPort);
        }
        let plugged = state.plugged()?;
        let ram = Ram::from_checkpoint(state.ram, memory, &plugged)?;
        let kvm = kvm::open()?;
        for vcpu in &state.vcpus {
            let missing =
                cpuid::missing_features(&kvm, vcpu.cpuid()).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
            if !missing.is_empty() {
                return Err(MachineError::CpuFeatures(missing));
            }
        }
        Ok(Self {
            kvm,
            state,
            ram: Arc::new(ram),
            plugged,
            wake_set: None,
        })
    }

    /// What a forked child has of a machine that stood still: its memory, and the `state` that was saved of it.
    /// KVM has nothing of it here; the descriptors that belong to the parent's machine are closed.
    ///
    /// # Errors
    /// [`MachineError`] when KVM cannot be opened anew.
    pub fn of(machine: Machine, state: MachineState) -> Result<Self, MachineError> {
        let ram = machine.shared.ram.clone();
        drop(machine);
        let plugged = state.plugged()?;
        Ok(Self {
            kvm: kvm::open()?,
            state,
            ram,
            plugged,
            wake_set: None,
        })
    }

    /// The state it was made from.
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// Its memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// What of the virtio-mem region is plugged.
    pub fn plugged(&self) -> &[PluggedRun] {
        &self.plugged
    }

    /// Which pages a machine made of it is given in advance.
    pub fn set_wake_set(&mut self, pages: WakeSet) {
        self.wake_set = Some(pages);
    }
}
