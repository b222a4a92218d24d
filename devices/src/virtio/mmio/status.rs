//! The device status machine (virtio 1.2, 2.1 and 3.1.1).

/// The driver noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// The driver knows how to drive it.
pub const DRIVER: u32 = 2;
/// The driver is ready; the device is live.
pub const DRIVER_OK: u32 = 4;
/// Feature negotiation is complete.
pub const FEATURES_OK: u32 = 8;
/// The device met something it cannot recover from by itself.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// The driver gave up on the device.
pub const FAILED: u32 = 128;

/// The steps of initialisation, in the one order that is legal.
const STEPS: [(u32, Step); 4] = [
    (ACKNOWLEDGE, Step::Acknowledge),
    (DRIVER, Step::Driver),
    (FEATURES_OK, Step::FeaturesOk),
    (DRIVER_OK, Step::DriverOk),
];

/// One step of device initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To ACKNOWLEDGE.
    Acknowledge,
    /// To DRIVER.
    Driver,
    /// To FEATURES_OK: the device may refuse.
    FeaturesOk,
    /// To DRIVER_OK: the device goes live.
    DriverOk,
}

/// What a driver's write to the status register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reset the device.
    Reset,
    /// The driver gave up.
    GiveUp,
    /// Take this step (and then look at the same value again).
    Take(Step),
    /// The value asks for nothing new.
    Nothing,
    /// The value clears a bit, skips a step or sets an unknown bit. It is to be ignored.
    Illegal,
}

/// The device status register. Only legal combinations can be held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(u32);

impl Status {
    /// A saved register, if it is one a device can be in.
    pub fn from_saved(bits: u32) -> Option<Self> {
        let progress = bits & !(DEVICE_NEEDS_RESET | FAILED);
        matches!(progress, 0 | 1 | 3 | 11 | 15).then_some(Self(bits))
    }

    /// The register's value.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `bits` are set.
    pub fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// The device may use its queues: DRIVER_OK, and neither side gave up.
    pub fn is_active(self) -> bool {
        self.0 & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// The driver may set queues up: features are agreed on and the device isn't live yet.
    pub fn is_configuring(self) -> bool {
        self.0 & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK
    }

    /// What the driver asks for by writing `value` while the register is as it is.
    pub fn request(self, value: u32) -> Request {
        if value == 0 {
            return Request::Reset;
        }
        // DEVICE_NEEDS_RESET is the device's to set; drivers write back what they read.
        let asked = value & !DEVICE_NEEDS_RESET;
        let held = self.0 & !DEVICE_NEEDS_RESET;
        if asked & held != held || asked & !(15 | FAILED) != 0 {
            return Request::Illegal;
        }
        if asked & FAILED != 0 {
            return if held & FAILED == 0 {
                Request::GiveUp
            } else {
                Request::Nothing
            };
        }
        match STEPS.iter().find(|(bit, _)| held & bit == 0) {
            Some((bit, step)) if asked & bit != 0 => Request::Take(*step),
            _ if asked == held => Request::Nothing,
            _ => Request::Illegal,
        }
    }

    pub(super) fn take(&mut self, step: Step) {
        for (bit, known) in STEPS {
            if known == step {
                self.0 |= bit;
            }
        }
    }

    pub(super) fn give_up(&mut self) {
        self.0 |= FAILED;
    }

    pub(super) fn need_reset(&mut self) {
        self.0 |= DEVICE_NEEDS_RESET;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_taken_in_their_order() {
        let mut status = Status::default();
        for (value, step) in [
            (1, Step::Acknowledge),
            (3, Step::Driver),
            (11, Step::FeaturesOk),
            (15, Step::DriverOk),
        ] {
            assert_eq!(status.request(value), Request::Take(step));
            status.take(step);
            assert_eq!(status.bits(), value);
            assert_eq!(status.request(value), Request::Nothing);
        }
        assert!(status.is_active());
    }

    #[test]
    fn a_skipped_step_a_cleared_bit_or_an_unknown_bit_is_illegal() {
        assert_eq!(Status(0).request(DRIVER), Request::Illegal);
        assert_eq!(Status(3).request(7), Request::Illegal);
        assert_eq!(Status(3).request(1), Request::Illegal);
        assert_eq!(Status(3).request(3 | 16), Request::Illegal);
        assert_eq!(Status(3).request(3 | 1 << 31), Request::Illegal);
    }

    #[test]
    fn zero_resets_whatever_the_device_is_in() {
        for bits in [0, 1, 3, 11, 15, 15 | DEVICE_NEEDS_RESET, 15 | FAILED] {
            assert_eq!(Status(bits).request(0), Request::Reset);
        }
    }

    #[test]
    fn a_driver_that_writes_needs_reset_back_changes_nothing() {
        let status = Status(15 | DEVICE_NEEDS_RESET);
        assert_eq!(status.request(15 | DEVICE_NEEDS_RESET), Request::Nothing);
        assert_eq!(status.request(15), Request::Nothing);
        assert_eq!(Status(15).request(15 | DEVICE_NEEDS_RESET), Request::Nothing);
    }

    #[test]
    fn nothing_is_active_after_either_side_gave_up() {
        assert_eq!(Status(15).request(15 | FAILED), Request::GiveUp);
        assert!(!Status(15 | FAILED).is_active());
        assert!(!Status(15 | DEVICE_NEEDS_RESET).is_active());
        assert!(!Status(11 | FAILED).is_configuring());
    }

    #[test]
    fn only_a_status_that_can_be_reached_is_restored() {
        let legal: Vec<u32> = (0..=0x1ff)
            .filter(|bits| Status::from_saved(*bits).is_some())
            .collect();
        for bits in &legal {
            assert!([0, 1, 3, 11, 15].contains(&(bits & 0x13f)), "{bits:#x}");
        }
        assert_eq!(legal.len(), 20);
    }
}
