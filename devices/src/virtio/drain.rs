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
