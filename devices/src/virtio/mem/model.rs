//! The device against a plain model of the specification: whatever a driver asks and the host wants,
//! in whatever order, answers, sizes and host memory are what the model says.
//!
//! The model shares nothing with the device: a `Vec<bool>` and 128-bit arithmetic.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::Queue;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{ADDR, BLOCK, MockBackend, ask_bytes, config, memory, request};
use super::{Mem, MemState};
use crate::virtio::VirtioDevice;

/// Not a multiple of the 64 bits of a word.
const BLOCKS: u32 = 150;

#[derive(Clone, Debug)]
enum Step {
    Request { kind: u16, addr: u64, count: u16 },
    ShortRequest(Vec<u8>),
    Resize(u64),
    HostFull(bool),
    HostStuck(Option<u32>),
    DeviceReset,
    SaveAndRestore,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        8 => Just(0u16),
        6 => Just(1),
        1 => Just(2),
        3 => Just(3),
        1 => any::<u16>(),
    ];
    let near = (0..u64::from(BLOCKS) + 4).prop_map(|block| ADDR - 2 * BLOCK + block * BLOCK);
    let addr = prop_oneof![
        20 => near.clone(),
        1 => (near, 1..BLOCK).prop_map(|(addr, off)| addr + off),
        1 => any::<u64>(),
    ];
    let count = prop_oneof![20 => 1u16..24, 1 => Just(0), 1 => any::<u16>()];
    let size = prop_oneof![
        10 => (0..=u64::from(BLOCKS)).prop_map(|blocks| blocks * BLOCK),
        1 => 0..=u64::from(BLOCKS) * BLOCK + 2 * BLOCK,
        1 => any::<u64>(),
    ];
    prop_oneof![
        30 => (kind, addr, count).prop_map(|(kind, addr, count)| Step::Request { kind, addr, count }),
        1 => vec(any::<u8>(), 1..24).prop_map(Step::ShortRequest),
        5 => size.prop_map(Step::Resize),
        1 => any::<bool>().prop_map(Step::HostFull),
        1 => proptest::option::of(0..BLOCKS).prop_map(Step::HostStuck),
        1 => Just(Step::DeviceReset),
        2 => Just(Step::SaveAndRestore),
    ]
}

#[derive(Debug, Default)]
struct Model {
    plugged: Vec<bool>,
    requested: u64,
    full: bool,
    stuck: Option<u32>,
}

impl Model {
    fn count(&self) -> u64 {
        self.plugged.iter().map(|&plugged| u64::from(plugged)).sum()
    }

    /// Block numbers of a request, if it names whole blocks of the region.
    fn blocks(addr: u64, count: u16) -> Option<std::ops::Range<usize>> {
        let (start, block) = (i128::from(addr) - i128::from(ADDR), i128::from(BLOCK));
        let end = start + i128::from(count) * block;
        let fits = start >= 0 && start % block == 0 && count > 0 && end <= i128::from(BLOCKS) * block;
        fits.then(|| usize::try_from(start / block).unwrap()..usize::try_from(end / block).unwrap())
    }

    fn is_stuck(&self, range: &std::ops::Range<usize>) -> bool {
        self.stuck.is_some_and(|stuck| range.contains(&(stuck as usize)))
    }

    /// Type and state of the answer.
    fn answer(&mut self, kind: u16, addr: u64, count: u16) -> (u16, u16) {
        const ERROR: (u16, u16) = (3, 0);
        if kind == 2 {
            return self.unplug_all();
        }
        let Some(range) = Self::blocks(addr, count) else {
            return ERROR;
        };
        let bits = &self.plugged[range.clone()];
        let (all, any) = (bits.iter().all(|&bit| bit), bits.iter().any(|&bit| bit));
        match kind {
            0 if any => ERROR,
            0 if self.count() + u64::from(count) > self.requested => (1, 0),
            0 if self.full => (2, 0),
            1 if !all => ERROR,
            1 if self.is_stuck(&range) => (2, 0),
            0 | 1 => {
                self.plugged[range].fill(kind == 0);
                (0, 0)
            }
            3 => (
                0,
                if all {
                    0
                } else if any {
                    2
                } else {
                    1
                },
            ),
            _ => ERROR,
        }
    }

