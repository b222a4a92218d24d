//! The receive queue: frames of the backend's are put into buffers of the guest's.
//!
//! A frame's length is known when it was read, so it is read into as many of the guest's buffers as the
//! longest takes, and into a buffer of ours for what may not fit. Nearly always it fits, nothing was
//! copied, and the buffers it did not take go back to their place in the queue.
//!
//! A frame that did not fit is *parked* in our buffer if the guest can still offer more for it, as the
//! guest's ring is not full; else it is dropped. Either way the guest is given all of it or nothing.

use std::collections::VecDeque;
use std::io::ErrorKind;

use tracing::debug;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::buffers::{Direction, collect, read_front, write_at};
use super::counters::{add, count};
use super::header::Header;
use super::transmit::waiting;
use super::{BUDGET, ETHERNET_HEADER, MAX_FRAME, Net};
use crate::virtio::Memory;

/// A frame and its header.
const LARGEST: usize = Header::BYTES + MAX_FRAME;
/// Most slices a frame is read into; a guest whose buffers are that small gets no large frames.
const MAX_SLICES: usize = 512;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;
/// After so many failures in a row the backend is left alone.
const MAX_FAILURES: u8 = 16;

/// What the receive queue remembers between two calls.
#[derive(Debug)]
pub(super) struct Receive {
    /// The guest has no buffers for what comes: nothing is read until it kicks.
    pub(super) blocked: bool,
    /// The backend failed so often without success in between.
    pub(super) failures: u8,
    /// Bytes of the frame in `spill` that waits for buffers.
    parked: Option<usize>,
    /// Where a frame goes, or its end, that does not fit.
    spill: Vec<u8>,
}

impl Receive {
    /// Nothing was received yet, and the guest offered nothing yet.
    pub(super) fn new() -> Self {
        Self {
            blocked: true,
            failures: 0,
            parked: None,
            spill: Vec::new(),
        }
    }

    /// As it was made: what waits is lost.
    pub(super) fn reset(&mut self) {
        self.blocked = true;
        self.forget();
    }

    /// Another backend, or none: what waits is lost, and what failed counts no more.
    pub(super) fn forget(&mut self) {
        self.failures = 0;
        self.parked = None;
    }

    /// Whether the backend failed too often.
    pub(super) fn gave_up(&self) -> bool {
        self.failures >= MAX_FAILURES
    }
}

/// Chains taken off the queue for the frames to come.
#[derive(Default)]
struct Posted<'m> {
    chains: VecDeque<Chain>,
    slices: Vec<VolatileSlice<'m>>,
    bytes: usize,
    /// The next chain in the queue is no buffer.
    bad_next: bool,
    /// Chains that were no buffers and were given back.
    given_back: usize,
}

/// One of them.
struct Chain {
    head: u16,
    bytes: usize,
    slices: usize,
}

/// How the guest's buffers and a frame go together.
enum Fit {
    /// It lies in them, or was put there.
    In,
    /// It does not, yet.
    NotYet,
    /// It does not.
    Never,
}

