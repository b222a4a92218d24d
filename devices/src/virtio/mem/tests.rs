//! The device as its driver and its VMM see it.

use std::sync::{Arc, Mutex};

use virtio_queue::desc::split::Descriptor;

use super::testing::{ADDR, BLOCK, MockBackend, ask, ask_bytes, config, kick, memory, request};
use super::{Mem, MemState, RestoreError, SizeError};
use crate::virtio::{ActivateError, DeviceError, VirtioDevice};

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const BUSY: (u16, u16) = (2, 0);
const ERROR: (u16, u16) = (3, 0);

fn device(blocks: u32, requested: u64) -> Mem<MockBackend> {
    let mut device = Mem::new(config(blocks), MockBackend::default());
    device.set_requested_size(requested * BLOCK).unwrap();
    device
}

fn config_word(device: &Mem<MockBackend>, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    device.read_config(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn the_configuration_space_tells_the_region_and_the_sizes() {
    let mut device = device(64, 10);
    assert_eq!(ask(&mut device, PLUG, 3, 4), ACK);
    let words: Vec<_> = (0..7).map(|n| config_word(&device, n * 8)).collect();
    assert_eq!(
        words,
        [BLOCK, 0, ADDR, 64 * BLOCK, 64 * BLOCK, 4 * BLOCK, 10 * BLOCK]
    );
}

#[test]
fn the_configuration_space_reads_as_zero_past_its_end() {
    let device = device(64, 10);
    let mut bytes = [0xaa; 8];
    device.read_config(52, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    for offset in [56, 1 << 40, u64::MAX] {
        bytes = [0xaa; 8];
        device.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    }
}

#[test]
fn a_driver_that_would_touch_unplugged_memory_is_not_let_in() {
    let mut device = device(8, 0);
    assert_eq!(device.features(), 1 << 1);
    assert!(device.activate(1 << 1 | 1 << 32).is_ok());
    assert!(matches!(
        device.activate(1 << 32),
        Err(ActivateError::FeatureRequired(1))
    ));
}

#[test]
fn plugging_stops_at_the_requested_size() {
    let mut device = device(64, 5);
    assert_eq!(ask(&mut device, PLUG, 0, 6), NACK);
    assert_eq!(ask(&mut device, PLUG, 0, 3), ACK);
    assert_eq!(ask(&mut device, PLUG, 20, 3), NACK);
    assert_eq!(ask(&mut device, PLUG, 20, 2), ACK);
    assert_eq!(ask(&mut device, PLUG, 30, 1), NACK);
    assert_eq!(device.plugged_size(), 5 * BLOCK);
    let runs: Vec<_> = device
        .plugged_ranges()
        .map(|r| (r.first().0, r.count()))
        .collect();
    assert_eq!(runs, [(0, 3), (20, 2)]);
}

#[test]
fn plugging_what_is_plugged_is_an_error_and_changes_nothing() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, PLUG, 4, 2), ACK);
    let calls = device.backend().calls;
    assert_eq!(ask(&mut device, PLUG, 5, 1), ERROR);
    assert_eq!(ask(&mut device, PLUG, 3, 2), ERROR);
    // An error before it is too much.
    assert_eq!(ask(&mut device, PLUG, 0, 30), ERROR);
    assert_eq!(device.backend().calls, calls);
    assert_eq!(device.plugged_size(), 2 * BLOCK);
}

#[test]
fn only_plugged_blocks_can_be_unplugged() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, PLUG, 4, 8), ACK);
    assert_eq!(ask(&mut device, UNPLUG, 3, 2), ERROR);
    assert_eq!(ask(&mut device, UNPLUG, 20, 1), ERROR);
    assert_eq!(ask(&mut device, UNPLUG, 6, 2), ACK);
    assert_eq!(ask(&mut device, UNPLUG, 4, 8), ERROR);
    assert_eq!(device.plugged_size(), 6 * BLOCK);
    assert!(!device.backend().host.contains(&6) && device.backend().host.contains(&8));
}

#[test]
fn state_tells_plugged_unplugged_and_mixed() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, PLUG, 4, 8), ACK);
    assert_eq!(ask(&mut device, STATE, 4, 8), (0, 0));
    assert_eq!(ask(&mut device, STATE, 12, 4), (0, 1));
    assert_eq!(ask(&mut device, STATE, 3, 2), (0, 2));
    assert_eq!(ask(&mut device, STATE, 63, 2), ERROR);
}

