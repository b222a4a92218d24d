//! Interrupt lines: an irqfd a device, routed as an MSI by our own IOAPIC (split irqchip).

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use spore_devices::Interrupt;
use spore_devices::ioapic::{IrqRouter, Msi};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::layout::IOAPIC_PINS;

/// Creates the in-kernel LAPICs and leaves the IOAPIC to us. Memslots come before, vCPUs after.
///
/// # Errors
/// What `KVM_ENABLE_CAP` reports.
pub fn create_split_irqchip(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&cap)
}

/// One device's interrupt line.
pub struct IrqLine {
    event: EventFd,
}

impl IrqLine {
    /// An irqfd on interrupt line `gsi`.
    ///
    /// # Errors
    /// When no descriptor can be had or KVM refuses it.
    pub fn new(vm: &VmFd, gsi: u32) -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        vm.register_irqfd(&event, gsi)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Arc::new(Self { event }))
    }
}

impl Interrupt for IrqLine {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

/// vm-superio's notion of the same.
pub struct SerialLine(pub Arc<IrqLine>);

impl vm_superio::Trigger for SerialLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Hands the IOAPIC's routes to KVM.
pub struct KvmRouter(pub Arc<VmFd>);

impl IrqRouter for KvmRouter {
    fn set_routes(&mut self, routes: &[Option<Msi>; IOAPIC_PINS as usize]) -> io::Result<()> {
        let entries: Vec<_> = (0u32..)
            .zip(routes)
            .filter_map(|(gsi, route)| route.map(|msi| routing_entry(gsi, msi)))
            .collect();
        let routing =
            KvmIrqRouting::from_entries(&entries).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        self.0
            .set_gsi_routing(&routing)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

#[allow(clippy::cast_possible_truncation)] // The two halves of an address.
fn routing_entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}
