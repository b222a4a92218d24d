//! From the guest to the wire.

use super::*;

/// A header with these flags, kind, and `hdr_len`, `gso_size`, `csum_start`, `csum_offset`.
pub(super) fn header(flags: u8, kind: u8, fields: [u16; 4]) -> Vec<u8> {
    let mut header = vec![flags, kind];
    header.extend(fields.into_iter().flat_map(u16::to_le_bytes));
    header.extend([0xee; 2]);
    header
}

#[test]
fn a_frame_goes_out_as_it_is_however_it_is_cut() {
    let (mut driver, wire) = connected();
    let frame = frame(MAC, 1514);
    let packet = packet(&frame);
    for cuts in [vec![], vec![12], vec![12, 26], vec![1, 5, 11, 20, 25, 27, 1500]] {
        let mut at: Vec<usize> = cuts;
        at.insert(0, 0);
        at.push(packet.len());
        let parts: Vec<Buffer<'_>> = at.windows(2).map(|w| Buffer::Out(&packet[w[0]..w[1]])).collect();
        let chain = driver.offer(TX, &parts);
        driver.kick(TX);
        assert_eq!(driver.used(TX), Some((chain.head, 0)));
        assert_eq!(wire.sent(), std::slice::from_ref(&packet));
    }
    let sent = driver.counters().sent;
    assert_eq!((sent.frames, sent.bytes, sent.dropped()), (4, 4 * 1514, 0));
    assert!(!driver.transport.device().wants_pump());
}

#[test]
fn what_the_host_is_to_do_goes_through_with_the_frame() {
    let (mut driver, wire) = connected();
    let large = frame(MAC, 40_000);
    driver.send(&[header(1, 0x81, [54, 1448, 34, 16]), large.clone()].concat());
    let mut expected = header(1, 0x81, [54, 1448, 34, 16]);
    expected[10..].fill(0);
    assert_eq!(wire.sent(), [[expected, large].concat()]);
}

#[test]
fn what_the_driver_did_not_accept_it_cannot_leave_to_the_host() {
    let wire = Wire::default();
    let mut driver = Driver::live_with(Net::new(config(), wire.end()), 1 << 5 | 1 << 3);
    driver.send(&[header(1, 0, [0, 0, 34, 16]), frame(MAC, 100)].concat());
    driver.send(&packet(&frame(MAC, 100)));
    assert_eq!(wire.sent().len(), 1);
    assert_eq!(driver.counters().sent.malformed, 1);
    assert_eq!(wire.with(|host| host.offloads), Some(Offloads::default()));
}

#[test]
fn headers_that_make_no_sense_and_frames_that_are_none_are_dropped() {
    let (mut driver, wire) = connected();
    let body = frame(MAC, 60);
    let bad = [
        [header(1, 0, [0, 0, 50, 9]), body.clone()].concat(),
        [header(1, 3, [0, 100, 34, 8]), body.clone()].concat(),
        [header(0, 1, [54, 1448, 34, 16]), body.clone()].concat(),
        packet(&body[..13]),
        vec![0; 12],
        vec![0; 11],
        packet(&vec![0; MAX_FRAME + 1]),
    ];
    for packet in &bad {
        let chain = driver.send(packet);
        assert_eq!(driver.used(TX), Some((chain.head, 0)));
    }
    assert_eq!(wire.sent(), Vec::<Vec<u8>>::new());
    assert_eq!(driver.counters().sent.malformed, bad.len() as u64);
    driver.send(&packet(&body[..14]));
    driver.send(&packet(&frame(MAC, MAX_FRAME)));
    let lengths: Vec<usize> = wire.sent().iter().map(Vec::len).collect();
    assert_eq!(lengths, [26, MAX_FRAME + 12]);
}

#[test]
fn only_one_source_address_gets_through_if_so_configured() {
    let wire = Wire::default();
    let only = NetConfig {
        only_mac: Some(Mac::try_from(MAC).unwrap()),
        ..config()
    };
    let mut driver = Driver::live(Net::new(only, wire.end()));
    driver.send(&packet(&frame(OTHER, 100)));
    driver.send(&packet(&frame(MAC, 100)));
    assert_eq!(wire.sent(), [packet(&frame(MAC, 100))]);
    let sent = driver.counters().sent;
    assert_eq!((sent.foreign, sent.frames, sent.dropped()), (1, 1, 1));
}

#[test]
fn a_frame_the_host_does_not_take_is_lost_and_counted() {
    let (mut driver, wire) = connected();
    wire.with(|host| host.broken = true);
    let chain = driver.send(&packet(&frame(MAC, 100)));
    assert_eq!(driver.used(TX), Some((chain.head, 0)));
    assert_eq!(driver.counters().sent.refused, 1);
    assert_eq!(driver.get(0x70), 15);
}

#[test]
fn one_call_moves_a_queue_full_and_says_that_there_is_more() {
    /// Sends one more frame for each that it is given, as a guest on another processor may.
    struct Refill(Wire, crate::virtio::Memory, Arc<Mutex<u16>>);
    impl NetBackend for Refill {
        fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
            let mut index = self.2.lock().unwrap();
            *index = index.wrapping_add(1);
            let address = vm_memory::GuestAddress(0x2_4002);
            vm_memory::Bytes::write_obj(&self.1, *index, address).unwrap();
            self.0.send(frame)
        }
        fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
            self.0.receive(room)
        }
        fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
            Ok(())
        }
    }
    let (mut driver, wire) = connected();
    let body = packet(&frame(MAC, 60));
    // Every entry of the ring is a frame; the index says how many of them are offered.
    for _ in 0..QUEUE_SIZE {
        driver.offer(TX, &[Buffer::Out(&body)]);
    }
    driver.set_available_index(TX, 10);
    let index = Arc::new(Mutex::new(10));
    let refill = Refill(wire.clone(), driver.memory.clone(), index.clone());
    driver
        .transport
        .device_mut()
        .set_backend(Some(Box::new(refill)))
        .unwrap();
    driver.kick(TX);
    assert_eq!(wire.sent().len(), BUDGET);
    assert!(driver.transport.device().wants_pump());
    driver.transport.device_mut().set_backend(wire.end()).unwrap();
    driver.pump();
    assert_eq!(wire.sent().len(), 10);
    assert!(!driver.transport.device().wants_pump());
}

#[test]
fn looking_at_an_idle_queue_writes_nothing() {
    let (mut driver, _wire) = connected();
    driver.send(&packet(&frame(MAC, 60)));
    // What the device would write again: the place where it asks for kicks.
    let avail_event = vm_memory::GuestAddress(0x2_8000 + 4 + 8 * u64::from(QUEUE_SIZE));
    vm_memory::Bytes::write_obj(&driver.memory, 0xbeefu16, avail_event).unwrap();
    driver.kick(TX);
    let there: u16 = vm_memory::Bytes::read_obj(&driver.memory, avail_event).unwrap();
    assert_eq!(there, 0xbeef);
}