#[test]
fn unplug_all_empties_the_device() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, UNPLUG_ALL, 0, 0), ACK);
    for first in [1, 5, 60] {
        assert_eq!(ask(&mut device, PLUG, first, 3), ACK);
    }
    assert_eq!(ask(&mut device, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(device.plugged_size(), 0);
    assert!(device.backend().host.is_empty());
    assert_eq!(
        config_word(&device, 32),
        64 * BLOCK,
        "the usable region is still the whole region"
    );
}

#[test]
fn a_shrunk_request_does_not_take_memory_away_by_itself() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, PLUG, 0, 20), ACK);
    device.set_requested_size(4 * BLOCK).unwrap();
    assert_eq!(device.plugged_size(), 20 * BLOCK);
    assert_eq!(ask(&mut device, PLUG, 30, 1), NACK);
    assert_eq!(ask(&mut device, UNPLUG, 4, 16), ACK);
    assert_eq!(device.plugged_size(), device.requested_size());
}

#[test]
fn a_host_out_of_memory_is_busy_and_changes_nothing() {
    let mut device = device(64, 20);
    device.backend_mut().full = true;
    assert_eq!(ask(&mut device, PLUG, 0, 4), BUSY);
    assert_eq!(device.plugged_size(), 0);
    assert_eq!(ask(&mut device, STATE, 0, 4), (0, 1));
    device.backend_mut().full = false;
    assert_eq!(ask(&mut device, PLUG, 0, 4), ACK);
}

#[test]
fn memory_the_host_cannot_take_back_stays_plugged_and_is_busy() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, PLUG, 0, 4), ACK);
    assert_eq!(ask(&mut device, PLUG, 10, 4), ACK);
    device.backend_mut().stuck = Some(2);
    assert_eq!(ask(&mut device, UNPLUG, 0, 4), BUSY);
    assert_eq!(device.plugged_size(), 8 * BLOCK);
    assert_eq!(ask(&mut device, UNPLUG_ALL, 0, 0), BUSY);
    assert_eq!(device.plugged_size(), 4 * BLOCK, "what could be unplugged is");
    device.backend_mut().stuck = None;
    assert_eq!(ask(&mut device, UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(device.plugged_size(), 0);
}

#[test]
fn unknown_and_short_requests_are_errors() {
    let mut device = device(64, 20);
    assert_eq!(ask(&mut device, 4, 0, 1), ERROR);
    assert_eq!(ask(&mut device, 0xffff, 0, 1), ERROR);
    assert_eq!(ask_bytes(&mut device, &request(PLUG, ADDR, 1)[..23])[0], 3);
    assert_eq!(ask_bytes(&mut device, &[0])[0], 3);
    assert_eq!(device.plugged_size(), 0);
}

#[test]
fn a_request_that_leaves_no_room_for_the_answer_is_not_carried_out() {
    let memory = memory();
    vm_memory::Bytes::write_slice(&memory, &request(PLUG, ADDR, 1), vm_memory::GuestAddress(0x2000)).unwrap();
    let request = Descriptor::new(0x2000, 24, 0, 0);
    for response in [
        None,
        Some(Descriptor::new(0x3000, 9, 2, 0)),
        Some(Descriptor::new(0x3000, 10, 0, 0)),
        Some(Descriptor::new(ADDR, 10, 2, 0)),
        Some(Descriptor::new(u64::MAX, 10, 2, 0)),
    ] {
        let mut device = device(64, 20);
        let chain: Vec<_> = [Some(request), response].into_iter().flatten().collect();
        assert!(matches!(
            kick(&mut device, &memory, &chain),
            Err(DeviceError::Queue { index: 0, .. })
        ));
        assert_eq!(device.backend().calls, 0);
    }
}

#[test]
fn another_queue_is_no_queue() {
    let mut device = device(64, 20);
    let memory = memory();
    assert!(matches!(
        device.process_queue(1, &mut [], &memory),
        Err(DeviceError::NoSuchQueue(1))
    ));
    assert!(matches!(
        device.process_queue(0, &mut [], &memory),
        Err(DeviceError::NoSuchQueue(0))
    ));
}

#[test]
fn requested_sizes_are_whole_blocks_within_the_region() {
    let mut device = device(64, 20);
    assert!(matches!(
        device.set_requested_size(BLOCK + 1),
        Err(SizeError::NotWholeBlocks { .. })
    ));
    for bytes in [65 * BLOCK, 64 * BLOCK + 1, u64::MAX, u64::MAX - BLOCK + 1] {
        assert!(matches!(
            device.set_requested_size(bytes),
            Err(SizeError::TooLarge { .. })
        ));
    }
    assert_eq!(device.requested_size(), 20 * BLOCK);
    device.set_requested_size(64 * BLOCK).unwrap();
    device.set_requested_size(0).unwrap();
    assert_eq!(device.requested_size(), 0);
}

#[test]
fn the_hook_hears_of_every_change_and_of_nothing_else() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut device = device(64, 8);
    let sink = Arc::clone(&heard);
    device.on_plugged(move |bytes| sink.lock().unwrap().push(bytes / BLOCK));
    ask(&mut device, PLUG, 0, 8);
    ask(&mut device, PLUG, 8, 1);
    ask(&mut device, STATE, 0, 8);
    ask(&mut device, UNPLUG, 4, 2);
    device.backend_mut().stuck = Some(0);
    ask(&mut device, UNPLUG, 0, 1);
    device.backend_mut().stuck = None;
    ask(&mut device, UNPLUG_ALL, 0, 0);
    ask(&mut device, UNPLUG_ALL, 0, 0);
    assert_eq!(*heard.lock().unwrap(), [8, 6, 0]);
}

