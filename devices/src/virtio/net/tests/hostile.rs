//! Chains that no driver makes.

use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::sending::header;
use super::*;
use crate::virtio::testing::{INDIRECT, MEMORY_SIZE, NEXT, Raw, WRITE, write_descriptor};

fn raw(address: u64, length: u32, flags: u16, next: u16) -> Raw {
    Raw {
        address,
        length,
        flags,
        next,
    }
}

#[test]
fn transmit_chains_that_are_none_are_given_back_and_nothing_is_sent() {
    let (mut driver, wire) = connected();
    let there = 0x100_0000;
    for chain in [
        vec![raw(there, 100, WRITE, 0)],
        vec![raw(there, 100, NEXT, 1), raw(there, 100, WRITE, 0)],
        vec![raw(MEMORY_SIZE - 10, 100, 0, 0)],
        vec![raw(u64::MAX - 10, 100, 0, 0)],
        vec![raw(there, 0, 0, 0)],
        vec![raw(there, u32::MAX, 0, 0)],
        vec![raw(there, 100, INDIRECT, 0)],
        vec![raw(MEMORY_SIZE, 160, INDIRECT, 0)],
        vec![raw(there, 100, NEXT, 999)],
    ] {
        let (mut driver, wire) = connected();
        let head = driver.offer_raw(TX, &chain);
        driver.kick(TX);
        assert_eq!(driver.used(TX), Some((head, 0)), "{}", chain[0].length);
        let counters = driver.counters().sent;
        assert_eq!((counters.malformed + counters.frames, driver.get(0x70)), (1, 15));
        // The one whose end is nowhere is a frame as far as it goes.
        assert_eq!(wire.sent().len(), usize::from(chain[0].next == 999));
    }
    // A circle.
    let head = driver.offer_raw(TX, &[raw(there, 10, NEXT, 0)]);
    driver.kick(TX);
    assert_eq!(driver.used(TX), Some((head, 0)));
    assert_eq!(wire.sent(), Vec::<Vec<u8>>::new());
}

#[test]
fn an_indirect_chain_is_a_frame_like_any_other() {
    let (mut driver, wire) = connected();
    let (at, table) = (driver.allocate(100), driver.allocate(32));
    vm_memory::Bytes::write_slice(
        &driver.memory,
        &packet(&frame(MAC, 88)),
        vm_memory::GuestAddress(at),
    )
    .unwrap();
    write_descriptor(&driver.memory, table, raw(at, 50, NEXT, 1));
    write_descriptor(&driver.memory, table + 16, raw(at + 50, 50, 0, 0));
    driver.offer_raw(TX, &[raw(table, 32, INDIRECT, 0)]);
    driver.kick(TX);
    assert_eq!(wire.sent(), [packet(&frame(MAC, 88))]);
}

#[test]
fn what_is_checked_is_what_is_sent_whatever_the_guest_writes_meanwhile() {
    /// Writes over the frame before it looks at it, as another processor of the guest's might.
    struct Rewrites(Wire, crate::virtio::Memory, u64);
    impl NetBackend for Rewrites {
        fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
            let address = vm_memory::GuestAddress(self.2);
            vm_memory::Bytes::write_slice(&self.1, &[0x77; 26], address).unwrap();
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
    let at = driver.allocate(0);
    let rewrites = Rewrites(wire.clone(), driver.memory.clone(), at);
    driver
        .transport
        .device_mut()
        .set_backend(Some(Box::new(rewrites)))
        .unwrap();
    driver.send(&packet(&frame(MAC, 100)));
    assert_eq!(wire.sent(), [packet(&frame(MAC, 100))]);
}

#[test]
fn receive_chains_that_are_none_are_given_back_and_good_ones_are_used() {
    let (mut driver, wire) = connected();
    let there = 0x100_0000;
    let bad = [
        raw(there, 100, 0, 0),
        raw(there, 11, WRITE, 0),
        raw(there, 0, WRITE, 0),
        raw(MEMORY_SIZE, 2000, WRITE, 0),
    ];
    let heads: Vec<u16> = bad.iter().map(|chain| driver.offer_raw(RX, &[*chain])).collect();
    let posted: Vec<Chain> = (0..2).map(|_| driver.offer(RX, &[Buffer::In(1000)])).collect();
    let last = driver.offer_raw(RX, &[bad[0]]);
    driver.kick(RX);
    for head in heads {
        assert_eq!(driver.used(RX), Some((head, 0)));
    }
    // One that only fits across the bad one is not delivered, nor waited for.
    wire.deliver(&frame(OTHER, 3000));
    wire.deliver(&frame(OTHER, 1500));
    driver.readable();
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 1500)));
    assert_eq!(driver.counters().received.too_big, 1);
    driver.readable();
    assert_eq!(driver.used(RX), Some((last, 0)));
    assert!(!driver.wants_frames());
}

