//! Blocks, ranges of blocks, and the region they cut up: the only place where a number of blocks
//! becomes a number of bytes.

use std::num::NonZeroU32;

use vm_memory::GuestAddress;

/// Most blocks a region may have: 2 TiB in blocks of 2 MiB. It bounds what a saved state can make
/// us allocate.
const MAX_BLOCKS: u64 = 1 << 20;

/// Smallest block: a page.
const MIN_BLOCK_SIZE: u64 = 4096;

/// Number of a block in its region, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u32);

/// One or more consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    first: u32,
    count: NonZeroU32,
}

impl BlockRange {
    /// `count` blocks from `first`, or `None` if that is no block at all or past the last number.
    pub fn new(first: BlockIndex, count: u32) -> Option<Self> {
        first.0.checked_add(count)?;
        Some(Self {
            first: first.0,
            count: NonZeroU32::new(count)?,
        })
    }

    /// The first block.
    pub fn first(self) -> BlockIndex {
        BlockIndex(self.first)
    }

    /// How many blocks, at least one.
    pub fn count(self) -> u32 {
        self.count.get()
    }

    /// Number of the block after the last.
    pub fn end(self) -> BlockIndex {
        // Cannot overflow: `new` has checked it.
        BlockIndex(self.first + self.count.get())
    }

    /// The blocks one by one, in order.
    pub fn blocks(self) -> impl Iterator<Item = BlockIndex> {
        (self.first..self.end().0).map(BlockIndex)
    }
}

/// A region that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The block size is no power of two, or smaller than a page.
    #[error("block size {0} is not a power of two of at least 4096 bytes")]
    BlockSize(u64),
    /// The region's start is not aligned to the block size.
    #[error("region start {addr:#x} is not aligned to the block size {block_size:#x}")]
    Misaligned {
        /// The region's start.
        addr: u64,
        /// The block size in bytes.
        block_size: u64,
    },
    /// The region's size is zero, not a whole number of blocks, too many of them, or runs past
    /// the end of the address space.
    #[error("region size {0:#x} is not between 1 and 1048576 whole blocks inside the address space")]
    RegionSize(u64),
}

/// The region of a memory device: where it is, how large, and in what blocks. Fixed for the life
/// of the VM and of all its forks (virtio 1.2, 5.15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemConfig {
    addr: GuestAddress,
    block_size: u64,
    blocks: u32,
}

impl MemConfig {
    /// A region of `region_size` bytes at guest physical address `addr`, in blocks of `block_size`
    /// bytes.
    ///
    /// Linux can use only whole memory blocks of its own (128 MiB): align both ends to that.
    ///
    /// # Errors
    /// [`ConfigError`] says which of the three is wrong.
    pub fn new(addr: GuestAddress, region_size: u64, block_size: u64) -> Result<Self, ConfigError> {
        if !block_size.is_power_of_two() || block_size < MIN_BLOCK_SIZE {
            return Err(ConfigError::BlockSize(block_size));
        }
        if !addr.0.is_multiple_of(block_size) {
            return Err(ConfigError::Misaligned {
                addr: addr.0,
                block_size,
            });
        }
        let blocks = region_size / block_size;
        let fits = region_size.is_multiple_of(block_size)
            && (1..=MAX_BLOCKS).contains(&blocks)
            && addr.0.checked_add(region_size).is_some();
        match u32::try_from(blocks) {
            Ok(blocks) if fits => Ok(Self {
                addr,
                block_size,
                blocks,
            }),
            _ => Err(ConfigError::RegionSize(region_size)),
        }
    }

    /// Where the region starts.
    pub fn addr(&self) -> GuestAddress {
        self.addr
    }

    /// Size of the region in bytes.
    pub fn region_size(&self) -> u64 {
        self.bytes(self.blocks)
    }

    /// Size of a block in bytes.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Number of blocks in the region.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// `blocks` blocks, in bytes.
    pub fn bytes(&self, blocks: u32) -> u64 {
        // Cannot overflow for as many blocks as the region has: `new` has checked it.
        u64::from(blocks).saturating_mul(self.block_size)
    }