#[test]
fn a_device_reset_leaves_the_memory_alone() {
    let mut device = device(64, 8);
    ask(&mut device, PLUG, 0, 8);
    device.reset();
    assert_eq!(device.plugged_size(), 8 * BLOCK);
    assert_eq!(device.backend().host.len(), 8);
}

#[test]
fn a_restored_device_goes_on_where_it_was_without_plugging_anything() {
    let mut device = device(64, 8);
    ask(&mut device, PLUG, 0, 3);
    ask(&mut device, PLUG, 62, 2);
    let state = device.save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    let state: MemState = postcard::from_bytes(&bytes).unwrap();
    let ranges = state.plugged_ranges(&config(64)).unwrap();
    assert_eq!(ranges, device.plugged_ranges().collect::<Vec<_>>());

    let backend = MockBackend {
        host: [0, 1, 2, 62, 63].into(),
        ..MockBackend::default()
    };
    let mut restored = Mem::restore(config(64), &state, backend).unwrap();
    assert_eq!(restored.backend().calls, 0);
    assert_eq!(restored.save(), state);
    assert_eq!(ask(&mut restored, PLUG, 2, 1), ERROR);
    assert_eq!(ask(&mut restored, PLUG, 3, 4), NACK);
    assert_eq!(ask(&mut restored, UNPLUG, 62, 2), ACK);
    assert_eq!(ask(&mut restored, PLUG, 3, 4), ACK);
}

#[test]
fn a_state_that_contradicts_itself_or_the_region_is_refused() {
    let mut device = device(70, 8);
    ask(&mut device, PLUG, 60, 8);
    let good = device.save();
    let refused = |change: fn(&mut MemState)| {
        let mut state = good.clone();
        change(&mut state);
        assert!(state.plugged_ranges(&config(70)).is_err());
        Mem::restore(config(70), &state, MockBackend::default()).err()
    };
    assert_eq!(refused(|s| s.addr += BLOCK), Some(RestoreError::Region));
    assert_eq!(
        refused(|s| s.region_size = 71 * BLOCK),
        Some(RestoreError::Region)
    );
    assert_eq!(refused(|s| s.block_size = 0), Some(RestoreError::Region));
    assert!(matches!(
        refused(|s| s.plugged_size = 0),
        Some(RestoreError::PluggedSize { .. })
    ));
    assert!(matches!(
        refused(|s| s.plugged[0] ^= 1),
        Some(RestoreError::PluggedSize { .. })
    ));
    assert!(matches!(
        refused(|s| s.plugged[1] |= 1 << 6),
        Some(RestoreError::Bitmap { blocks: 70 })
    ));
    assert!(matches!(
        refused(|s| s.plugged.push(0)),
        Some(RestoreError::Bitmap { .. })
    ));
    assert!(matches!(
        refused(|s| s.plugged.clear()),
        Some(RestoreError::Bitmap { .. })
    ));
    assert!(matches!(
        refused(|s| s.requested_size = 71 * BLOCK),
        Some(RestoreError::RequestedSize(_))
    ));
    assert!(matches!(
        refused(|s| s.requested_size += 1),
        Some(RestoreError::RequestedSize(_))
    ));
}
