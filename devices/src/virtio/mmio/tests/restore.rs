//! The transport at rest and back, and as an enemy meets it.

use proptest::prelude::*;

use super::*;
use crate::virtio::queue_state::RingError;

#[test]
fn a_restored_transport_is_the_saved_one_and_loses_neither_kick_nor_interrupt() {
    let mut driver = Driver::live(Echo::default());
    driver.offer(1, &[Buffer::In(1)]);
    driver.kick(1);
    assert!(driver.used(1).is_some());
    let kick_in_flight = driver.offer(1, &[Buffer::In(1)]);
    let saved = driver.transport.save();
    let bytes = postcard::to_stdvec(&saved).unwrap();
    driver
        .restore(Echo::default(), postcard::from_bytes(&bytes).unwrap())
        .unwrap();
    assert_eq!(driver.transport.save(), saved);
    assert_eq!(
        driver.transport.device().activated,
        None,
        "restoring is not activating"
    );
    let before = driver.interrupt.count();
    driver.transport.kick_all(&driver.memory).unwrap();
    assert_eq!(driver.transport.device().processed, [0, 1]);
    assert_eq!(driver.used(1), Some((kick_in_flight.head, 0)));
    assert!(
        driver.interrupt.count() > before,
        "the interrupt not yet acknowledged comes again"
    );
    assert_eq!(driver.get(0x60), 1);
}

#[test]
fn a_queue_never_set_up_is_restored_as_one() {
    let mut driver = Driver::new(Echo::default());
    driver.negotiate(u64::MAX);
    driver.set_up_queue(1);
    driver.set(0x70, 15);
    let saved = driver.transport.save();
    driver.restore(Echo::default(), saved.clone()).unwrap();
    assert_eq!(driver.transport.save(), saved);
    driver.transport.kick_all(&driver.memory).unwrap();
    assert_eq!(driver.transport.device().processed, [1]);
}

#[test]
fn every_field_of_a_saved_transport_is_checked() {
    let mut driver = Driver::live(Echo::default());
    let good = driver.transport.save();
    let mut refused = |change: &dyn Fn(&mut TransportState)| {
        let mut state = good.clone();
        change(&mut state);
        driver.restore(Echo::default(), state).expect_err("it is refused")
    };
    use RestoreError as E;
    assert!(matches!(
        refused(&|s| s.device_type = 2),
        E::DeviceType {
            saved: 2,
            expected: 4
        }
    ));
    assert!(matches!(refused(&|s| s.status = 7), E::Status(7)));
    assert!(matches!(refused(&|s| s.status = 1 << 20 | 15), E::Status(_)));
    assert!(matches!(
        refused(&|s| s.interrupt_status = 4),
        E::InterruptStatus(4)
    ));
    assert!(matches!(
        refused(&|s| s.driver_features |= 1),
        E::FeaturesNotOffered(1)
    ));
    assert!(matches!(
        refused(&|s| s.driver_features = EVENT_IDX),
        E::NotModern
    ));
    assert!(matches!(
        refused(&|s| s.status = 3),
        E::QueueTooEarly { index: 0 }
    ));
    assert!(matches!(
        refused(&|s| s.driver_features = VERSION_1),
        E::EventIdx { index: 0 }
    ));
    assert!(matches!(
        refused(&|s| s.queues.truncate(1)),
        E::QueueCount {
            saved: 1,
            expected: 2
        }
    ));
    assert!(matches!(
        refused(&|s| s.queues[1].max_size = 16),
        E::QueueMaxSize { index: 1, .. }
    ));
    assert!(matches!(
        refused(&|s| s.queues[1].size = 16),
        E::Queue { index: 1, .. }
    ));
    assert!(matches!(
        refused(&|s| s.queues[0].used_ring += 1),
        E::Queue { index: 0, .. }
    ));
    assert!(matches!(
        refused(&|s| s.queues[0].next_available = 17),
        E::QueueIndexes { held: 17, .. }
    ));
    let outside = refused(&|s| s.queues[0].descriptor_table = MEMORY_SIZE);
    assert!(matches!(
        outside,
        E::Ring {
            index: 0,
            source: RingError::OutsideMemory { .. }
        }
    ));
    let torn = refused(&|s| (s.queues[0].next_used, s.queues[0].next_available) = (3, 3));
    assert!(matches!(
        torn,
        E::Ring {
            index: 0,
            source: RingError::Torn {
                in_memory: 0,
                in_state: 3
            }
        }
    ));
    driver.restore(Echo::default(), good).unwrap();
}