#[test]
fn rings_that_cannot_be_need_a_reset_and_nothing_is_watched_after() {
    for index in [RX, TX] {
        let (mut driver, _wire) = connected();
        driver.offer(RX, &[Buffer::In(1000)]);
        driver.kick(RX);
        driver.set_available_index(index, 1000);
        driver.pump();
        assert_eq!(driver.get(0x70) & 0x40, 0x40);
        let (mut driver, _wire) = connected();
        driver.offer_head(index, QUEUE_SIZE);
        driver.pump();
        assert_eq!(driver.get(0x70) & 0x40, 0x40);
        assert!(!driver.wants_frames());
    }
}

#[derive(Clone, Debug)]
enum Act {
    Chain {
        queue: usize,
        descriptors: Vec<(u64, u32, u16, u16)>,
    },
    Send {
        flags: u8,
        kind: u8,
        fields: [u16; 4],
        length: usize,
    },
    Post {
        length: usize,
    },
    Arrive {
        length: usize,
    },
    Kick(usize),
    Readable,
    Pump,
    Disconnect(bool),
    Restore,
    Unmute,
}

fn any_act() -> impl Strategy<Value = Act> {
    let address = prop_oneof![8 => 0x100_0000u64..0x101_0000, 1 => 0..MEMORY_SIZE, 1 => any::<u64>()];
    let length = prop_oneof![8 => 0u32..3000, 1 => 0u32..100_000, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0u16..4, 1 => any::<u16>()];
    let descriptor = (address, length, flags, 0u16..300);
    let flow = prop_oneof![3 => 0usize..2000, 1 => 0usize..70_000];
    prop_oneof![
        3 => (0usize..2, prop::collection::vec(descriptor, 1..5))
            .prop_map(|(queue, descriptors)| Act::Chain { queue, descriptors }),
        3 => (any::<u8>(), any::<u8>(), any::<[u16; 4]>(), 0usize..3000)
            .prop_map(|(flags, kind, fields, length)| Act::Send { flags, kind, fields, length }),
        4 => (12usize..4000).prop_map(|length| Act::Post { length }),
        4 => flow.prop_map(|length| Act::Arrive { length }),
        3 => (0usize..2).prop_map(Act::Kick),
        2 => Just(Act::Readable),
        2 => Just(Act::Pump),
        1 => any::<bool>().prop_map(Act::Disconnect),
        1 => Just(Act::Restore),
        1 => Just(Act::Unmute),
    ]
}

proptest! {
    #[test]
    fn whatever_comes_nothing_is_sent_that_is_no_frame_and_no_more_than_was_asked_for(
        acts in prop::collection::vec(any_act(), 1..60),
        features in prop_oneof![Just(u64::MAX), any::<u64>()],
        event_idx in any::<bool>(),
    ) {
        let wire = Wire::default();
        let features = if event_idx { features } else { features & !(1 << VIRTIO_RING_F_EVENT_IDX) };
        let mut driver = Driver::live_with(Net::new(config(), wire.end()), features);
        let mut offered = 0;
        for act in acts {
            match act {
                Act::Chain { queue, descriptors } => {
                    let chain: Vec<Raw> = descriptors.into_iter().map(|(a, l, f, n)| raw(a, l, f, n)).collect();
                    driver.offer_raw(queue, &chain);
                    offered += u64::from(queue == TX);
                }
                Act::Send { flags, kind, fields, length } => {
                    driver.send(&[header(flags, kind, fields), frame(MAC, length)].concat());
                    offered += 1;
                }
                Act::Post { length } => drop(driver.offer(RX, &[Buffer::In(length)])),
                Act::Arrive { length } => wire.deliver(&frame(OTHER, length.max(14))),
                Act::Kick(queue) => driver.kick(queue),
                Act::Readable => driver.readable(),
                Act::Pump => driver.pump(),
                Act::Disconnect(down) => {
                    let backend = if down { None } else { wire.end() };
                    driver.transport.device_mut().set_backend(backend).unwrap();
                }
                Act::Restore => {
                    let state = driver.transport.device().save();
                    let net = Net::restore(&state, state.config().unwrap(), wire.end()).unwrap();
                    let before = driver.counters();
                    offered = offered.saturating_sub(before.sent.frames + before.sent.dropped());
                    let transport = driver.transport.save();
                    driver.restore(net, transport).unwrap();
                }
                Act::Unmute => driver.transport.device_mut().unmute(),
            }
            let counters = driver.counters();
            prop_assert!(counters.sent.frames + counters.sent.dropped() <= offered);
            let sent = wire.sent();
            prop_assert!(sent.iter().all(|frame| (26..=MAX_FRAME + 12).contains(&frame.len())));
            // What the host is told makes sense of what it is given.
            for frame in sent {
                let field = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
                prop_assert!(frame[0] & !1 == 0 && [0, 1, 4, 0x81, 0x84].contains(&frame[1]));
                if frame[0] == 1 {
                    prop_assert!(field(6) + field(8) + 2 <= frame.len() - 12);
                }
            }
        }
        // Every buffer that was given back as a frame is one the guest offered, in whole frames.
        if driver.get(0x70) == 15 {
            prop_assert!(driver.all_used(RX).iter().all(|length| *length <= 100_000));
        }
    }
}
