//! The I/O APIC (Intel 82093AA) of a VM whose local APICs are in the kernel (`KVM_CAP_SPLIT_IRQCHIP`).
//!
//! With a split irqchip an interrupt pin is a KVM GSI whose route is a message (MSI), and an irqfd
//! on that GSI delivers it without us. So this model never delivers anything: it keeps the guest's
//! redirection table, translates each unmasked entry into its message as QEMU's `hw/intc/ioapic.c`
//! does (`ioapic_entry_parse()`, read back by `kvm_set_msi_irq()` in the kernel's
//! `arch/x86/kvm/irq_comm.c`), and hands the 24 routes to an [`IrqRouter`] when one has changed.
//!
//! Pins are edge-triggered. An entry programmed as level-triggered is accepted and its message
//! carries the trigger mode, but the pin has no level that could still be high after the EOI:
//! there is no Remote IRR and nothing is delivered again. Its EOIs reach user space
//! (`KVM_EXIT_IOAPIC_EOI`) and are to be ignored. (Clearing the trigger mode in the message instead
//! would save these exits and lose interrupts: Linux, seeing an edge arrive for a level entry, masks
//! and unmasks the entry after each one; `ioapic_ack_level()`.) Declare the pins edge-triggered in
//! ACPI and none of this happens.
//!
//! An edge on a masked pin is lost, as the 82093AA wants it: a masked pin has no route.

use std::io;

use serde::{Deserialize, Serialize};

/// Where x86 guests look for the first I/O APIC.
pub const IOAPIC_ADDR: u64 = 0xfec0_0000;

/// Size of its register page in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;

/// Number of pins, and of the GSIs they are: pin `n` is GSI `n`.
pub const PINS: usize = 24;

/// Number of the last pin, as the version register tells it.
const LAST_PIN: u32 = 23;

/// Version without an EOI register, as KVM's own.
const VERSION: u32 = 0x11;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;

const ENTRY_MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask, destination. What is not
/// in it is read-only (delivery status, Remote IRR: always 0 here) or reserved.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

const MSI_ADDRESS: u64 = 0xfee0_0000;

/// A message-signalled interrupt: what a device would write, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Guest physical address of the write: `0xfee00000`, the destination and its mode.
    pub address: u64,
    /// The value written: vector, delivery mode and trigger mode.
    pub data: u32,
}

impl Msi {
    /// The message of a redirection entry, if it is not masked.
    ///
    /// The redirection hint stays 0 as in KVM (`ioapic_service()`) and QEMU, also for a logical
    /// destination: "lowest priority" is said by the delivery mode. Destinations have 8 bits.
    fn of_entry(entry: u64) -> Option<Self> {
        if entry & ENTRY_MASKED != 0 {
            return None;
        }
        let destination = entry >> 56;
        let logical = entry >> 11 & 1;
        // Vector (0-7), delivery mode (8-10) and trigger mode (15) have the same places in both.
        let data = u32::try_from(entry & 0x87ff).unwrap_or_default();
        Some(Self {
            address: MSI_ADDRESS | destination << 12 | logical << 2,
            data,
        })
    }
}

/// Takes the pins' routes, pin by pin; `None` is a masked pin, on which nothing may be delivered.
pub trait IrqRouter: Send {
    /// Puts all routes in place (`KVM_SET_GSI_ROUTING` replaces the whole table).
    ///
    /// # Errors
    /// The hypervisor refused; the old routes are still in place.
    fn set_routes(&mut self, routes: &[Option<Msi>; PINS]) -> io::Result<()>;
}

/// An I/O APIC at rest. Read from a file it is untrusted; [`Ioapic::restore`] checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    /// The APIC id, 4 bits.
    pub id: u8,
    /// The selected register.
    pub select: u8,
    /// The redirection table.
    pub table: [u64; PINS],
}

/// Why an I/O APIC could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The APIC id has more than 4 bits.
    #[error("the saved I/O APIC id {0} has more than 4 bits")]
    Id(u8),
    /// A redirection entry has bits set that no write can set.
    #[error("the saved redirection entry of pin {pin} has reserved bits: {entry:#018x}")]
    Entry {
        /// Which pin.
        pin: usize,
        /// The saved entry.
        entry: u64,
    },
    /// The state is good, but its routes could not be set.
    #[error("cannot set the interrupt routes of the I/O APIC")]
    Routes(#[source] io::Error),
}

