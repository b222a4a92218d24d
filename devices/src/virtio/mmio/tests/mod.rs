//! The transport as a driver and a VMM meet it.

mod restore;

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};

use super::*;
use crate::virtio::drain::drain;
use crate::virtio::testing::{BrokenInterrupt, Buffer, CountingInterrupt, Driver, MEMORY_SIZE};
use crate::virtio::{ActivateError, DeviceError, DeviceType, QueueState, VirtioDevice};

const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const FEATURE: u64 = 1 << 5;

/// A device that answers every chain with nothing, and keeps account of what the transport told it.
#[derive(Default)]
struct Echo {
    activated: Option<u64>,
    resets: usize,
    processed: Vec<usize>,
    config: [u8; 8],
    refuse: bool,
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        EVENT_IDX | FEATURE
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.config.get(at..))
            .unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| self.config.get_mut(at..))
            .unwrap_or_default();
        rest.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    }
    fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::FeatureRequired(7));
        }
        self.activated = Some(features);
        Ok(())
    }
    fn reset(&mut self) {
        self.resets += 1;
        self.activated = None;
    }
    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        self.processed.push(index);
        let queue = queues.get_mut(index).ok_or(DeviceError::NoSuchQueue(index))?;
        drain(index, queue, memory, |_| Ok(0))
    }
}

#[test]
fn a_driver_finds_a_modern_device() {
    let mut driver = Driver::new(Echo::default());
    assert_eq!(driver.get(0x00).to_le_bytes(), *b"virt");
    assert_eq!((driver.get(0x04), driver.get(0x08)), (2, 4));
    assert_eq!(driver.offered(), EVENT_IDX | FEATURE | VERSION_1);
    driver.set(0x14, 2);
    assert_eq!(driver.get(0x10), 0, "there are 64 features");
}

#[test]
fn the_queues_show_their_sizes_and_others_are_not_there() {
    let mut driver = Driver::new(Echo::default());
    for (queue, size) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        driver.set(0x30, queue);
        assert_eq!((driver.get(0x34), driver.get(0x44)), (size, 0), "queue {queue}");
    }
}

#[test]
fn there_is_no_shared_memory() {
    let mut driver = Driver::new(Echo::default());
    driver.set(0xac, 0);
    for register in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(driver.get(register), u32::MAX);
    }
}

#[test]
fn bringing_the_device_up_activates_it_with_the_accepted_features() {
    let driver = Driver::live_with(Echo::default(), FEATURE);
    assert!(driver.transport.is_active());
    assert_eq!(driver.transport.device().activated, Some(FEATURE | VERSION_1));
}

#[test]
fn a_driver_that_accepts_too_much_or_too_little_is_refused() {
    for features in [FEATURE, VERSION_1 | 1 << 6, VERSION_1 | 1 << 63, 0] {
        let mut driver = Driver::new(Echo::default());
        driver.set(0x70, 1);
        driver.set(0x70, 3);
        driver.accept(features);
        driver.set(0x70, 11);
        assert_eq!(driver.get(0x70), 3, "features {features:#x}");
        driver.accept(VERSION_1);
        driver.set(0x70, 11);
        assert_eq!(driver.get(0x70), 11, "and may think again");
    }
}

#[test]
fn features_are_fixed_once_agreed_on() {
    let mut driver = Driver::new(Echo::default());
    driver.accept(FEATURE);
    assert_eq!(driver.transport.driver_features(), 0, "not before DRIVER");
    driver.negotiate(0);
    driver.accept(VERSION_1 | FEATURE);
    assert_eq!(driver.transport.driver_features(), VERSION_1);
}

#[test]
fn queues_can_only_be_set_up_between_features_ok_and_driver_ok() {
    let mut driver = Driver::new(Echo::default());
    let before = driver.transport.save().queues;
    for register in [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        driver.set(register, 4);
    }
    driver.set(0x44, 1);
    assert_eq!(driver.transport.save().queues, before);
    driver.bring_up(u64::MAX);
    let live = driver.transport.save().queues;
    driver.set(0x44, 0);
    driver.set(0x38, 4);
    driver.set(0x44, 1);
    let after = driver.transport.save().queues;
    assert_eq!(
        (after[0], after[1]),
        (
            live[0],
            QueueState {
                ready: false,
                ..live[1]
            }
        )
    );
}

