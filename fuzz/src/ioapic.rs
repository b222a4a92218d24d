//! The I/O APIC's registers.

use std::io;

use spore_devices::ioapic::{Ioapic, IrqRouter, Msi, PINS};

use crate::input::Input;

/// Takes every route.
pub struct Router;

impl IrqRouter for Router {
    fn set_routes(&mut self, routes: &[Option<Msi>; PINS]) -> io::Result<()> {
        for route in routes.iter().flatten() {
            assert_eq!(
                route.address & 0xFFF0_0000,
                0xFEE0_0000,
                "a message that is no interrupt"
            );
        }
        Ok(())
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut ioapic = Ioapic::new(Router);
    while !input.is_empty() {
        let (offset, length) = match input.u8() {
            0xFF => (input.u64(), usize::from(input.u8() % 9)),
            small => (u64::from(small % 0x44), 4),
        };
        let bytes = input.take(length);
        ioapic.write(offset, bytes).expect("no route is refused");
        let mut read = [0; 8];
        ioapic.read(offset, &mut read[..length]);
        let saved = ioapic.save();
        let again = Ioapic::restore(&saved, Router).expect("what was saved can be restored");
        assert_eq!(again.save(), saved);
        assert_eq!(again.routes(), ioapic.routes());
    }
}
