//! The transmit queue: chains of the guest's become frames for the backend, or are dropped.

use std::sync::atomic::Ordering;

use tracing::debug;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::buffers::{Direction, Malformed, advance, collect, read_front};
use super::counters::{add, count};
use super::header::{Header, Nonsense};
use super::{BUDGET, ETHERNET_HEADER, MAX_FRAME, Net};
use crate::virtio::Memory;

/// What is copied out of guest memory of each frame, and checked: both headers.
const HEAD: usize = Header::BYTES + ETHERNET_HEADER;

/// What the transmit queue remembers between two calls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transmit {
    /// The last call stopped because it had moved enough.
    pub(super) more: bool,
    /// Unmuted, but what is in the queue was put there before and is still to be counted.
    pub(super) opening: bool,
    /// So many frames in the queue are from before the device was unmuted.
    pub(super) stale: u16,
}

/// Why the guest's chain is not sent.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Buffers(#[from] Malformed),
    #[error(transparent)]
    Frame(#[from] Nonsense),
    #[error("its source is another interface's address")]
    Foreign,
}

impl Net {
    /// Takes what the guest has queued, up to [`BUDGET`] frames; every chain is given back at once,
    /// sent or not. Returns whether any was.
    pub(super) fn transmit(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
    ) -> Result<bool, virtio_queue::Error> {
        self.transmit.more = false;
        if self.transmit.opening {
            self.transmit.opening = false;
            self.transmit.stale = waiting(queue, memory)?;
        }
        let mut taken = 0;
        // Looking writes nothing, so waking an idle guest dirties no page of it.
        while waiting(queue, memory)? > 0 {
            queue.disable_notification(memory)?;
            let before = taken;
            while taken < BUDGET
                && let Some(chain) = queue.iter(memory)?.next()
            {
                let head = chain.head_index();
                if head >= queue.size() {
                    // Not a chain, and there would be no way to give it back.
                    return Err(virtio_queue::Error::InvalidDescriptorIndex);
                }
                taken += 1;
                self.take_frame(chain, memory);
                queue.add_used(memory, head, 0)?;
            }
            if taken == before {
                // The index promises a chain that the ring doesn't yield.
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            }
            // Also when we stop here: whoever stops us for good, by a checkpoint, cannot turn them on.
            let more = queue.enable_notification(memory)?;
            if taken == BUDGET {
                self.transmit.more = more;
                break;
            }
        }
        Ok(taken > 0)
    }

    /// Sends one frame, or drops and counts it.
    fn take_frame(&mut self, chain: DescriptorChain<&Memory>, memory: &Memory) {
        if self.muted || self.transmit.stale > 0 {
            self.transmit.stale = self.transmit.stale.saturating_sub(1);
            return count(&mut self.counters.sent.muted);
        }
        if self.backend.is_none() {
            return count(&mut self.counters.sent.unconnected);
        }
        match self.send(chain, memory) {
            Ok(()) => {}
            Err(Refusal::Foreign) => count(&mut self.counters.sent.foreign),
            Err(refusal) => {
                count(&mut self.counters.sent.malformed);
                if self.counters.sent.malformed.is_power_of_two() {
                    debug!(%refusal, dropped = self.counters.sent.malformed, "the guest sent no frame");
                }
            }
        }
    }

    fn send(&mut self, chain: DescriptorChain<&Memory>, memory: &Memory) -> Result<(), Refusal> {
        // What is sent of these is what was checked: the guest may write over its own at any time.
        let mut head = [0; HEAD];
        let mut frame: Vec<VolatileSlice<'_>> = Vec::with_capacity(4);
        let limit = Header::BYTES + MAX_FRAME + 1;
        let total = collect(chain, memory, Direction::Readable, limit, &mut frame)?;
        let length = total.saturating_sub(Header::BYTES);
        if !read_front(&frame, &mut head) {
            return Err(Nonsense::Length(length).into());
        }
        advance(&mut frame, HEAD);
        let (virtio, ethernet) = head.split_at_mut(Header::BYTES);
        let mut said = [0; Header::BYTES];
        said.copy_from_slice(virtio);
        let header = Header::parse(said, length, self.accepted.sending())?;
        virtio.copy_from_slice(&header.to_bytes());
        if let Some(only) = self.config.only_mac
            && ethernet.get(6..12) != Some(&only.bytes()[..])
        {
            return Err(Refusal::Foreign);
        }
        frame.insert(0, VolatileSlice::from(&mut head[..]));
        let Some(backend) = &mut self.backend else {
            return Ok(());
        };
        match backend.send(&frame) {
            Ok(()) => {
                count(&mut self.counters.sent.frames);
                add(&mut self.counters.sent.bytes, length);
            }
            Err(error) => {
                count(&mut self.counters.sent.refused);
                if self.counters.sent.refused.is_power_of_two() {
                    debug!(%error, lost = self.counters.sent.refused, "the host took no frame of the guest's");
                }
            }
        }
        Ok(())
    }
}

/// How many chains the driver offers that the device has not taken.
pub(super) fn waiting(queue: &Queue, memory: &Memory) -> Result<u16, virtio_queue::Error> {
    if !queue.ready() {
        return Ok(0);
    }
    let there = queue.avail_idx(memory, Ordering::Acquire)?.0;
    match there.wrapping_sub(queue.next_avail()) {
        many if many > queue.size() => Err(virtio_queue::Error::InvalidAvailRingIndex),
        many => Ok(many),
    }
}
