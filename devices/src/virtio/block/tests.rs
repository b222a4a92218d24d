//! The block device driven through its transport and its queue.

use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::config::{MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS};
use super::*;
use crate::virtio::testing::{Buffer, Driver, INDIRECT, MEMORY_SIZE, NEXT, Raw, WRITE, write_descriptor};

const DISK: usize = 8 << 20;
const SECTORS: u64 = DISK as u64 / SECTOR;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// What the test sees of a backend the device owns.
#[derive(Default)]
struct Seen {
    disk: Vec<u8>,
    flushes: usize,
    largest: usize,
    discards: Vec<(u64, u64)>,
    zeroes: Vec<(u64, u64)>,
    fail: bool,
}

#[derive(Clone)]
struct Probe(Arc<Mutex<Seen>>);

impl Probe {
    fn new() -> Self {
        let disk = (0..DISK)
            .map(|at| u8::try_from(at / 512 % 251).unwrap())
            .collect();
        Self(Arc::new(Mutex::new(Seen {
            disk,
            ..Seen::default()
        })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn on_disk<T>(&self, call: impl FnOnce(&mut MemoryBackend) -> io::Result<T>) -> io::Result<T> {
        self.with(|seen| {
            if seen.fail {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let mut backend = MemoryBackend::new(std::mem::take(&mut seen.disk));
            let result = call(&mut backend);
            seen.disk = backend.bytes().to_vec();
            result
        })
    }
}

impl BlockBackend for Probe {
    fn len(&self) -> u64 {
        self.with(|seen| seen.disk.len() as u64)
    }
    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.with(|seen| seen.largest = seen.largest.max(data.len()));
        self.on_disk(|disk| disk.read_at(offset, data))
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|seen| seen.largest = seen.largest.max(data.len()));
        self.on_disk(|disk| disk.write_at(offset, data))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.with(|seen| seen.flushes += 1);
        self.on_disk(|disk| disk.flush())
    }
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.with(|seen| seen.discards.push((offset, length)));
        self.on_disk(|disk| disk.discard(offset, length))
    }
    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.with(|seen| seen.zeroes.push((offset, length)));
        self.on_disk(|disk| disk.write_zeroes(offset, length))
    }
}

fn block(probe: &Probe, access: Access) -> Block {
    Block::new(
        Box::new(probe.clone()),
        BlockId::try_from("spore-root").unwrap(),
        access,
    )
}