    /// `bytes` in blocks, if that is a whole number of blocks and no more than the region has.
    pub fn whole_blocks(&self, bytes: u64) -> Option<u32> {
        if !bytes.is_multiple_of(self.block_size) {
            return None;
        }
        u32::try_from(bytes / self.block_size)
            .ok()
            .filter(|&blocks| blocks <= self.blocks)
    }

    /// Size of `range` in bytes.
    pub fn size_of(&self, range: BlockRange) -> u64 {
        self.bytes(range.count())
    }

    /// Where `range` starts, in bytes from the start of the region.
    pub fn offset_of(&self, range: BlockRange) -> u64 {
        self.bytes(range.first().0)
    }

    /// Where `range` starts in guest physical address space.
    pub fn address_of(&self, range: BlockRange) -> GuestAddress {
        GuestAddress(self.addr.0.saturating_add(self.offset_of(range)))
    }

    /// The range of `count` blocks from guest physical address `addr`, if `addr` is the start of
    /// a block, `count` is not 0 and all of it lies in the region.
    pub fn range_at(&self, addr: GuestAddress, count: u32) -> Option<BlockRange> {
        let offset = addr.0.checked_sub(self.addr.0)?;
        if !offset.is_multiple_of(self.block_size) {
            return None;
        }
        let first = u32::try_from(offset / self.block_size).ok()?;
        BlockRange::new(BlockIndex(first), count).filter(|range| range.end().0 <= self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_region_is_whole_aligned_blocks() {
        let at = GuestAddress(4 << 30);
        assert!(MemConfig::new(at, 256 * MIB, 2 * MIB).is_ok());
        assert_eq!(
            MemConfig::new(at, 256 * MIB, 3 * MIB),
            Err(ConfigError::BlockSize(3 * MIB))
        );
        assert_eq!(
            MemConfig::new(at, 256 * MIB, 2048),
            Err(ConfigError::BlockSize(2048))
        );
        assert_eq!(MemConfig::new(at, 256 * MIB, 0), Err(ConfigError::BlockSize(0)));
        assert!(matches!(
            MemConfig::new(GuestAddress(MIB), 256 * MIB, 2 * MIB),
            Err(ConfigError::Misaligned { .. })
        ));
        for size in [0, MIB, 3 * MIB, (MAX_BLOCKS + 1) * 2 * MIB, u64::MAX] {
            assert_eq!(
                MemConfig::new(at, size, 2 * MIB),
                Err(ConfigError::RegionSize(size))
            );
        }
        let last = GuestAddress(u64::MAX - 2 * MIB + 1);
        assert!(matches!(
            MemConfig::new(last, 2 * MIB, 2 * MIB),
            Err(ConfigError::RegionSize(_))
        ));
    }

    #[test]
    fn an_address_names_a_block_only_at_its_start_and_inside_the_region() {
        let config = MemConfig::new(GuestAddress(8 * MIB), 8 * MIB, 2 * MIB).unwrap();
        let range = config.range_at(GuestAddress(10 * MIB), 3).unwrap();
        assert_eq!(
            (range.first(), range.count(), range.end()),
            (BlockIndex(1), 3, BlockIndex(4))
        );
        assert_eq!(config.offset_of(range), 2 * MIB);
        assert_eq!(config.size_of(range), 6 * MIB);
        assert_eq!(config.address_of(range), GuestAddress(10 * MIB));
        for (addr, count) in [
            (10 * MIB, 0),
            (10 * MIB, 4),
            (10 * MIB + 1, 1),
            (6 * MIB, 1),
            (16 * MIB, 1),
        ] {
            assert_eq!(
                config.range_at(GuestAddress(addr), count),
                None,
                "{addr:#x} {count}"
            );
        }
        assert_eq!(
            config.range_at(GuestAddress(u64::MAX - 2 * MIB + 1), u32::MAX),
            None
        );
    }
}