#[test]
fn a_queue_that_cannot_work_needs_a_reset_and_the_driver_hears_of_it_at_driver_ok() {
    let too_big = (0x38, 32);
    let odd_size = (0x38, 3);
    let misaligned = (0xa0, 0x8002);
    let outside = (0x80, u32::try_from(MEMORY_SIZE).unwrap());
    for (register, value) in [too_big, odd_size, misaligned, outside] {
        let mut driver = Driver::new(Echo::default());
        driver.negotiate(u64::MAX);
        for (register, value) in [
            (0x30, 0),
            (0x80, 0x1000),
            (0x90, 0x2000),
            (0xa0, 0x3000),
            (register, value),
        ] {
            driver.set(register, value);
        }
        driver.set(0x44, 1);
        assert_eq!(driver.get(0x70), 11 | 64, "{register:#x} = {value:#x}");
        assert_eq!(driver.interrupt.count(), 0);
        driver.set(0x70, 15 | 64);
        assert_eq!(
            (driver.get(0x70), driver.get(0x60), driver.interrupt.count()),
            (15 | 64, 2, 1)
        );
        assert_eq!(driver.transport.device().activated, None);
        assert!(!driver.transport.is_active());
    }
}

#[test]
fn a_device_that_cannot_be_activated_needs_a_reset() {
    let mut driver = Driver::new(Echo {
        refuse: true,
        ..Echo::default()
    });
    driver.negotiate(u64::MAX);
    driver.set(0x70, 15);
    assert_eq!(
        (driver.get(0x70), driver.get(0x60), driver.interrupt.count()),
        (15 | 64, 2, 1)
    );
}

#[test]
fn a_reset_forgets_everything_but_the_configuration_generation() {
    let mut driver = Driver::live(Echo::default());
    driver.offer(0, &[Buffer::In(1)]);
    driver.kick(0);
    driver.transport.config_changed().unwrap();
    driver.set(0x70, 0);
    let fresh = Driver::new(Echo::default()).transport.save();
    assert_eq!(
        driver.transport.save(),
        TransportState {
            config_generation: 1,
            ..fresh
        }
    );
    assert_eq!(driver.transport.device().activated, None);
}

#[test]
fn a_kick_is_served_only_while_the_device_is_live_and_the_queue_ready() {
    let mut driver = Driver::new(Echo::default());
    driver.kick(0);
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    driver.kick(0);
    assert_eq!(driver.transport.device().processed, [] as [usize; 0]);
    driver.set(0x70, 15);
    for queue in [1, 2, u32::MAX] {
        driver.set(0x50, queue);
    }
    assert_eq!(
        driver.transport.device().processed,
        [] as [usize; 0],
        "queue 1 was never made ready"
    );
    driver.kick(0);
    driver.transport.notify_queue(0, &driver.memory).unwrap();
    assert_eq!(driver.transport.device().processed, [0, 0]);
    driver.set(0x70, 15 | 128);
    driver.kick(0);
    assert_eq!(driver.transport.device().processed, [0, 0], "the driver gave up");
}

#[test]
fn the_reason_of_an_interrupt_stays_until_it_is_acknowledged() {
    let mut driver = Driver::live(Echo::default());
    driver.offer(0, &[Buffer::In(1)]);
    driver.kick(0);
    driver.transport.config_changed().unwrap();
    assert_eq!((driver.get(0x60), driver.interrupt.count()), (3, 2));
    driver.set(0x64, 1);
    assert_eq!(driver.get(0x60), 2);
    let line = driver.transport.interrupt_line();
    line.acknowledge(2);
    assert_eq!((driver.get(0x60), line.status()), (0, 0));
}

#[test]
fn with_event_idx_the_driver_hears_when_it_asked_to() {
    let mut driver = Driver::live(Echo::default());
    driver.set_used_event(0, 1);
    driver.offer(0, &[Buffer::In(1)]);
    driver.kick(0);
    assert_eq!(driver.interrupt.count(), 0, "it asked for the second");
    driver.offer(0, &[Buffer::In(1)]);
    driver.kick(0);
    assert_eq!(driver.interrupt.count(), 1);
}

