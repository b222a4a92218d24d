//! The block device against a model: whatever requests come, in whatever layout of descriptors, the
//! guest sees the disk a plain array of bytes would be.

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{Buffer, Driver};

/// 16 sectors: small enough that requests overlap and run over the end.
const DISK: usize = 16 * 512;

#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    /// Sectors of data, and bytes beyond them.
    sectors: usize,
    odd: usize,
    fill: u8,
    /// Where the readable and the writable bytes are cut into buffers.
    cuts: Vec<usize>,
}

fn any_ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![4 => Just(0u32), 4 => Just(1), 1 => Just(4), 2 => Just(13), 1 => any::<u32>()];
    let sector = prop_oneof![9 => 0u64..18, 1 => any::<u64>()];
    let odd = prop_oneof![9 => Just(0usize), 1 => 1usize..512];
    let cuts = prop::collection::vec(0usize..3000, 0..5);
    (kind, sector, 0usize..5, odd, any::<u8>(), cuts).prop_map(|(kind, sector, sectors, odd, fill, cuts)| {
        Ask {
            kind,
            sector,
            sectors,
            odd,
            fill,
            cuts,
        }
    })
}

/// Cuts `length` bytes at the places that lie within them.
fn pieces(length: usize, cuts: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut at: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < length).collect();
    at.extend([0, length]);
    at.sort_unstable();
    at.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// The bytes the request covers if it is one that a disk of 16 sectors can serve.
fn covered(sector: u64, length: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(sector).ok()?.checked_mul(512)?;
    let end = start
        .checked_add(length)
        .filter(|end| *end <= DISK && length.is_multiple_of(512))?;
    Some(start..end)
}

proptest! {
    #[test]
    fn the_guest_sees_the_disk_an_array_would_be(asks in prop::collection::vec(any_ask(), 1..30)) {
        let mut model = vec![0u8; DISK];
        let id = BlockId::try_from("model").unwrap();
        let disk = Box::new(MemoryBackend::new(model.clone()));
        let mut driver = Driver::live(Block::new(disk, id, Access::ReadWrite));
        for ask in asks {
            let length = ask.sectors * 512 + ask.odd;
            let mut out = [&ask.kind.to_le_bytes()[..], &[0; 4], &ask.sector.to_le_bytes()].concat();
            let mut room = 0;
            let expected = match ask.kind {
                0 => {
                    room = length;
                    covered(ask.sector, length).map(|range| model[range].to_vec())
                }
                1 => {
                    out.extend(vec![ask.fill; length]);
                    covered(ask.sector, length).map(|range| {
                        model[range].fill(ask.fill);
                        Vec::new()
                    })
                }
                13 => {
                    let sectors = u32::try_from(ask.sectors).unwrap();
                    out.extend([&ask.sector.to_le_bytes()[..], &sectors.to_le_bytes(), &[0; 4]].concat());
                    covered(ask.sector, ask.sectors * 512).map(|range| {
                        model[range].fill(0);
                        Vec::new()
                    })
                }
                4 => Some(Vec::new()),
                // Whatever else comes must be answered, and the disk must be as it was.
                _ => None,
            };
            let buffers: Vec<Buffer<'_>> = pieces(out.len(), &ask.cuts)
                .into_iter()
                .map(|piece| Buffer::Out(&out[piece]))
                .chain(pieces(room + 1, &ask.cuts).into_iter().map(|piece| Buffer::In(piece.len())))
                .collect();
            let chain = driver.offer(0, &buffers);
            driver.kick(0);
            let (head, used) = driver.used(0).expect("every request is answered");
            prop_assert_eq!(head, chain.head);
            let written = driver.written(&chain);
            match expected {
                Some(data) => {
                    prop_assert_eq!(written[room], 0, "{:?}", ask);
                    prop_assert_eq!(&written[..room], &data[..]);
                    prop_assert_eq!(used as usize, room + 1);
                }
                None if ![8, 11].contains(&ask.kind) => {
                    prop_assert!([1, 2].contains(&written[room]), "{:?}", ask);
                }
                None => {}
            }
        }
        let mut disk = vec![0; DISK];
        driver.transport.device_mut().backend_mut().read_at(0, &mut disk).unwrap();
        prop_assert!(disk == model, "the disk is what the model is");
    }
}
