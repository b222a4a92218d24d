//! The transport reset a restored copy owes its guest (virtio 1.2, 5.10.6.7).
//!
//! A copy of a VM has none of the host streams its guest believes to be connected. The device says
//! so with `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`; the driver then resets every connected socket
//! (Linux: `virtio_vsock_event_handle`), while listening sockets stay.
//!
//! It resets *every* connected socket, those accepted a moment ago too, and without a packet to
//! us: a connection request that the driver handles before the event gives a connection that is
//! dead in the guest and waits forever on the host. Putting the event on its queue first is not
//! enough, since the driver serves its queues from separate work items and the one for rx may be
//! running when the copy wakes. What is enough is the driver giving the event's buffer back, which
//! it does after handling it. Until then no request is delivered.
//!
//! Buffers come back in order, so one number says whether the last event was handled: the available
//! index the queue has when all buffers we used are back. It is part of the saved state, for a copy
//! may be copied before its guest handled the event.

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use crate::virtio::Memory;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` as the little-endian `id` of `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Where the transport reset stands.
#[derive(Debug, Default)]
pub(super) struct TransportReset {
    /// It is still to be put on the event queue.
    owed: bool,
    /// The available index at which the driver has given back every buffer we used.
    handled_at: Option<u16>,
}

impl TransportReset {
    /// The obligation of a copy whose original was saved with `handled_at`.
    pub(super) fn owed(handled_at: Option<u16>) -> Self {
        Self {
            owed: true,
            handled_at,
        }
    }

    /// Whether the event still has to be put on the queue; until then the guest gets no packet.
    pub(super) fn is_owed(&self) -> bool {
        self.owed
    }

    /// Whether the driver handled the event, or none was ever due: connections may be opened.
    pub(super) fn is_handled(&self) -> bool {
        !self.owed && self.handled_at.is_none()
    }

    /// What a copy made now has to know.
    pub(super) fn saved(&self) -> Option<u16> {
        self.handled_at
    }

    /// Puts the event on `queue` if it is owed and there is a buffer, and looks whether it was
    /// handled. Returns whether a buffer was used.
    pub(super) fn advance(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
    ) -> Result<bool, virtio_queue::Error> {
        if self.is_handled() || !queue.ready() {
            return Ok(false);
        }
        let available = queue.avail_idx(memory, Ordering::Acquire)?.0;
        if self
            .handled_at
            .is_some_and(|index| reached(available, index, queue.size()))
        {
            self.handled_at = None;
        }
        let mut used = false;
        for _ in 0..queue.size() {
            if !self.owed {
                break;
            }
            let Some(mut chain) = queue.iter(memory)?.next() else {
                break;
            };
            let written = chain.next().filter(|buffer| {
                buffer.is_write_only()
                    && usize::try_from(buffer.len()).is_ok_and(|len| len >= TRANSPORT_RESET.len())
                    && memory.write_slice(&TRANSPORT_RESET, buffer.addr()).is_ok()
            });
            // A buffer that cannot take it goes back empty, and the next one is tried.
            let len = if written.is_some() { 4 } else { 0 };
            queue.add_used(memory, chain.head_index(), len)?;
            used = true;
            self.owed = written.is_none();
            self.handled_at = Some(self.handled_at.unwrap_or(available).wrapping_add(1));
        }
        if !self.is_handled() {
            // The driver's next kick of this queue says that it gave buffers back.
            queue.enable_notification(memory)?;
        }
        Ok(used)
    }
}

/// Whether `available` has come to `index`. An index further ahead than the queue is long is
/// nonsense from a saved state, which must not keep the guest from its connections.
fn reached(available: u16, index: u16, queue_size: u16) -> bool {
    (Wrapping(index) - Wrapping(available)).0.wrapping_sub(1) >= queue_size
}
