//! The configuration space and the limits it announces (virtio 1.2, 5.2.4).

/// Descriptors of the request queue.
pub const QUEUE_SIZE: u16 = 256;
/// Data segments of one request: the queue less the header and the status byte.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Logical block size in bytes.
pub const BLOCK_SIZE: u32 = 512;
/// Sectors one segment of a discard may cover (2 GiB).
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Segments of one discard.
pub const MAX_DISCARD_SEGMENTS: u32 = 32;
/// Sectors one segment of a write-zeroes may cover (2 GiB).
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 22;
/// Segments of one write-zeroes.
pub const MAX_WRITE_ZEROES_SEGMENTS: u32 = 32;

/// Physical blocks are 4096 bytes: 2^3 logical ones.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// Suggested smallest I/O, in logical blocks: one physical block.
const MIN_IO_BLOCKS: u16 = 8;
/// Sectors a discard should be aligned to: one physical block.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// Bytes of `struct virtio_blk_config` up to and with the write-zeroes fields.
pub const CONFIG_SIZE: usize = 60;

/// `struct virtio_blk_config` of a disk of `capacity` sectors.
pub fn config_space(capacity: u64) -> [u8; CONFIG_SIZE] {
    let mut space = [0; CONFIG_SIZE];
    let mut put = |offset: usize, field: &[u8]| {
        for (to, from) in space.iter_mut().skip(offset).zip(field) {
            *to = *from;
        }
    };
    put(0, &capacity.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &BLOCK_SIZE.to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXPONENT]);
    put(26, &MIN_IO_BLOCKS.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
    put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
    put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
    put(52, &MAX_WRITE_ZEROES_SEGMENTS.to_le_bytes());
    put(56, &[1]); // write_zeroes_may_unmap
    space
}

/// Copies what `space` has at `offset` to `data`; what lies beyond its end is zero.
pub fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..))
        .unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(offset: u64) -> u32 {
        let mut data = [0xff; 4];
        read_space(&config_space(0x1_2345_6789), offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_fields_are_where_the_specification_puts_them() {
        assert_eq!((field(0), field(4)), (0x2345_6789, 1));
        assert_eq!(field(8), 0, "SIZE_MAX is not offered");
        assert_eq!(field(12), 254);
        assert_eq!(field(20), 512);
        assert_eq!(field(24), 3 | 8 << 16);
        assert_eq!((field(36), field(40), field(44)), (1 << 22, 32, 8));
        assert_eq!((field(48), field(52), field(56)), (1 << 22, 32, 1));
    }

    #[test]
    fn beyond_its_end_the_space_reads_as_zero() {
        let mut data = [0xff; 8];
        read_space(&config_space(1), 56, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 0, 0, 0, 0]);
        for offset in [60, 61, 0x1000, u64::MAX] {
            let mut data = [0xff; 4];
            read_space(&config_space(1), offset, &mut data);
            assert_eq!(data, [0; 4]);
        }
    }
}