#[test]
fn without_event_idx_the_driver_hears_every_time() {
    let mut driver = Driver::live_with(Echo::default(), 0);
    driver.set_used_event(0, 1);
    for count in 1..4 {
        driver.offer(0, &[Buffer::In(1)]);
        driver.kick(0);
        assert_eq!(driver.interrupt.count(), count);
    }
    driver.kick(0);
    assert_eq!(driver.interrupt.count(), 3, "nothing used, nothing to hear");
}

#[test]
fn the_host_side_uses_queues_only_while_the_device_is_live() {
    let mut driver = Driver::new(Echo::default());
    driver
        .transport
        .poll(&driver.memory, |_, _, _| panic!("not live"))
        .unwrap();
    driver.bring_up(u64::MAX);
    driver
        .transport
        .poll(&driver.memory, |_, queues, _| Ok(queues[0].ready()))
        .unwrap();
    assert_eq!((driver.get(0x60), driver.interrupt.count()), (1, 1));
    driver
        .transport
        .poll(&driver.memory, |_, _, _| Ok(false))
        .unwrap();
    assert_eq!(driver.interrupt.count(), 1);
    driver
        .transport
        .poll(&driver.memory, |_, _, _| Err(DeviceError::NoSuchQueue(9)))
        .unwrap();
    assert_eq!(
        (driver.get(0x70), driver.get(0x60), driver.interrupt.count()),
        (15 | 64, 3, 2)
    );
}

#[test]
fn a_configuration_change_before_driver_ok_is_heard_of_at_driver_ok() {
    let mut driver = Driver::new(Echo::default());
    driver.transport.config_changed().unwrap();
    assert_eq!((driver.get(0xfc), driver.get(0x60)), (1, 0));
    driver.negotiate(u64::MAX);
    driver.transport.config_changed().unwrap();
    assert_eq!((driver.get(0xfc), driver.interrupt.count()), (2, 0));
    driver.set(0x70, 15);
    assert_eq!((driver.get(0x60), driver.interrupt.count()), (2, 1));
}

#[test]
fn the_configuration_space_is_the_devices() {
    let mut driver = Driver::new(Echo {
        config: *b"12345678",
        ..Echo::default()
    });
    let mut two = [0; 2];
    driver.transport.read(0x102, &mut two);
    assert_eq!(&two, b"34");
    let mut beyond = [0xff; 8];
    driver.transport.read(0x104, &mut beyond);
    assert_eq!(&beyond, b"5678\0\0\0\0");
    driver.transport.write(0x100, b"x", &driver.memory).unwrap();
    assert_eq!(driver.transport.device().config[0], b'1', "not before DRIVER");
    driver.bring_up(0);
    driver.transport.write(0x100, b"x", &driver.memory).unwrap();
    assert_eq!(driver.transport.device().config[0], b'x');
}

#[test]
fn odd_accesses_read_zero_and_write_nothing() {
    let mut driver = Driver::live(Echo::default());
    let before = driver.transport.save();
    for (offset, length) in [
        (0x70, 1),
        (0x72, 2),
        (0x71, 4),
        (0x70, 8),
        (0x70, 0),
        (0xc0, 4),
        (0x100, 3),
    ] {
        let mut data = vec![0xff; length];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; length], "{offset:#x}+{length}");
        driver.transport.write(offset, &data, &driver.memory).unwrap();
    }
    assert_eq!(driver.transport.save(), before);
}

#[test]
fn an_interrupt_that_cannot_be_raised_is_the_owners_to_know() {
    let mut driver = Driver::live(Echo::default());
    let state = driver.transport.save();
    let cut = MmioTransport::restore(Echo::default(), state, Arc::new(BrokenInterrupt), &driver.memory);
    driver.offer(0, &[Buffer::In(1)]);
    let mut cut = cut.unwrap();
    assert!(cut.config_changed().is_err());
    assert!(cut.write(0x50, &[0; 4], &driver.memory).is_err());
    assert!(cut.kick_all(&driver.memory).is_err());
}

#[test]
fn a_bus_can_hold_transports_of_different_devices_alike() {
    let interrupt = Arc::new(CountingInterrupt::default());
    let mut bus: Vec<Box<dyn VirtioMmio>> = vec![Box::new(MmioTransport::new(Echo::default(), interrupt))];
    let mut magic = [0; 4];
    bus[0].read(0, &mut magic);
    assert_eq!((&magic, bus[0].queue_count()), (b"virt", 2));
}