fn live() -> (Probe, Driver<Block>) {
    let probe = Probe::new();
    let driver = Driver::live(block(&probe, Access::ReadWrite));
    (probe, driver)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Offers, kicks and collects one request: the writable bytes with the status last, and the used length.
fn request(driver: &mut Driver<Block>, buffers: &[Buffer<'_>]) -> (Vec<u8>, u32) {
    let chain = driver.offer(0, buffers);
    driver.kick(0);
    let (head, length) = driver.used(0).expect("the request is answered");
    assert_eq!(head, chain.head);
    (driver.written(&chain), length)
}

fn status(driver: &mut Driver<Block>, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let header = header(kind, sector);
    *request(driver, &[Buffer::Out(&header), Buffer::Out(data), Buffer::In(1)])
        .0
        .last()
        .unwrap()
}

#[test]
fn a_read_fills_the_buffers_and_says_how_much() {
    let (probe, mut driver) = live();
    let (bytes, length) = request(
        &mut driver,
        &[
            Buffer::Out(&header(0, 3)),
            Buffer::In(1024),
            Buffer::In(512),
            Buffer::In(1),
        ],
    );
    assert_eq!(bytes[..1536], probe.with(|seen| seen.disk[1536..3072].to_vec()));
    assert_eq!((bytes[1536], length), (OK, 1537));
    assert_eq!(driver.interrupt.count(), 1);
    assert_eq!(driver.get(0x60), 1);
}

#[test]
fn a_write_lands_on_the_disk_and_nowhere_else() {
    let (probe, mut driver) = live();
    let before = probe.with(|seen| seen.disk.clone());
    assert_eq!(status(&mut driver, 1, 7, &[0x5a; 1024]), OK);
    probe.with(|seen| {
        assert_eq!(seen.disk[7 * 512..9 * 512], [0x5a; 1024]);
        assert_eq!(seen.disk[..7 * 512], before[..7 * 512]);
        assert_eq!(seen.disk[9 * 512..], before[9 * 512..]);
    });
}

#[test]
fn any_layout_of_descriptors_is_the_same_request() {
    let (probe, mut driver) = live();
    let whole = [header(1, 0), vec![0x77; 512]].concat();
    // The header split over three descriptors, its tail together with the head of the data.
    let (bytes, length) = request(
        &mut driver,
        &[
            Buffer::Out(&whole[..1]),
            Buffer::Out(&whole[1..9]),
            Buffer::Out(&whole[9..]),
            Buffer::In(1),
        ],
    );
    assert_eq!((bytes[0], length), (OK, 1));
    probe.with(|seen| assert_eq!(seen.disk[..512], [0x77; 512]));
    // Data and status in one buffer, and data split at odd places.
    let (bytes, length) = request(&mut driver, &[Buffer::Out(&header(0, 0)), Buffer::In(513)]);
    assert_eq!((bytes, length), ([vec![0x77; 512], vec![OK]].concat(), 513));
    let odd = [
        Buffer::Out(&header(0, 0)),
        Buffer::In(5),
        Buffer::In(0),
        Buffer::In(507),
        Buffer::In(1),
    ];
    assert_eq!(request(&mut driver, &odd).0, [vec![0x77; 512], vec![OK]].concat());
}

#[test]
fn an_indirect_table_is_followed() {
    let (_, mut driver) = live();
    let out = driver.allocate(16);
    vm_memory::Bytes::write_slice(&driver.memory, &header(0, 1), vm_memory::GuestAddress(out)).unwrap();
    let data = driver.allocate(513);
    let table = driver.allocate(32);
    write_descriptor(
        &driver.memory,
        table,
        Raw {
            address: out,
            length: 16,
            flags: NEXT,
            next: 1,
        },
    );
    write_descriptor(
        &driver.memory,
        table + 16,
        Raw {
            address: data,
            length: 513,
            flags: WRITE,
            next: 0,
        },
    );
    driver.offer_raw(
        0,
        &[Raw {
            address: table,
            length: 32,
            flags: INDIRECT,
            next: 0,
        }],
    );
    driver.kick(0);
    assert_eq!(driver.used(0).unwrap().1, 513);
}

#[test]
fn a_large_request_goes_through_a_small_buffer() {
    let (probe, mut driver) = live();
    let (bytes, _) = request(
        &mut driver,
        &[Buffer::Out(&header(0, 0)), Buffer::In(DISK), Buffer::In(1)],
    );
    assert_eq!(bytes[DISK], OK);
    probe.with(|seen| {
        assert!(bytes[..DISK] == seen.disk[..], "the whole disk was read");
        assert_eq!(seen.largest, 256 << 10);
    });
    let pattern: Vec<u8> = (0..(1 << 20) + 512)
        .map(|at| u8::try_from(at % 253).unwrap())
        .collect();
    assert_eq!(status(&mut driver, 1, 1, &pattern), OK);
    probe.with(|seen| assert!(seen.disk[512..512 + pattern.len()] == pattern[..]));
}

#[test]
fn nothing_beyond_the_end_of_the_disk_is_touched() {
    let (probe, mut driver) = live();
    let before = probe.with(|seen| seen.disk.clone());
    for sector in [
        SECTORS,
        SECTORS + 1,
        SECTORS - 1,
        u64::MAX,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
    ] {
        assert_eq!(
            status(&mut driver, 1, sector, &[1; 1024]),
            IOERR,
            "write at {sector}"
        );
        let read = [Buffer::Out(&header(0, sector)), Buffer::In(1024), Buffer::In(1)];
        let (bytes, length) = request(&mut driver, &read);
        assert_eq!(bytes[1024], IOERR, "read at {sector}");
        assert_eq!(
            (&bytes[..1024], length),
            (&[0xee; 1024][..], 0),
            "no byte of the buffer was written"
        );
    }
    assert!(probe.with(|seen| seen.disk == before));
    assert_eq!(
        status(&mut driver, 1, SECTORS - 2, &[1; 1024]),
        OK,
        "the last sectors are there"
    );
}

#[test]
fn data_that_is_not_whole_sectors_is_an_error() {
    let (_, mut driver) = live();
    assert_eq!(status(&mut driver, 1, 0, &[1; 511]), IOERR);
    let read = [Buffer::Out(&header(0, 0)), Buffer::In(513), Buffer::In(1)];
    assert_eq!(request(&mut driver, &read).0[513], IOERR);
}

#[test]
fn a_read_only_disk_refuses_every_kind_of_write() {
    let probe = Probe::new();
    let mut driver = Driver::live(block(&probe, Access::ReadOnly));
    let before = probe.with(|seen| seen.disk.clone());
    assert_eq!(status(&mut driver, 1, 0, &[1; 512]), IOERR);
    assert_eq!(status(&mut driver, 11, 0, &segment(0, 8, 0)), IOERR);
    assert_eq!(status(&mut driver, 13, 0, &segment(0, 8, 0)), IOERR);
    assert_eq!(status(&mut driver, 0, 0, &[]), OK, "reading is fine");
    assert!(probe.with(|seen| seen.disk == before));
    let offered = driver.offered();
    assert_eq!(offered >> 5 & 1, 1, "RO");
    assert_eq!(offered >> 13 & 3, 0, "neither DISCARD nor WRITE_ZEROES");
}

#[test]
fn an_unknown_request_is_unsupported() {
    let (_, mut driver) = live();
    for kind in [2, 3, 14, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(status(&mut driver, kind, 0, &[]), UNSUPPORTED, "type {kind}");
    }
}

#[test]
fn flush_reaches_the_backend_and_its_failure_reaches_the_guest() {
    let (probe, mut driver) = live();
    assert_eq!(status(&mut driver, 4, 0, &[]), OK);
    assert_eq!(probe.with(|seen| seen.flushes), 1);
    probe.with(|seen| seen.fail = true);
    assert_eq!(status(&mut driver, 4, 0, &[]), IOERR);
    assert_eq!(driver.transport.device().io_errors(), 1);
}

#[test]
fn a_driver_without_flush_gets_every_write_flushed() {
    let probe = Probe::new();
    let mut driver = Driver::live_with(block(&probe, Access::ReadWrite), !(1 << VIRTIO_BLK_F_FLUSH));
    assert_eq!(status(&mut driver, 1, 0, &[1; 512]), OK);
    assert_eq!(probe.with(|seen| seen.flushes), 1);
    let state = driver.transport.device().save();
    assert!(state.write_through);
    assert_eq!(
        Block::restore(state.clone(), Box::new(probe)).unwrap().save(),
        state
    );
}

#[test]
fn discard_and_write_zeroes_pass_their_segments_on() {
    let (probe, mut driver) = live();
    let segments = [segment(8, 8, 0), segment(0, 0, 0), segment(100, 1, 0)].concat();
    assert_eq!(status(&mut driver, 11, 0, &segments), OK);
    assert_eq!(status(&mut driver, 13, 0, &segment(1000, 16, 1)), OK);
    probe.with(|seen| {
        assert_eq!(seen.discards, [(4096, 4096), (51200, 512)]);
        assert_eq!(seen.zeroes, [(512_000, 8192)]);
        assert_eq!(seen.disk[512_000..520_192], [0; 8192]);
    });
}

#[test]
fn a_bad_segment_keeps_the_good_ones_before_it_from_happening() {
    let (probe, mut driver) = live();
    let good = segment(0, 8, 0);
    let many = good.repeat(MAX_DISCARD_SEGMENTS as usize + 1);
    for (what, data, expected) in [
        ("no segment", vec![], IOERR),
        ("half a segment", [good.clone(), vec![0; 8]].concat(), IOERR),
        ("too many", many, IOERR),
        (
            "too long",
            [good.clone(), segment(0, MAX_DISCARD_SECTORS + 1, 0)].concat(),
            IOERR,
        ),
        (
            "beyond the end",
            [good.clone(), segment(SECTORS, 1, 0)].concat(),
            IOERR,
        ),
        (
            "wrapping",
            [good.clone(), segment(u64::MAX, 8, 0)].concat(),
            IOERR,
        ),
        (
            "unmap on a discard",
            [good.clone(), segment(0, 8, 1)].concat(),
            UNSUPPORTED,
        ),
        ("a reserved flag", [good, segment(0, 8, 2)].concat(), UNSUPPORTED),
    ] {
        assert_eq!(status(&mut driver, 11, 0, &data), expected, "{what}");
    }
    assert_eq!(probe.with(|seen| seen.discards.len()), 0);
}

#[test]
fn the_identifier_is_what_the_owner_gave() {
    let (_, mut driver) = live();
    let (bytes, length) = request(
        &mut driver,
        &[Buffer::Out(&header(8, 0)), Buffer::In(20), Buffer::In(1)],
    );
    assert_eq!(
        (&bytes[..20], bytes[20], length),
        (&b"spore-root\0\0\0\0\0\0\0\0\0\0"[..], OK, 21)
    );
    let short = [Buffer::Out(&header(8, 0)), Buffer::In(19), Buffer::In(1)];
    assert_eq!(request(&mut driver, &short).0[19], IOERR);
    assert!(BlockId::try_from("twenty-one bytes long").is_err());
}

#[test]
fn a_failing_disk_is_an_error_of_the_request_and_not_of_the_device() {
    let (probe, mut driver) = live();
    probe.with(|seen| seen.fail = true);
    assert_eq!(status(&mut driver, 1, 0, &[1; 512]), IOERR);
    probe.with(|seen| seen.fail = false);
    assert_eq!(status(&mut driver, 1, 0, &[1; 512]), OK);
    assert_eq!(driver.get(0x70), 15);
}

#[test]
fn a_request_into_missing_memory_is_answered_if_its_status_byte_is_there() {
    let (_, mut driver) = live();
    let out = driver.allocate(16);
    let status = driver.allocate(1);
    driver.offer_raw(
        0,
        &[
            Raw {
                address: out,
                length: 16,
                flags: NEXT,
                next: 1,
            },
            Raw {
                address: MEMORY_SIZE - 256,
                length: 512,
                flags: NEXT | WRITE,
                next: 2,
            },
            Raw {
                address: status,
                length: 1,
                flags: WRITE,
                next: 0,
            },
        ],
    );
    driver.kick(0);
    assert_eq!(driver.used(0), Some((0, 0)));
    let byte: u8 = vm_memory::Bytes::read_obj(&driver.memory, vm_memory::GuestAddress(status)).unwrap();
    assert_eq!(byte, IOERR);
}

#[test]
fn malformed_chains_are_used_up_and_the_next_request_is_served() {
    let (_, mut driver) = live();
    let out = driver.allocate(16);
    let raw = |address, length, flags, next| Raw {
        address,
        length,
        flags,
        next,
    };
    for (what, chain) in [
        ("no writable byte", vec![raw(out, 16, 0, 0)]),
        ("nothing at all", vec![raw(out, 0, 0, 0)]),
        ("status nowhere", vec![raw(u64::MAX, 16, WRITE, 0)]),
        ("a chain onto itself", vec![raw(out, u32::MAX, NEXT, 0)]),
        ("a next beyond the table", vec![raw(out, 16, NEXT, 999)]),
        (
            "an indirect table of half a descriptor",
            vec![raw(out, 8, INDIRECT, 0)],
        ),
        (
            "an indirect table nowhere",
            vec![raw(u64::MAX - 7, 64, INDIRECT, 0)],
        ),
    ] {
        let head = driver.offer_raw(0, &chain);
        driver.kick(0);
        assert_eq!(driver.used(0), Some((head, 0)), "{what}");
        assert_eq!(status(&mut driver, 1, 0, &[1; 512]), OK, "after {what}");
    }
    let short = [Buffer::Out(&[0; 15]), Buffer::In(512), Buffer::In(1)];
    assert_eq!(request(&mut driver, &short).0[512], IOERR, "a header cut short");
}

#[test]
fn rings_that_lie_need_a_reset() {
    for break_ring in [
        |driver: &mut Driver<Block>| driver.offer_head(0, 256),
        |driver: &mut Driver<Block>| driver.set_available_index(0, 257),
    ] {
        let (_, mut driver) = live();
        break_ring(&mut driver);
        driver.kick(0);
        assert_eq!(driver.get(0x70), 15 | 64);
        assert_eq!(driver.get(0x60), 2, "the driver is told");
        driver.bring_up(u64::MAX);
        assert_eq!(status(&mut driver, 1, 0, &[1; 512]), OK, "a reset heals it");
    }
}

#[test]
fn a_disk_of_another_size_is_refused_and_the_old_one_kept() {
    let (probe, mut driver) = live();
    let device = driver.transport.device_mut();
    let mismatch = CapacityMismatch {
        expected: SECTORS,
        found: 2,
    };
    let small = || Box::new(MemoryBackend::new(vec![0; 1024]));
    assert_eq!(device.set_backend(small()).map(|_| ()), Err(mismatch));
    let restored = Block::restore(device.save(), small()).map(|_| ());
    assert_eq!(restored, Err(RestoreError::Capacity(mismatch)));
    assert_eq!(status(&mut driver, 1, 0, &[9; 512]), OK);
    assert_eq!(probe.with(|seen| seen.disk[0]), 9);
}

#[test]
fn a_disk_that_grew_is_shown_and_told_and_can_be_written_to_its_new_end() {
    let (probe, mut driver) = live();
    let capacity = |driver: &mut Driver<Block>| driver.get(0x100);
    let generation = driver.get(0xfc);
    assert_eq!(status(&mut driver, 1, SECTORS, &[9; 512]), IOERR);
    probe.with(|seen| seen.disk.resize(DISK + 512, 0));
    assert_eq!(
        status(&mut driver, 1, SECTORS, &[9; 512]),
        IOERR,
        "nobody told the device"
    );
    assert_eq!(capacity(&mut driver), u32::try_from(SECTORS).unwrap());

    driver.transport.device_mut().grow().unwrap();
    driver.transport.config_changed().unwrap();
    assert_eq!(driver.get(0x60) & 2, 2, "a configuration interrupt");
    assert_ne!(driver.get(0xfc), generation);
    assert_eq!(capacity(&mut driver), u32::try_from(SECTORS).unwrap() + 1);
    assert_eq!(status(&mut driver, 1, SECTORS, &[9; 512]), OK);
    assert_eq!(probe.with(|seen| seen.disk[DISK]), 9);

    let saved = driver.transport.device().save();
    assert_eq!(saved.capacity_sectors, SECTORS + 1);
    probe.with(|seen| seen.disk.truncate(DISK));
    let shrunk = driver.transport.device_mut().grow();
    assert_eq!(
        shrunk,
        Err(CapacityMismatch {
            expected: SECTORS + 1,
            found: SECTORS
        })
    );
    assert_eq!(driver.transport.device().save(), saved);
}

#[test]
fn a_new_overlay_takes_the_writes_from_then_on() {
    let (probe, mut driver) = live();
    let overlay = Probe(Arc::new(Mutex::new(Seen {
        disk: probe.with(|seen| seen.disk.clone()),
        ..Seen::default()
    })));
    driver
        .transport
        .device_mut()
        .set_backend(Box::new(overlay.clone()))
        .unwrap();
    assert_eq!(status(&mut driver, 1, 0, &[9; 512]), OK);
    assert_eq!(
        (probe.with(|seen| seen.disk[0]), overlay.with(|seen| seen.disk[0])),
        (0, 9)
    );
}

#[test]
fn a_request_whose_kick_was_lost_at_the_checkpoint_is_served_after_the_restore() {
    let (probe, mut driver) = live();
    assert_eq!(status(&mut driver, 1, 0, &[1; 512]), OK);
    let chain = driver.offer(
        0,
        &[Buffer::Out(&header(1, 1)), Buffer::Out(&[2; 512]), Buffer::In(1)],
    );
    let (device, transport) = (driver.transport.device().save(), driver.transport.save());
    let bytes = postcard::to_stdvec(&(&device, &transport)).unwrap();
    let (device, transport): (BlockState, _) = postcard::from_bytes(&bytes).unwrap();
    driver
        .restore(
            Block::restore(device, Box::new(probe.clone())).unwrap(),
            transport,
        )
        .unwrap();
    assert_eq!(driver.used(0), None);
    driver.transport.kick_all(&driver.memory).unwrap();
    assert_eq!(driver.used(0), Some((chain.head, 1)));
    assert_eq!(probe.with(|seen| seen.disk[512]), 2);
}