/// The I/O APIC.
pub struct Ioapic<R> {
    router: R,
    id: u8,
    select: u8,
    table: [u64; PINS],
    /// What the router took last.
    routes: [Option<Msi>; PINS],
}

impl<R: IrqRouter> Ioapic<R> {
    /// An I/O APIC out of reset: all pins masked. `router` has no routes yet and is not called.
    pub fn new(router: R) -> Self {
        Self {
            router,
            id: 0,
            select: 0,
            table: [ENTRY_MASKED; PINS],
            routes: [None; PINS],
        }
    }

    /// The I/O APIC `state` was saved from; its routes are set in the router.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(state: &IoapicState, mut router: R) -> Result<Self, RestoreError> {
        let IoapicState { id, select, table } = *state;
        if id > 0xf {
            return Err(RestoreError::Id(id));
        }
        let stray = table
            .iter()
            .enumerate()
            .find(|&(_, entry)| entry & !ENTRY_WRITABLE != 0);
        if let Some((pin, &entry)) = stray {
            return Err(RestoreError::Entry { pin, entry });
        }
        let routes = table.map(Msi::of_entry);
        router.set_routes(&routes).map_err(RestoreError::Routes)?;
        Ok(Self {
            router,
            id,
            select,
            table,
            routes,
        })
    }

    /// What [`restore`](Self::restore) needs.
    pub fn save(&self) -> IoapicState {
        IoapicState {
            id: self.id,
            select: self.select,
            table: self.table,
        }
    }

    /// The routes the router took last.
    pub fn routes(&self) -> &[Option<Msi>; PINS] {
        &self.routes
    }

    /// The guest reads `data.len()` bytes at `offset` of the register page. Registers have 4 bytes;
    /// any other read, and any other offset, gives zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_selected(),
            _ => 0,
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = value.to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset` of the register page. Anything but 4 bytes at the index
    /// or the data register is ignored, the EOI register (0x40) too: version 0x11 has none.
    ///
    /// # Errors
    /// The router's. The table holds what the guest wrote all the same, and the next write that
    /// touches it tries the routes again.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return Ok(());
        };
        match offset {
            IOREGSEL => self.select = data[0],
            IOWIN => return self.write_selected(u32::from_le_bytes(data)),
            _ => {}
        }
        Ok(())
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION | LAST_PIN << 16,
            select => {
                let (pin, shift) = entry_half(select);
                let half = self
                    .table
                    .get(pin)
                    .map_or(0, |entry| entry >> shift & 0xffff_ffff);
                u32::try_from(half).unwrap_or_default()
            }
        }
    }

    fn write_selected(&mut self, value: u32) -> io::Result<()> {
        match self.select {
            REG_ID => self.id = value.to_le_bytes()[3] & 0xf,
            REG_VERSION | REG_ARBITRATION => {}
            select => {
                let (pin, shift) = entry_half(select);
                if let Some(entry) = self.table.get_mut(pin) {
                    let kept = *entry & !(0xffff_ffff << shift);
                    *entry = (kept | u64::from(value) << shift) & ENTRY_WRITABLE;
                    return self.update_routes();
                }
            }
        }
        Ok(())
    }

    fn update_routes(&mut self) -> io::Result<()> {
        let routes = self.table.map(Msi::of_entry);
        if routes != self.routes {
            self.router.set_routes(&routes)?;
            self.routes = routes;
        }
        Ok(())
    }
}

/// The pin a register belongs to and the place of its half in the entry; a pin past the last for
/// registers that are none.
fn entry_half(select: u8) -> (usize, u32) {
    let pin = select
        .checked_sub(REG_TABLE)
        .map_or(PINS, |register| usize::from(register / 2));
    (pin, u32::from(select & 1) * 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Remembers every table it was given.
    #[derive(Default)]
    struct Routes {
        taken: Vec<[Option<Msi>; PINS]>,
        refuse: bool,
    }

    impl IrqRouter for Routes {
        fn set_routes(&mut self, routes: &[Option<Msi>; PINS]) -> io::Result<()> {
            if self.refuse {
                return Err(io::ErrorKind::Other.into());
            }
            self.taken.push(*routes);
            Ok(())
        }
    }

    type Model = Ioapic<Routes>;

    fn ioapic() -> Model {
        Ioapic::new(Routes::default())
    }

    fn get(ioapic: &mut Model, register: u8) -> u32 {
        ioapic.write(0, &u32::from(register).to_le_bytes()).unwrap();
        let mut data = [0xff; 4];
        ioapic.read(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(ioapic: &mut Model, register: u8, value: u32) -> io::Result<()> {
        ioapic.write(0, &u32::from(register).to_le_bytes()).unwrap();
        ioapic.write(0x10, &value.to_le_bytes())
    }

    #[test]
    fn it_identifies_itself_as_an_82093aa_with_24_masked_pins() {
        let mut ioapic = ioapic();
        assert_eq!(get(&mut ioapic, 1), 0x0017_0011);
        for pin in 0..24 {
            assert_eq!(get(&mut ioapic, 0x10 + 2 * pin), 0x1_0000);
            assert_eq!(get(&mut ioapic, 0x11 + 2 * pin), 0);
        }
        assert!(ioapic.router.taken.is_empty());
    }

    #[test]
    fn only_the_id_of_the_first_three_registers_is_writable() {
        let mut ioapic = ioapic();
        for register in 0..3 {
            set(&mut ioapic, register, 0xffff_ffff).unwrap();
        }
        assert_eq!(get(&mut ioapic, 0), 0x0f00_0000);
        assert_eq!(get(&mut ioapic, 1), 0x0017_0011);
        assert_eq!(get(&mut ioapic, 2), 0x0f00_0000);
    }

    #[test]
    fn an_unmasked_entry_becomes_its_message() {
        let mut ioapic = ioapic();
        // Linux writes the upper half first, then the lower: fixed, physical, vector 0x31, APIC 3.
        set(&mut ioapic, 0x11 + 2 * 5, 3 << 24).unwrap();
        assert!(
            ioapic.router.taken.is_empty(),
            "a masked entry has no route to change"
        );
        set(&mut ioapic, 0x10 + 2 * 5, 0x31).unwrap();
        let expected = Msi {
            address: 0xfee0_3000,
            data: 0x31,
        };
        assert_eq!(ioapic.routes()[5], Some(expected));
        assert_eq!(ioapic.routes().iter().flatten().count(), 1);
        assert_eq!(ioapic.router.taken, [*ioapic.routes()]);
        set(&mut ioapic, 0x10 + 2 * 5, 0x1_0031).unwrap();
        assert_eq!(ioapic.routes(), &[None; PINS]);
    }

    #[test]
    fn modes_are_carried_over_and_the_redirection_hint_is_not_set() {
        // Lowest priority, logical, level, active low, vector 0x52, to logical id 0xff.
        let entry = 0xff00_0000_0000_0000 | 1 << 8 | 1 << 11 | 1 << 13 | 1 << 15 | 0x52;
        assert_eq!(
            Msi::of_entry(entry),
            Some(Msi {
                address: 0xfeef_f004,
                data: 0x8152
            })
        );
        // NMI, physical, to APIC 0.
        assert_eq!(
            Msi::of_entry(4 << 8),
            Some(Msi {
                address: 0xfee0_0000,
                data: 0x400
            })
        );
        assert_eq!(Msi::of_entry(entry | ENTRY_MASKED), None);
    }

    #[test]
    fn the_router_hears_only_of_changes_that_matter() {
        let mut ioapic = ioapic();
        set(&mut ioapic, 0x10, 0x30).unwrap();
        assert_eq!(ioapic.router.taken.len(), 1);
        set(&mut ioapic, 0x10, 0x30).unwrap();
        set(&mut ioapic, 0x10, 0x30 | 1 << 13).unwrap(); // polarity is not in the message
        set(&mut ioapic, 0x10, 0x30 | 1 << 12 | 1 << 14).unwrap(); // read-only bits
        set(&mut ioapic, 0x12, 0x1_0040).unwrap(); // still masked
        set(&mut ioapic, 0, 1 << 24).unwrap();
        assert_eq!(ioapic.router.taken.len(), 1);
    }

    #[test]
    fn read_only_and_reserved_bits_stay_clear() {
        let mut ioapic = ioapic();
        set(&mut ioapic, 0x10, 0xffff_ffff).unwrap();
        set(&mut ioapic, 0x11, 0xffff_ffff).unwrap();
        assert_eq!(get(&mut ioapic, 0x10), 0x0001_afff);
        assert_eq!(get(&mut ioapic, 0x11), 0xff00_0000);
    }

    #[test]
    fn other_sizes_offsets_and_registers_do_nothing() {
        let mut ioapic = ioapic();
        let before = ioapic.save();
        for (offset, len) in [
            (0, 1),
            (0, 8),
            (0x10, 1),
            (0x10, 2),
            (0x10, 8),
            (0x40, 4),
            (4, 4),
            (0xfff, 4),
        ] {
            ioapic.write(offset, &vec![0x11; len]).unwrap();
            assert_eq!(ioapic.save(), before, "{offset:#x} {len}");
        }
        set(&mut ioapic, 1, 0).unwrap();
        for (offset, len) in [(0x10, 0), (0x10, 1), (0x10, 2), (0x10, 8), (0x40, 4), (0x14, 4)] {
            let mut data = vec![0xff; len];
            ioapic.read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0), "{offset:#x} {len}");
        }
        for register in [3, 0xf, 0x40, 0xff] {
            set(&mut ioapic, register, 0).unwrap();
            assert_eq!(get(&mut ioapic, register), 0);
        }
        assert!(ioapic.router.taken.is_empty());
    }

    #[test]
    fn routes_that_were_refused_are_tried_again() {
        let mut ioapic = ioapic();
        ioapic.router.refuse = true;
        assert!(set(&mut ioapic, 0x10, 0x30).is_err());
        assert_eq!(get(&mut ioapic, 0x10), 0x30);
        assert_eq!(ioapic.routes()[0], None);
        ioapic.router.refuse = false;
        set(&mut ioapic, 0x12, 0x1_0000).unwrap();
        assert_eq!(ioapic.routes()[0].map(|msi| msi.data), Some(0x30));
    }

    #[test]
    fn a_restored_ioapic_has_its_routes_set_even_if_there_are_none() {
        let mut old = ioapic();
        set(&mut old, 0x10 + 2 * 7, 0x47).unwrap();
        set(&mut old, 0, 5 << 24).unwrap();
        let bytes = postcard::to_stdvec(&old.save()).unwrap();
        let state: IoapicState = postcard::from_bytes(&bytes).unwrap();
        let new = Ioapic::restore(&state, Routes::default()).ok().unwrap();
        assert_eq!(new.save(), old.save());
        assert_eq!(new.router.taken, [*old.routes()]);
        let none = Ioapic::restore(&ioapic().save(), Routes::default()).ok().unwrap();
        assert_eq!(none.router.taken, [[None; PINS]]);
    }

    #[test]
    fn an_impossible_state_is_refused() {
        let refused = |change: fn(&mut IoapicState)| {
            let mut state = ioapic().save();
            change(&mut state);
            Ioapic::restore(&state, Routes::default()).err()
        };
        assert!(matches!(refused(|s| s.id = 16), Some(RestoreError::Id(16))));
        assert!(matches!(
            refused(|s| s.table[3] |= 1 << 14),
            Some(RestoreError::Entry { pin: 3, .. })
        ));
        assert!(matches!(
            refused(|s| s.table[23] |= 1 << 40),
            Some(RestoreError::Entry { pin: 23, .. })
        ));
        assert!(refused(|s| s.select = 0xff).is_none());
        let router = Routes {
            refuse: true,
            ..Routes::default()
        };
        let failed = Ioapic::restore(&ioapic().save(), router).err();
        assert!(matches!(failed, Some(RestoreError::Routes(_))));
    }

    proptest! {
        #[test]
        fn after_any_accesses_the_routes_are_the_table_and_the_state_restores(
            accesses in proptest::collection::vec((0u64..0x50, any::<[u8; 8]>(), 0usize..=8), 0..60),
        ) {
            let mut ioapic = ioapic();
            for (offset, data, len) in accesses {
                ioapic.write(offset & !3, &data[..len]).unwrap();
                ioapic.read(offset, &mut vec![0; len]);
            }
            let state = ioapic.save();
            let last = ioapic.router.taken.last().copied().unwrap_or([None; PINS]);
            prop_assert_eq!(&last, ioapic.routes());
            prop_assert_eq!(last, state.table.map(Msi::of_entry));
            prop_assert!(ioapic.router.taken.windows(2).all(|pair| pair[0] != pair[1]));
            let restored = Ioapic::restore(&state, Routes::default()).ok().unwrap();
            prop_assert_eq!(restored.save(), state);
        }
    }
}
