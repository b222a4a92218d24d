//! The register layout (virtio 1.2, 4.2.2): an offset and a length become a register or nothing.

/// Bytes of guest physical address space one transport answers.
pub const REGION_SIZE: u64 = 0x1000;
/// Where the device configuration space begins, in bytes from the start of the region.
pub const CONFIG_OFFSET: u64 = 0x100;
/// MagicValue: "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// Version: 2, the modern interface.
pub const VERSION: u32 = 2;
/// VendorID: "SPOR", little-endian. Drivers show it and do nothing else with it.
pub const VENDOR: u32 = u32::from_le_bytes(*b"SPOR");
/// What ShmLen and ShmBase read as for a region that doesn't exist.
pub const NO_SHARED_MEMORY: u32 = u32::MAX;

/// A 32-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the specification's, and so are their meanings.
pub enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueNumMax,
    QueueNum,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueDescLow,
    QueueDescHigh,
    QueueDriverLow,
    QueueDriverHigh,
    QueueDeviceLow,
    QueueDeviceHigh,
    ShmSel,
    ShmLenLow,
    ShmLenHigh,
    ShmBaseLow,
    ShmBaseHigh,
    ConfigGeneration,
}

impl Register {
    /// The register at `offset` bytes from the start of the region.
    pub fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::MagicValue,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSel,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSel,
            0x030 => Self::QueueSel,
            0x034 => Self::QueueNumMax,
            0x038 => Self::QueueNum,
            0x044 => Self::QueueReady,
            0x050 => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueDescLow,
            0x084 => Self::QueueDescHigh,
            0x090 => Self::QueueDriverLow,
            0x094 => Self::QueueDriverHigh,
            0x0a0 => Self::QueueDeviceLow,
            0x0a4 => Self::QueueDeviceHigh,
            0x0ac => Self::ShmSel,
            0x0b0 => Self::ShmLenLow,
            0x0b4 => Self::ShmLenHigh,
            0x0b8 => Self::ShmBaseLow,
            0x0bc => Self::ShmBaseHigh,
            0x0fc => Self::ConfigGeneration,
            _ => return None,
        })
    }
}

/// What an access of some length at some offset touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A register, accessed as the specification demands: 32 bits, aligned.
    Register(Register),
    /// The configuration space, at this many bytes from its start.
    Config(u64),
    /// Nothing: reads as zero, writes are ignored.
    Nothing,
}

impl Target {
    /// What `length` bytes at `offset` from the start of the region touch.
    pub fn of(offset: u64, length: usize) -> Self {
        match offset.checked_sub(CONFIG_OFFSET) {
            // Configuration fields are 8, 16 or 32 bits wide or, in pairs, 64 (virtio 1.2, 4.2.2.2).
            Some(inner) if matches!(length, 1 | 2 | 4 | 8) => Self::Config(inner),
            None if length == 4 => Register::at(offset).map_or(Self::Nothing, Self::Register),
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_aligned_32_bit_accesses_reach_a_register() {
        assert_eq!(Target::of(0x70, 4), Target::Register(Register::Status));
        for (offset, length) in [(0x70, 1), (0x70, 2), (0x70, 8), (0x70, 0), (0x71, 4), (0x6e, 4)] {
            assert_eq!(
                Target::of(offset, length),
                Target::Nothing,
                "{offset:#x}+{length}"
            );
        }
    }

    #[test]
    fn the_configuration_space_takes_the_widths_of_its_fields() {
        assert_eq!(Target::of(0x100, 1), Target::Config(0));
        assert_eq!(Target::of(0x106, 2), Target::Config(6));
        assert_eq!(Target::of(0x108, 8), Target::Config(8));
        assert_eq!(Target::of(0x100, 3), Target::Nothing);
        assert_eq!(Target::of(0x100, 0), Target::Nothing);
    }

    #[test]
    fn the_holes_of_the_layout_are_nothing() {
        for offset in [0x018, 0x028, 0x03c, 0x040, 0x048, 0x0c0, 0x0f8] {
            assert_eq!(Target::of(offset, 4), Target::Nothing, "{offset:#x}");
        }
    }
}
