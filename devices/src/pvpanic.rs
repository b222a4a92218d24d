//! The panic port: one byte of I/O space through which a dying guest kernel says so.
//!
//! QEMU's device (`docs/specs/pvpanic.rst`), which Linux drives from `drivers/misc/pvpanic` when
//! ACPI describes a device `QEMU0001` with one I/O port. Reading the port tells which events are
//! supported; writing one of them reports it. The device has no state to save.

/// ACPI hardware id of the device.
pub const HID: &str = "QEMU0001";

/// The port QEMU uses, and so do we.
pub const DEFAULT_PORT: u16 = 0x505;

/// What a guest can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PanicEvent {
    /// The kernel has panicked and will do nothing more.
    Panicked = 1 << 0,
    /// The kernel has panicked, and a crash kernel takes over now.
    CrashLoaded = 1 << 1,
}

/// The events the device supports, as the guest reads them from the port.
pub const SUPPORTED: u8 = PanicEvent::Panicked as u8 | PanicEvent::CrashLoaded as u8;

/// The guest reads the port: its only byte, and zeros for a wider read.
pub fn read(data: &mut [u8]) {
    data.fill(0);
    if let Some(first) = data.first_mut() {
        *first = SUPPORTED;
    }
}

/// The guest writes the port: the event it reports. A write of more than a byte, or of no event we
/// support, is none. If it reports both, the crash kernel is what matters.
pub fn write(data: &[u8]) -> Option<PanicEvent> {
    match *data {
        [bits] if bits & PanicEvent::CrashLoaded as u8 != 0 => Some(PanicEvent::CrashLoaded),
        [bits] if bits & PanicEvent::Panicked as u8 != 0 => Some(PanicEvent::Panicked),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_reads_as_the_supported_events() {
        let mut data = [0xff; 1];
        read(&mut data);
        assert_eq!(data, [3]);
        let mut data = [0xff; 4];
        read(&mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        read(&mut []);
    }

    #[test]
    fn a_written_event_is_reported_and_anything_else_is_not() {
        assert_eq!(write(&[1]), Some(PanicEvent::Panicked));
        assert_eq!(write(&[2]), Some(PanicEvent::CrashLoaded));
        assert_eq!(write(&[3]), Some(PanicEvent::CrashLoaded));
        assert_eq!(write(&[0xf1]), Some(PanicEvent::Panicked));
        for data in [&[][..], &[0], &[4], &[0xfc], &[1, 0], &[1, 0, 0, 0]] {
            assert_eq!(write(data), None);
        }
    }
}
