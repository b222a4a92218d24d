//! The entropy device (virtio 1.2, 5.4): fills the driver's buffers with what its source gives.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use tracing::warn;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Queue, Writer};

use super::drain::drain;
use super::{DeviceError, DeviceType, Memory, VirtioDevice};

/// Most bytes one request is given; a longer buffer is filled in part, which the protocol allows.
pub const MAX_REQUEST: usize = 64 << 10;

/// Descriptors of the request queue.
const QUEUE_SIZE: u16 = 64;

/// Where entropy comes from: fills the whole slice or fails. In the VMM, `getrandom(2)`.
///
/// A source must give every fork different bytes, so it may hold no generator state that a fork of
/// the process would copy.
pub type EntropySource = Box<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>;

/// An entropy device at rest: it remembers nothing, and no entropy may be in a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

/// A virtio entropy device with its one request queue.
///
/// Linux keeps a request outstanding and the answer of the last one in the driver, so bytes handed
/// out before a checkpoint may still be waiting there, the same in all its forks. What makes forks
/// differ is the identity repair on waking, not this device.
pub struct Rng {
    source: EntropySource,
    failures: u64,
}

impl Rng {
    /// A device over `source`.
    pub fn new(source: EntropySource) -> Self {
        Self { source, failures: 0 }
    }

    /// The device of a checkpoint, over a source of this process.
    pub fn restore(RngState {}: RngState, source: EntropySource) -> Self {
        Self::new(source)
    }

    /// The device at rest.
    pub fn save(&self) -> RngState {
        RngState {}
    }

    /// Fills one request; returns how many bytes it was given.
    fn serve(&mut self, chain: DescriptorChain<&Memory>, memory: &Memory) -> u32 {
        // A buffer in memory that isn't there is the driver's mistake and gets nothing.
        let Ok(mut buffers) = Writer::<()>::new(memory, chain) else {
            return 0;
        };
        let mut bytes = vec![0; buffers.available_bytes().min(MAX_REQUEST)];
        if let Err(error) = (self.source)(&mut bytes) {
            // Drivers ask again when they are given nothing; predictable bytes would be worse.
            self.failures = self.failures.saturating_add(1);
            if self.failures.is_power_of_two() {
                warn!(%error, failures = self.failures, "no entropy for the guest");
            }
            return 0;
        }
        match buffers.write_all(&bytes) {
            Ok(()) => u32::try_from(bytes.len()).unwrap_or(0),
            Err(_) => 0,
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Rng
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// There is no configuration space (virtio 1.2, 5.4.4).
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn reset(&mut self) {}

    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        let queue = queues.get_mut(index).ok_or(DeviceError::NoSuchQueue(index))?;
        drain(index, queue, memory, |chain| Ok(self.serve(chain, memory)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Buffer, Driver, Raw, WRITE};

    /// A source of 1, 2, 3, ... so that a test can tell which bytes came from where.
    fn counting() -> EntropySource {
        let mut next = 0u8;
        Box::new(move |bytes| {
            for byte in bytes {
                next = next.wrapping_add(1);
                *byte = next;
            }
            Ok(())
        })
    }

    #[test]
    fn a_request_is_filled_over_all_its_buffers() {
        let mut driver = Driver::live(Rng::new(counting()));
        let chain = driver.offer(0, &[Buffer::In(3), Buffer::In(5)]);
        driver.kick(0);
        assert_eq!(driver.used(0), Some((chain.head, 8)));
        assert_eq!(driver.written(&chain), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(driver.interrupt.count(), 1);
    }

    #[test]
    fn a_long_buffer_is_filled_in_part() {
        let mut driver = Driver::live(Rng::new(counting()));
        let chain = driver.offer(0, &[Buffer::In(MAX_REQUEST + 100)]);
        driver.kick(0);
        assert_eq!(driver.used(0), Some((chain.head, 65536)));
        assert_eq!(driver.written(&chain)[MAX_REQUEST..], [0xee; 100]);
    }

    #[test]
    fn without_entropy_the_guest_gets_nothing_rather_than_something_predictable() {
        let mut driver = Driver::live(Rng::new(Box::new(|_| Err(io::Error::from(io::ErrorKind::Other)))));
        let chain = driver.offer(0, &[Buffer::In(8)]);
        driver.kick(0);
        assert_eq!(driver.used(0), Some((chain.head, 0)));
        assert_eq!(driver.written(&chain), [0xee; 8]);
    }

    #[test]
    fn senseless_buffers_get_nothing_and_break_nothing() {
        let mut driver = Driver::live(Rng::new(counting()));
        let raw = |address, length, flags| Raw {
            address,
            length,
            flags,
            next: 0,
        };
        for chain in [
            raw(0, 0, WRITE),
            raw(0x100_0000, 16, 0),
            raw(u64::MAX - 1, 16, WRITE),
        ] {
            let head = driver.offer_raw(0, &[chain]);
            driver.kick(0);
            assert_eq!(driver.used(0), Some((head, 0)));
        }
        assert_eq!(driver.get(0x70), 15);
    }

    #[test]
    fn a_restored_device_takes_its_bytes_from_the_new_source() {
        let mut driver = Driver::live(Rng::new(counting()));
        let chain = driver.offer(0, &[Buffer::In(2)]);
        let state = driver.transport.save();
        let rng = Rng::restore(
            driver.transport.device().save(),
            Box::new(|bytes| {
                bytes.fill(0x42);
                Ok(())
            }),
        );
        driver.restore(rng, state).unwrap();
        driver.transport.kick_all(&driver.memory).unwrap();
        assert_eq!(driver.written(&chain), [0x42; 2]);
    }
}
