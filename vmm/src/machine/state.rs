//! The state of a machine beside its memory and disks.

use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};

use super::parts::mem_config;
use super::{Machine, MachineError, ioctl};
use crate::device_set::DeviceStates;
use crate::hotplug::run_of;
use crate::ram::{PluggedRun, RamLayout};
use crate::vcpu::state::{self, VcpuState};

/// Everything KVM and the device models hold. From a file it is untrusted.
#[derive(Clone, Serialize, Deserialize)]
pub struct MachineState {
    /// Memory sizes.
    pub ram: RamLayout,
    /// The vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// kvm-clock, in nanoseconds.
    pub clock_ns: u64,
    /// The devices.
    pub devices: DeviceStates,
    /// VM generation id the guest last saw.
    pub generation: [u8; 16],
    /// Whether it stood at its fork port: a copy wakes there, and is told who it is.
    pub at_port: bool,
}

impl Machine {
    /// Saves everything but memory and disks. Nothing is changed: the machine may go on.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn save(&self) -> Result<MachineState, MachineError> {
        // Devices first: what they still owe the guest is in memory or in their state. Then the
        // vCPUs, then what belongs to the VM.
        let devices = self.shared.devices.save();
        let vcpus = self
            .vcpus
            .iter()
            .map(|vcpu| state::save(vcpu.index, &vcpu.fd, &vcpu.cpuid, &self.shared.msrs))
            .collect::<Result<_, _>>()?;
        let clock = self.shared.vm.get_clock().map_err(ioctl("KVM_GET_CLOCK"))?;
        Ok(MachineState {
            ram: self.shared.ram.layout(),
            vcpus,
            clock_ns: clock.clock,
            devices,
            generation: self.shared.generation,
            at_port: self.at_port,
        })
    }
}

impl MachineState {
    /// The runs of the virtio-mem region that were plugged, checked against its layout.
    ///
    /// # Errors
    /// [`MachineError`] when they cannot be those of such a machine.
    pub fn plugged(&self) -> Result<Vec<PluggedRun>, MachineError> {
        let config = mem_config(self.ram.check()?)?;
        let (_, mem) = &self.devices.mem;
        let ranges = mem
            .plugged_ranges(&config)
            .map_err(|error| MachineError::Device {
                device: "virtio-mem",
                why: error.to_string(),
            })?;
        Ok(ranges.into_iter().map(run_of).collect())
    }
}

/// A kvm-clock that goes on from `clock_ns`: monotonic time in the guest stands still while it is
/// at rest and never goes back. Wall-clock time is the agent's business.
pub(super) fn clock_from(clock_ns: u64) -> kvm_clock_data {
    kvm_clock_data {
        clock: clock_ns,
        ..Default::default()
    }
}
