//! The virtual machine generation id: 128 bits in guest memory that are new whenever a guest wakes
//! up as somebody else, so that its kernel reseeds its random numbers.
//!
//! Layout and rules are Microsoft's ("Virtual Machine Generation ID", 2012): the id lies in guest
//! RAM the operating system keeps its hands off (an ACPI reserved range), 8-byte aligned, in a page
//! of its own. An ACPI device with the compatible ids [`CIDS`] has an object `ADDR` evaluating to a
//! package of two integers, the low and the high 32 bits of the address. On a change the id is
//! written first, then the guest is told by `Notify(device, 0x80)`. Linux reads it so in
//! `drivers/virt/vmgenid.c`: it compares the id with the one it knows and, if it differs, stirs it
//! into its generator and reseeds at once.

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::virtio::Memory;

/// ACPI compatible ids: a package of both is the `_CID` of the device (`_HID` is the vendor's own).
/// Linux knows the device by either (ACPICA makes them upper case before they are compared); the
/// second is Microsoft's first, too long for the ACPI specification.
pub const CIDS: [&str; 2] = ["VMGENCTR", "VM_Gen_Counter"];

/// ACPI object that evaluates to `Package { low 32 bits, high 32 bits }` of the id's address.
pub const ADDR_OBJECT: &str = "ADDR";

/// Value of the ACPI notification that says the id has changed.
pub const NOTIFY_CHANGED: u8 = 0x80;

/// Size of the id in bytes.
pub const ID_SIZE: usize = 16;

/// Alignment of the id's address in bytes.
pub const ID_ALIGN: u64 = 8;

/// The generation id: which one, and where the guest finds it.
///
/// It is its own saved state: any 16 bytes are an id, and [`write_to`](Self::write_to) finds out
/// whether the address is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenId {
    id: [u8; ID_SIZE],
    addr: u64,
}

/// The id could not be put into guest memory.
#[derive(Debug, thiserror::Error)]
pub enum VmGenIdError {
    /// The address is not 8-byte aligned.
    #[error("the generation id's address {0:#x} is not 8-byte aligned")]
    Misaligned(u64),
    /// The address is not in guest memory.
    #[error("the generation id's address {addr:#x} is not in guest memory")]
    Memory {
        /// The address.
        addr: u64,
        /// What vm-memory found.
        source: GuestMemoryError,
    },
}

impl VmGenId {
    /// The id `id`, to lie at guest physical address `addr`. Take the id from a good random source.
    pub fn new(id: [u8; ID_SIZE], addr: GuestAddress) -> Self {
        Self { id, addr: addr.0 }
    }

    /// The id.
    pub fn id(&self) -> [u8; ID_SIZE] {
        self.id
    }

    /// Guest physical address of the id, for `ADDR`.
    pub fn addr(&self) -> GuestAddress {
        GuestAddress(self.addr)
    }

    /// Gives the VM a new id. Then [`write_to`](Self::write_to), then notify the guest.
    pub fn renew(&mut self, id: [u8; ID_SIZE]) {
        self.id = id;
    }

    /// Writes the id where the guest reads it.
    ///
    /// # Errors
    /// [`VmGenIdError`] if it cannot lie there.
    pub fn write_to(&self, memory: &Memory) -> Result<(), VmGenIdError> {
        let addr = self.addr;
        if !addr.is_multiple_of(ID_ALIGN) {
            return Err(VmGenIdError::Misaligned(addr));
        }
        memory
            .write_slice(&self.id, GuestAddress(addr))
            .map_err(|source| VmGenIdError::Memory { addr, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap()
    }

    fn id_in(memory: &Memory, addr: u64) -> [u8; ID_SIZE] {
        let mut id = [0; ID_SIZE];
        memory.read_slice(&mut id, GuestAddress(addr)).unwrap();
        id
    }

    #[test]
    fn the_guest_sees_the_id_and_then_the_new_one() {
        let memory = memory();
        let mut device = VmGenId::new([7; 16], GuestAddress(0x1000));
        device.write_to(&memory).unwrap();
        assert_eq!(id_in(&memory, 0x1000), [7; 16]);
        let saved = postcard::to_stdvec(&device).unwrap();
        device.renew([9; 16]);
        assert_eq!(id_in(&memory, 0x1000), [7; 16]);
        device.write_to(&memory).unwrap();
        assert_eq!(id_in(&memory, 0x1000), [9; 16]);
        let restored: VmGenId = postcard::from_bytes(&saved).unwrap();
        assert_eq!((restored.id(), restored.addr()), ([7; 16], GuestAddress(0x1000)));
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        let memory = memory();
        for addr in [0x1001, 0x1004, u64::MAX] {
            let error = VmGenId::new([1; 16], GuestAddress(addr)).write_to(&memory);
            assert!(matches!(error, Err(VmGenIdError::Misaligned(_))));
        }
        for addr in [0x1ff8, 0x2000, u64::MAX - 7] {
            let error = VmGenId::new([1; 16], GuestAddress(addr)).write_to(&memory);
            assert!(matches!(error, Err(VmGenIdError::Memory { .. })));
        }
    }
}