    /// Run by run; a run with the stuck block in it stays.
    fn unplug_all(&mut self) -> (u16, u16) {
        let mut answer = (0, 0);
        let mut at = 0;
        while at < self.plugged.len() {
            let len = self.plugged[at..].iter().take_while(|&&bit| bit).count();
            if len > 0 && self.is_stuck(&(at..at + len)) {
                answer = (2, 0);
            } else {
                self.plugged[at..at + len].fill(false);
            }
            at += len.max(1);
        }
        answer
    }

    fn set(&self) -> BTreeSet<u32> {
        (0..BLOCKS)
            .filter(|&block| self.plugged[block as usize])
            .collect()
    }
}

fn restore(device: &mut Mem<MockBackend>) {
    let bytes = postcard::to_stdvec(&device.save()).unwrap();
    let state: MemState = postcard::from_bytes(&bytes).unwrap();
    let backend = std::mem::take(device.backend_mut());
    let calls = backend.calls;
    *device = Mem::restore(config(BLOCKS), &state, backend).unwrap();
    assert_eq!(device.backend().calls, calls, "the backend holds it already");
    assert_eq!(device.save(), state);
}

/// Everything that can be seen of the device is what the model says.
fn compare(device: &Mem<MockBackend>, model: &Model) -> Result<(), TestCaseError> {
    let mut bytes = [0; 56];
    device.read_config(0, &mut bytes);
    let words: Vec<_> = bytes
        .chunks(8)
        .map(|w| u64::from_le_bytes(w.try_into().unwrap()))
        .collect();
    let region = u64::from(BLOCKS) * BLOCK;
    let (plugged, requested) = (model.count() * BLOCK, model.requested * BLOCK);
    prop_assert_eq!(words, [BLOCK, 0, ADDR, region, region, plugged, requested]);
    prop_assert_eq!(
        (device.plugged_size(), device.requested_size()),
        (plugged, requested)
    );
    prop_assert_eq!(&device.backend().host, &model.set());
    let runs: Vec<_> = device.plugged_ranges().collect();
    prop_assert!(
        runs.windows(2).all(|pair| pair[0].end() < pair[1].first()),
        "not maximal: {:?}",
        runs
    );
    let in_runs: BTreeSet<_> = runs
        .iter()
        .flat_map(|run| run.blocks())
        .map(|block| block.0)
        .collect();
    prop_assert_eq!(in_runs, model.set());
    Ok(())
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut device = Mem::new(config(BLOCKS), MockBackend::default());
    let mut model = Model {
        plugged: vec![false; BLOCKS as usize],
        ..Model::default()
    };
    let heard = Arc::new(AtomicU64::new(0));
    let listen = |device: &mut Mem<MockBackend>| {
        let sink = Arc::clone(&heard);
        device.on_plugged(move |bytes| sink.store(bytes, Ordering::Relaxed));
    };
    listen(&mut device);
    for step in steps {
        match step {
            Step::Request { kind, addr, count } => {
                let answer = ask_bytes(&mut device, &request(kind, addr, count));
                let [k0, k1, padding @ .., s0, s1] = answer;
                let got = (u16::from_le_bytes([k0, k1]), u16::from_le_bytes([s0, s1]));
                prop_assert_eq!(got, model.answer(kind, addr, count));
                prop_assert_eq!(padding, [0; 6]);
            }
            Step::ShortRequest(bytes) => {
                prop_assert_eq!(ask_bytes(&mut device, &bytes), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
            Step::Resize(bytes) => {
                let possible = bytes % BLOCK == 0 && bytes / BLOCK <= u64::from(BLOCKS);
                prop_assert_eq!(device.set_requested_size(bytes).is_ok(), possible);
                if possible {
                    model.requested = bytes / BLOCK;
                }
            }
            Step::HostFull(full) => {
                model.full = full;
                device.backend_mut().full = full;
            }
            Step::HostStuck(stuck) => {
                model.stuck = stuck;
                device.backend_mut().stuck = stuck;
            }
            Step::DeviceReset => device.reset(),
            Step::SaveAndRestore => {
                restore(&mut device);
                listen(&mut device);
            }
        }
        compare(&device, &model)?;
        prop_assert_eq!(heard.load(Ordering::Relaxed), device.plugged_size());
    }
    Ok(())
}

/// A state that is a good one but for a few of its fields.
fn nearly_good_state() -> impl Strategy<Value = MemState> {
    let odd = || prop_oneof![Just(0), Just(BLOCK), any::<u64>()];
    let words = prop_oneof![
        vec(any::<u64>(), 0..5),
        Just(vec![0; 3]),
        Just(vec![1, 0, 1 << 21]),
        Just(vec![1, 0, 1 << 22])
    ];
    (words, odd(), odd(), odd(), any::<[bool; 5]>()).prop_map(|(plugged, a, b, c, wrong)| {
        let counted: u64 = plugged
            .iter()
            .map(|word: &u64| u64::from(word.count_ones()))
            .sum();
        let pick = |wrong, odd, good| if wrong { odd } else { good };
        MemState {
            addr: pick(wrong[0] & wrong[1], a, ADDR),
            region_size: pick(wrong[1] & wrong[2], b, u64::from(BLOCKS) * BLOCK),
            block_size: pick(wrong[2] & wrong[3], c, BLOCK),
            requested_size: pick(wrong[3] & wrong[4], b, 7 * BLOCK),
            plugged_size: pick(wrong[4] & wrong[0], c, counted * BLOCK),
            plugged,
        }
    })
}

/// A state is refused, or is the state of the device that comes of it.
fn refused_or_kept(state: &MemState) -> Result<(), TestCaseError> {
    match Mem::restore(config(BLOCKS), state, MockBackend::default()) {
        Err(_) => prop_assert!(state.plugged_ranges(&config(BLOCKS)).is_err()),
        Ok(device) => {
            prop_assert_eq!(&device.save(), state);
            let ranges = state.plugged_ranges(&config(BLOCKS)).unwrap();
            prop_assert!(ranges.iter().all(|range| range.end().0 <= BLOCKS));
            let blocks: u32 = ranges.iter().map(|range| range.count()).sum();
            prop_assert_eq!(u64::from(blocks) * BLOCK, state.plugged_size);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_device_is_the_model(steps in vec(step(), 1..80)) {
        run(steps)?;
    }

    #[test]
    fn a_corrupted_state_is_refused_or_means_what_it_says(state in nearly_good_state()) {
        refused_or_kept(&state)?;
    }

    #[test]
    fn a_corrupted_file_never_panics(
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut device = Mem::new(config(BLOCKS), MockBackend::default());
        device.set_requested_size(40 * BLOCK).unwrap();
        ask_bytes(&mut device, &request(0, ADDR + 60 * BLOCK, 40));
        let mut bytes = postcard::to_stdvec(&device.save()).unwrap();
        for (at, flip) in flips {
            *at.get_mut(&mut bytes) ^= flip;
        }
        bytes.truncate(cut.index(bytes.len() * 4).max(1));
        if let Ok(state) = postcard::from_bytes::<MemState>(&bytes) {
            refused_or_kept(&state)?;
        }
    }

    #[test]
    fn no_chain_of_descriptors_breaks_the_device(
        chain in vec((0u64..0x1_1000, 0u32..0x40, 0u16..8, 0u16..18), 1..6),
        odd in proptest::option::of((0usize..6, any::<u64>(), any::<u32>())),
        fill in vec((0u64..0xffe0, 0u16..5), 0..20),
    ) {
        let memory = memory();
        // Sow requests, so that some chain runs into one.
        for (at, kind) in fill {
            memory.write_slice(&request(kind, ADDR, 1), GuestAddress(at)).unwrap();
        }
        let driver = MockSplitQueue::new(&memory, 16);
        let mut raw: Vec<_> = chain
            .iter()
            .map(|&(addr, len, flags, next)| Descriptor::new(addr, len, flags, next))
            .collect();
        if let Some((at, addr, len)) = odd
            && let Some(descriptor) = raw.get_mut(at)
        {
            descriptor.set_addr(addr);
            descriptor.set_len(len);
        }
        let raw: Vec<_> = raw.into_iter().map(RawDescriptor::from).collect();
        driver.add_desc_chains(&raw, 0).unwrap();

        let heard = Arc::new(Mutex::new(0));
        let mut device = Mem::new(config(BLOCKS), MockBackend::default());
        device.set_requested_size(BLOCK).unwrap();
        let sink = Arc::clone(&heard);
        device.on_plugged(move |bytes| *sink.lock().unwrap() = bytes);
        let mut queues = [driver.create_queue::<Queue>().unwrap()];
        let _ = device.process_queue(0, &mut queues, &memory);
        prop_assert_eq!(device.plugged_size(), device.backend().host.len() as u64 * BLOCK);
        prop_assert_eq!(*heard.lock().unwrap(), device.plugged_size());
    }
}
