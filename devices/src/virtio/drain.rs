//! Serving a queue until it is empty: the loop every device with a request queue has.

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{DeviceError, Memory};

/// Takes every available chain of `queue`, lets `serve` answer it, and puts it in the used ring with
/// the length `serve` returns (bytes written to the chain's writable part, virtio 1.2, 2.7.8.2).
///
/// Kicks are suppressed while the loop runs (virtio 1.2, 2.7.7); a chain added at the last moment is
/// still found. Returns whether the driver wants an interrupt for what was used.
///
/// # Errors
/// [`DeviceError`] for rings that are malformed or not in guest memory, or whatever `serve` returns.
pub fn drain<'m>(
    index: usize,
    queue: &mut Queue,
    memory: &'m Memory,
    mut serve: impl FnMut(DescriptorChain<&'m Memory>) -> Result<u32, DeviceError>,
) -> Result<bool, DeviceError> {
    let broken = |source| DeviceError::Queue { index, source };
    let mut used = false;
    let mut more = false;
    loop {
        queue.disable_notification(memory).map_err(broken)?;
        let mut progress = false;
        while let Some(chain) = queue.iter(memory).map_err(broken)?.next() {
            progress = true;
            let head = chain.head_index();
            if head >= queue.size() {
                // Not a chain, and there would be no way to answer it.
                return Err(broken(virtio_queue::Error::InvalidDescriptorIndex));
            }
            let written = serve(chain)?;
            queue.add_used(memory, head, written).map_err(broken)?;
            used = true;
        }
        if more && !progress {
            // The index promises a chain that the ring doesn't yield: the ring cannot be read, and
            // asking again would be asking for ever.
            return Err(broken(virtio_queue::Error::InvalidAvailRingIndex));
        }
        if !queue.enable_notification(memory).map_err(broken)? {
            break;
        }
        more = true;
    }
    Ok(used && queue.needs_notification(memory).map_err(broken)?)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::QueueState;

    #[test]
    fn a_ring_that_promises_a_chain_it_cannot_give_ends_the_loop() {
        let state = QueueState {
            max_size: 4,
            size: 4,
            ready: true,
            event_idx: false,
            descriptor_table: 0x4000,
            // The index is the last two bytes of its page, and the entries' page was unplugged.
            available_ring: 0x1ffc,
            used_ring: 0x5000,
            next_available: 0,
            next_used: 0,
        };
        let mut queue = Queue::try_from(state).unwrap();
        let memory =
            Memory::from_ranges(&[(GuestAddress(0x1000), 0x1000), (GuestAddress(0x4000), 0x2000)]).unwrap();
        memory.write_obj(1u16, GuestAddress(0x1ffe)).unwrap();
        let outcome = drain(0, &mut queue, &memory, |_| Ok(0));
        assert!(matches!(outcome, Err(DeviceError::Queue { index: 0, .. })));
    }
}
