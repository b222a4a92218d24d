//! Descriptor chains become slices of guest memory, and bytes go into them and come out.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::virtio::Memory;

/// More descriptors than any driver uses for one frame (Linux: 19), and few enough that walking a
/// hostile chain costs little.
const MAX_DESCRIPTORS: usize = 64;

/// Why a chain is no frame's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// A descriptor has the wrong direction for its queue, or there are too many.
    #[error("the descriptor chain is not one a frame may lie in")]
    Chain,
    /// A descriptor points where no memory is.
    #[error("a descriptor points outside guest memory")]
    Memory,
}

/// Whose bytes they are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads them.
    Readable,
    /// The device writes them.
    Writable,
}

/// Appends the buffers of `chain` to `slices`, up to `limit` bytes of them; returns how many bytes.
/// All of them must be of one direction (virtio 1.2, 5.1.6.2 and 5.1.6.3). After an error `slices`
/// has any part of them.
pub(super) fn collect<'m>(
    chain: DescriptorChain<&'m Memory>,
    memory: &'m Memory,
    direction: Direction,
    limit: usize,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, Malformed> {
    let access = match direction {
        Direction::Readable => Permissions::Read,
        Direction::Writable => Permissions::Write,
    };
    let mut total = 0;
    for (index, descriptor) in chain.enumerate() {
        if descriptor.is_write_only() != (direction == Direction::Writable) || index == MAX_DESCRIPTORS {
            return Err(Malformed::Chain);
        }
        let room = limit - total;
        let length = usize::try_from(descriptor.len()).map_or(room, |length| length.min(room));
        if length == 0 {
            continue;
        }
        let parts = GuestMemory::get_slices(memory, descriptor.addr(), length, access)
            .map_err(|_| Malformed::Memory)?;
        for part in parts {
            slices.push(part.map_err(|_| Malformed::Memory)?);
        }
        total += length;
    }
    Ok(total)
}

/// Copies from the start of `slices` until `bytes` is full; says whether it is.
pub(super) fn read_front(slices: &[VolatileSlice<'_>], bytes: &mut [u8]) -> bool {
    let mut rest = bytes;
    for slice in slices {
        let taken = slice.copy_to(rest);
        rest = rest.split_at_mut(taken).1;
        if rest.is_empty() {
            break;
        }
    }
    rest.is_empty()
}

/// Copies `bytes` to `slices`, from `offset` on; what there is no room for is left.
pub(super) fn write_at(slices: &[VolatileSlice<'_>], offset: usize, bytes: &[u8]) {
    let (mut skip, mut rest) = (offset, bytes);
    for slice in slices {
        let Ok(behind) = slice.offset(skip.min(slice.len())) else {
            return;
        };
        skip -= skip.min(slice.len());
        let count = behind.len().min(rest.len());
        let (now, later) = rest.split_at(count);
        behind.copy_from(now);
        rest = later;
        if rest.is_empty() {
            return;
        }
    }
}

/// Takes `count` bytes off the front of `slices`; none stays empty.
pub(super) fn advance(slices: &mut Vec<VolatileSlice<'_>>, count: usize) {
    let mut rest = count;
    let whole = slices
        .iter()
        .take_while(|slice| {
            let gone = slice.len() <= rest;
            rest -= if gone { slice.len() } else { 0 };
            gone
        })
        .count();
    slices.drain(..whole);
    if let Some(first) = slices.first_mut()
        && let Ok(behind) = first.offset(rest)
    {
        *first = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cross_the_borders_of_slices() {
        let (mut a, mut b, mut c) = ([1u8, 2], [3u8; 1], [4u8, 5, 6]);
        let mut slices = vec![
            VolatileSlice::from(&mut a[..]),
            VolatileSlice::from(&mut b[..]),
            VolatileSlice::from(&mut c[..]),
        ];
        let mut four = [0; 4];
        assert!(read_front(&slices, &mut four));
        assert_eq!(four, [1, 2, 3, 4]);
        assert!(!read_front(&slices, &mut [0; 7]));
        write_at(&slices, 1, &[9, 8, 7]);
        write_at(&slices, 5, &[6, 6, 6]);
        write_at(&slices, 99, &[1]);
        let mut all = [0; 6];
        assert!(read_front(&slices, &mut all));
        assert_eq!(all, [1, 9, 8, 7, 5, 6]);
        advance(&mut slices, 3);
        assert_eq!(slices.len(), 1);
        advance(&mut slices, 1);
        assert_eq!(slices[0].len(), 2);
        advance(&mut slices, 2);
        assert!(slices.is_empty());
        advance(&mut slices, 1);
    }
}
