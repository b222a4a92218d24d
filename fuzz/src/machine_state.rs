//! The state of a machine, and of each of its devices, from a file that anybody may have written.

use serde::de::DeserializeOwned;
use spore_devices::ioapic::{Ioapic, IoapicState};
use spore_devices::virtio::VirtioDevice;
use spore_devices::virtio::balloon::{Balloon, BalloonState};
use spore_devices::virtio::block::{Block, BlockState};
use spore_devices::virtio::mem::{Mem, MemState};
use spore_devices::virtio::mmio::TransportState;
use spore_devices::virtio::vsock::{Vsock, VsockState};
use spore_vmm::machine::MachineState;

use crate::balloon::Pages;
use crate::block::Disk;
use crate::driver::{Driver, memory};
use crate::input::Input;
use crate::ioapic::Router;
use crate::virtio_mem::{self, Host};

/// A transport and a device of the state in `data`; if both are taken, a driver goes on with what is left of it.
fn restore<S: DeserializeOwned, D: VirtioDevice>(data: &[u8], device: impl FnOnce(S) -> Option<D>) {
    let Ok(((transport, state), rest)) = postcard::take_from_bytes::<(TransportState, S)>(data) else {
        return;
    };
    let Some(device) = device(state) else { return };
    if let Some(mut driver) = Driver::restored(device, transport, memory()) {
        driver.act(&mut Input::new(rest), |_, _| {});
    }
}

pub fn run(data: &[u8]) {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    match which % 6 {
        0 => {
            if let Ok(state) = postcard::from_bytes::<MachineState>(data) {
                // What a template checks before it maps anything.
                if let Ok(plugged) = state.plugged() {
                    assert!(plugged.iter().all(|(at, bytes)| at + bytes <= state.ram.span()));
                }
                for vcpu in &state.vcpus {
                    let _ = (vcpu.tsc(), vcpu.msr_indices().count());
                }
            }
        }
        1 => restore(data, |state: BlockState| {
            Block::restore(state, Box::new(Disk::new(true))).ok()
        }),
        2 => restore(data, |state: VsockState| Vsock::restore(&state).ok()),
        3 => restore(data, |state: BalloonState| Some(Balloon::restore(state, Pages))),
        4 => {
            // Blocks that are plugged in the state are not in this host's record: only the state is looked at.
            if let Ok((_, state)) = postcard::from_bytes::<(TransportState, MemState)>(data)
                && let Ok(device) = Mem::restore(virtio_mem::config(), &state, Host::default())
            {
                assert_eq!(device.save(), state);
            }
        }
        _ => {
            if let Ok(state) = postcard::from_bytes::<IoapicState>(data)
                && let Ok(ioapic) = Ioapic::restore(&state, Router)
            {
                assert_eq!(ioapic.save(), state);
            }
        }
    }
}