fn any_state() -> impl Strategy<Value = TransportState> {
    let size = prop_oneof![Just(8u16), Just(16), any::<u16>()];
    let address = prop_oneof![(0u64..0x500).prop_map(|page| page << 12), any::<u64>()];
    let queue = (
        size.clone(),
        size,
        any::<[bool; 2]>(),
        [address.clone(), address.clone(), address],
        any::<[u16; 2]>(),
    )
        .prop_map(
            |(max_size, size, [ready, event_idx], rings, [next_available, next_used])| QueueState {
                max_size,
                size,
                ready,
                event_idx,
                descriptor_table: rings[0],
                available_ring: rings[1],
                used_ring: rings[2],
                next_available,
                next_used,
            },
        );
    let status = prop_oneof![Just(15u32), Just(11), any::<u32>()];
    let features = prop_oneof![Just(VERSION_1), Just(VERSION_1 | EVENT_IDX), any::<u64>()];
    (
        status,
        features,
        any::<[u32; 4]>(),
        0u32..6,
        prop::collection::vec(queue, 0..4),
    )
        .prop_map(
            |(status, driver_features, [a, b, c, generation], interrupt_status, queues)| TransportState {
                device_type: 4,
                status,
                device_features_sel: a,
                driver_features_sel: b,
                driver_features,
                queue_sel: c,
                interrupt_status,
                config_generation: generation,
                queues,
            },
        )
}

/// What a guest may do: an access, or a byte written where the rings may be.
#[derive(Clone, Debug)]
enum Move {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Scribble(u64, u16),
}

fn any_move() -> impl Strategy<Value = Move> {
    let value = prop_oneof![
        Just(0u32),
        Just(1),
        Just(3),
        Just(11),
        Just(15),
        Just(0x1_0000),
        Just(0x2_0000),
        0u32..17,
        any::<u32>()
    ];
    prop_oneof![
        8 => ((0u64..0x44).prop_map(|word| word * 4), value)
            .prop_map(|(offset, value)| Move::Write(offset, value.to_le_bytes().to_vec())),
        1 => (0u64..0x1010, prop::collection::vec(any::<u8>(), 0..17)).prop_map(|(o, d)| Move::Write(o, d)),
        2 => (0u64..0x1010, 0usize..17).prop_map(|(o, l)| Move::Read(o, l)),
        2 => (0u64..0x2_0000, any::<u16>()).prop_map(|(at, value)| Move::Scribble(0x1_0000 + at, value)),
    ]
}

fn play(driver: &mut Driver<Echo>, moves: Vec<Move>) {
    for one in moves {
        match one {
            Move::Read(offset, length) => driver.transport.read(offset, &mut vec![0; length]),
            Move::Write(offset, data) => driver.transport.write(offset, &data, &driver.memory).unwrap(),
            Move::Scribble(at, value) => {
                vm_memory::Bytes::write_obj(&driver.memory, value, vm_memory::GuestAddress(at)).unwrap();
            }
        }
    }
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_leads_to_a_state_that_cannot_be_restored(
        live in any::<bool>(),
        moves in prop::collection::vec(any_move(), 0..200),
    ) {
        let mut driver = if live { Driver::live(Echo::default()) } else { Driver::new(Echo::default()) };
        play(&mut driver, moves);
        let saved = driver.transport.save();
        match driver.restore(Echo::default(), saved.clone()) {
            Ok(()) => prop_assert_eq!(driver.transport.save(), saved),
            // The guest wrote over its own rings: it is then its own fault.
            Err(RestoreError::Ring { source: RingError::Torn { .. }, .. }) => {}
            Err(RestoreError::QueueIndexes { .. }) => {}
            Err(other) => return Err(TestCaseError::fail(format!("{other} for {saved:?}"))),
        }
    }

    #[test]
    fn a_corrupted_state_is_refused_or_harmless(
        state in any_state(),
        moves in prop::collection::vec(any_move(), 0..50),
    ) {
        let mut driver = Driver::new(Echo::default());
        if driver.restore(Echo::default(), state).is_ok() {
            driver.transport.kick_all(&driver.memory).unwrap();
            play(&mut driver, moves);
        }
    }

    #[test]
    fn a_good_state_with_one_byte_changed_is_refused_or_harmless(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut driver = Driver::live(Echo::default());
        driver.offer(0, &[Buffer::In(1)]);
        let mut bytes = postcard::to_stdvec(&driver.transport.save()).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(state) = postcard::from_bytes(&bytes) && driver.restore(Echo::default(), state).is_ok() {
            driver.transport.kick_all(&driver.memory).unwrap();
        }
    }
}