impl<'m> Posted<'m> {
    /// Takes chains until there are `wanted` bytes, or one chain where frames may not be spread.
    /// Chains that are no buffers are given back, but only while there is none before them, and no more
    /// than [`BUDGET`] however fast the guest offers them again.
    fn gather(
        &mut self,
        queue: &mut Queue,
        memory: &'m Memory,
        wanted: usize,
        mergeable: bool,
    ) -> Result<(), virtio_queue::Error> {
        while !self.bad_next
            && self.given_back < BUDGET
            && self.bytes < wanted
            && self.slices.len() < MAX_SLICES
            && (mergeable || self.chains.is_empty())
            && waiting(queue, memory)? > 0
        {
            let Some(chain) = queue.iter(memory)?.next() else {
                return Err(virtio_queue::Error::InvalidAvailRingIndex);
            };
            let head = chain.head_index();
            if head >= queue.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex);
            }
            let before = self.slices.len();
            match collect(chain, memory, Direction::Writable, LARGEST, &mut self.slices) {
                // Each has room for a header (virtio 1.2, 5.1.6.3.1), which is never cut then.
                Ok(bytes) if bytes >= Header::BYTES => {
                    self.bytes += bytes;
                    self.chains.push_back(Chain {
                        head,
                        bytes,
                        slices: self.slices.len() - before,
                    });
                }
                unusable => {
                    debug!(error = ?unusable.err(), "a receive buffer takes no frame");
                    self.slices.truncate(before);
                    if self.chains.is_empty() {
                        queue.add_used(memory, head, 0)?;
                        self.given_back += 1;
                    } else {
                        queue.go_to_previous_position();
                        self.bad_next = true;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the guest offers all that it can, or all that we take, so that waiting brings no more.
    fn is_all(&self, queue: &Queue) -> bool {
        self.bad_next || self.slices.len() >= MAX_SLICES || self.chains.len() >= usize::from(queue.size())
    }

    /// Gives the guest the frame of `length` bytes that lies in the buffers, which are long enough.
    fn deliver(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        length: usize,
    ) -> Result<(), virtio_queue::Error> {
        let mut rest = length;
        let mut frame = Vec::with_capacity(1);
        while rest > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let bytes = chain.bytes.min(rest);
            rest -= bytes;
            frame.push((chain, bytes));
        }
        let slices = frame.iter().map(|(chain, _)| chain.slices).sum::<usize>();
        // At most the ring's 256.
        let count = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        write_at(&self.slices, NUM_BUFFERS, &count.to_le_bytes());
        self.slices.drain(..slices);
        self.bytes -= frame.iter().map(|(chain, _)| chain.bytes).sum::<usize>();
        // A driver that looks meanwhile must find all of the frame's buffers or none: the index may only
        // move once, so all elements but the last are written before it.
        let Some(((last, last_bytes), others)) = frame.split_last() else {
            return Ok(());
        };
        let first = queue.next_used();
        for (at, (chain, bytes)) in (first..=u16::MAX).chain(0..first).zip(others) {
            put_used(queue, memory, at, chain.head, *bytes)?;
        }
        queue.set_next_used(first.wrapping_add(count).wrapping_sub(1));
        queue.add_used(memory, last.head, u32::try_from(*last_bytes).unwrap_or(u32::MAX))
    }

    /// Puts what was not used back into the queue.
    fn put_back(self, queue: &mut Queue) {
        // At most the ring's 256.
        let count = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    }
}

/// Writes one element of the used ring (virtio 1.2, 2.7.8) without telling the driver.
fn put_used(
    queue: &Queue,
    memory: &Memory,
    index: u16,
    head: u16,
    bytes: usize,
) -> Result<(), virtio_queue::Error> {
    let slot = 4 + 8 * u64::from(index % queue.size());
    let address = queue
        .used_ring()
        .checked_add(slot)
        .ok_or(virtio_queue::Error::AddressOverflow)?;
    let length = u32::try_from(bytes).unwrap_or(u32::MAX);
    let element = u64::from(head) | u64::from(length) << 32;
    memory
        .write_obj(element.to_le(), GuestAddress(address))
        .map_err(virtio_queue::Error::GuestMemory)
}

/// Whether the driver wants to hear of what was used since the index was `before` (virtio 1.2, 2.7.10).
/// `Queue::needs_notification` counts one for each time the index moved, which is not enough here.
fn wants_interrupt(queue: &mut Queue, memory: &Memory, before: u16) -> Result<bool, virtio_queue::Error> {
    let whatever = queue.needs_notification(memory)?;
    if !queue.event_idx_enabled() {
        return Ok(whatever);
    }
    let address = queue
        .avail_ring()
        .checked_add(4 + 2 * u64::from(queue.size()))
        .ok_or(virtio_queue::Error::AddressOverflow)?;
    let event: u16 = memory
        .load(GuestAddress(address), std::sync::atomic::Ordering::Relaxed)
        .map_err(virtio_queue::Error::GuestMemory)?;
    let now = queue.next_used();
    Ok(now.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < now.wrapping_sub(before))
}

impl Net {
    /// Gives the guest what comes, up to [`BUDGET`] frames. Returns whether to interrupt it.
    pub(super) fn receive(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
    ) -> Result<bool, virtio_queue::Error> {
        let before = queue.next_used();
        if self.is_open() {
            // Ours for as long as buffers of the guest's are; it is made once, and untouched costs nothing.
            let mut spill = std::mem::take(&mut self.receive.spill);
            spill.resize(LARGEST + 1, 0);
            let outcome = self.fill(queue, memory, VolatileSlice::from(&mut spill[..]));
            self.receive.spill = spill;
            outcome?;
        } else {
            // Whether there are buffers is known when the time comes.
            self.receive.blocked = waiting(queue, memory)? == 0 && !has_more(queue, memory)?;
        }
        match queue.next_used() == before {
            true => Ok(false),
            false => wants_interrupt(queue, memory, before),
        }
    }

    /// Receives until there is nothing more, or no room for it, or it is enough for once.
    fn fill(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        spill: VolatileSlice<'_>,
    ) -> Result<(), virtio_queue::Error> {
        let mergeable = self.accepted.mergeable();
        let mut posted = Posted::default();
        self.receive.blocked = false;
        for _ in 0..BUDGET {
            let wanted = self.receive.parked.unwrap_or(LARGEST);
            posted.gather(queue, memory, wanted, mergeable)?;
            if posted.chains.is_empty() {
                self.receive.blocked = !has_more(queue, memory)?;
                if self.receive.blocked {
                    break;
                }
                continue;
            }
            let length = match self.receive.parked {
                Some(length) => length,
                None => match self.read(&mut posted, spill) {
                    Some(length) => length,
                    None => break,
                },
            };
            if length < Header::BYTES + ETHERNET_HEADER {
                count(&mut self.counters.received.malformed);
                continue;
            }
            match self.fit(&posted, queue, spill, length) {
                Fit::In => {
                    self.receive.parked = None;
                    count(&mut self.counters.received.frames);
                    add(&mut self.counters.received.bytes, length - Header::BYTES);
                    posted.deliver(queue, memory, length)?;
                }
                Fit::NotYet => {
                    self.receive.parked = Some(length);
                    // Asked for here, before the buffers go back: kicks are for what comes after the
                    // buffers that were seen.
                    self.receive.blocked = !has_more(queue, memory)?;
                    if self.receive.blocked {
                        break;
                    }
                }
                Fit::Never => {
                    self.receive.parked = None;
                    count(&mut self.counters.received.too_big);
                }
            }
        }
        posted.put_back(queue);
        Ok(())
    }

    /// Reads one frame into the buffers and, behind them, into `spill`, at the place it would have if
    /// all of it were there.
    fn read<'a>(&mut self, posted: &mut Posted<'a>, spill: VolatileSlice<'a>) -> Option<usize> {
        let backend = self.backend.as_mut()?;
        let behind = spill.offset(posted.bytes.min(LARGEST)).ok()?;
        posted.slices.push(behind);
        let outcome = backend.receive(&posted.slices);
        posted.slices.pop();
        let room = posted.bytes + behind.len();
        match outcome {
            Ok(length) => {
                self.receive.failures = 0;
                Some(length.min(room))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => {
                count(&mut self.counters.received.failed);
                self.receive.failures = self.receive.failures.saturating_add(1);
                debug!(%error, failures = self.receive.failures, "the host gave no frame");
                None
            }
        }
    }

    /// Sees to it that a frame that was read, or was parked before, lies in the buffers or is parked.
    fn fit(&self, posted: &Posted<'_>, queue: &Queue, spill: VolatileSlice<'_>, length: usize) -> Fit {
        let parked = self.receive.parked.is_some();
        let aside = |length: usize| {
            let mut bytes = vec![0; length];
            spill.copy_to(&mut bytes[..]);
            bytes
        };
        if length > LARGEST {
            return Fit::Never;
        }
        if length <= posted.bytes {
            if parked {
                write_at(&posted.slices, 0, &aside(length));
            }
            return Fit::In;
        }
        if !self.accepted.mergeable() || posted.is_all(queue) {
            return Fit::Never;
        }
        if !parked {
            // The front of it is in the guest's buffers, and its end in ours behind the place for that.
            let mut front = vec![0; posted.bytes];
            if !read_front(&posted.slices, &mut front) {
                return Fit::Never;
            }
            spill.copy_from(&front);
        }
        Fit::NotYet
    }
}

/// Asks for a kick when the guest offers more than was looked at. Says whether it did already.
fn has_more(queue: &mut Queue, memory: &Memory) -> Result<bool, virtio_queue::Error> {
    match queue.ready() {
        true => queue.enable_notification(memory),
        false => Ok(false),
    }
}
