//! What a memory device keeps across a checkpoint or a fork.

use serde::{Deserialize, Serialize};

use super::{BlockRange, MemConfig, PluggedBlocks};

/// A memory device at rest. Read from a file it is untrusted; [`Mem::restore`](super::Mem::restore)
/// and [`MemState::plugged_ranges`] check it.
///
/// The region is in it although it cannot change: the guest's driver has read it once and holds on
/// to it, so a device over another region must not take this state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    /// Guest physical address of the region.
    pub addr: u64,
    /// Size of the region in bytes.
    pub region_size: u64,
    /// Size of a block in bytes.
    pub block_size: u64,
    /// Requested size in bytes.
    pub requested_size: u64,
    /// Plugged size in bytes. The bits say it too; both must agree with what the driver believes.
    pub plugged_size: u64,
    /// Block `n` is plugged if bit `n % 64` of word `n / 64` is set.
    pub plugged: Vec<u64>,
}

/// A saved state that is not one of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The state is of a device with another region.
    #[error("the saved memory device has another region or block size than this VM's")]
    Region,
    /// The bitmap has another length than the region, or bits past its end.
    #[error("the saved record of plugged blocks does not fit a region of {blocks} blocks")]
    Bitmap {
        /// Blocks in the region.
        blocks: u32,
    },
    /// The plugged size and the bitmap disagree.
    #[error("the saved plugged size is {saved} bytes, but blocks of {counted} bytes are plugged")]
    PluggedSize {
        /// The saved size in bytes.
        saved: u64,
        /// The size the bitmap says, in bytes.
        counted: u64,
    },
    /// The requested size is no whole number of blocks or larger than the region.
    #[error("the saved requested size of {0} bytes is not possible in this region")]
    RequestedSize(u64),
}

impl MemState {
    /// The maximal runs of plugged blocks, for the VMM to have their memory in place before it
    /// restores the device over it.
    ///
    /// # Errors
    /// [`RestoreError`] if this is no state of a device over `config`.
    pub fn plugged_ranges(&self, config: &MemConfig) -> Result<Vec<BlockRange>, RestoreError> {
        Ok(self.check(config)?.plugged.runs().collect())
    }

    pub(super) fn check(&self, config: &MemConfig) -> Result<Checked, RestoreError> {
        let region = (self.addr, self.region_size, self.block_size);
        if region != (config.addr().0, config.region_size(), config.block_size()) {
            return Err(RestoreError::Region);
        }
        let plugged =
            PluggedBlocks::from_words(config.blocks(), &self.plugged).ok_or(RestoreError::Bitmap {
                blocks: config.blocks(),
            })?;
        let counted = config.bytes(plugged.count());
        if self.plugged_size != counted {
            return Err(RestoreError::PluggedSize {
                saved: self.plugged_size,
                counted,
            });
        }
        let requested = config
            .whole_blocks(self.requested_size)
            .ok_or(RestoreError::RequestedSize(self.requested_size))?;
        Ok(Checked { plugged, requested })
    }
}

/// What is left of a [`MemState`] once it has been believed.
pub(super) struct Checked {
    pub(super) plugged: PluggedBlocks,
    /// Requested size in blocks.
    pub(super) requested: u32,
}
