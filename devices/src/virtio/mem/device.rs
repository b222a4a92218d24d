//! The device itself: requests against the record of plugged blocks.

use std::io::{Read, Write};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{BlockRange, MemBackend, MemConfig, MemState, PluggedBlocks, RangeState, Request, Response};
use super::{RequestError, RestoreError};
use crate::virtio::{ActivateError, DeviceError, DeviceType, Memory, VirtioDevice};

/// Unplugged memory must not be accessed (virtio 1.2, 5.15.3).
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;

/// The guest-request queue, the only one.
const REQUEST_QUEUE: usize = 0;

/// Linux has one request in flight; more descriptors would only be memory.
const QUEUE_MAX_SIZES: [u16; 1] = [64];

/// Size of the configuration space in bytes.
const CONFIG_SIZE: usize = 56;

/// A requested size that the region cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number of blocks.
    #[error("{bytes} bytes are not a multiple of the block size of {block_size} bytes")]
    NotWholeBlocks {
        /// The size asked for.
        bytes: u64,
        /// The block size in bytes.
        block_size: u64,
    },
    /// Larger than the region.
    #[error("{bytes} bytes are more than the {region_size} bytes the device can hold")]
    TooLarge {
        /// The size asked for.
        bytes: u64,
        /// The size of the region in bytes.
        region_size: u64,
    },
}

/// Called with the new plugged size in bytes.
type PluggedHook = Box<dyn FnMut(u64) + Send>;

/// The memory device.
pub struct Mem<B> {
    config: MemConfig,
    backend: B,
    plugged: PluggedBlocks,
    /// Requested size in blocks.
    requested: u32,
    on_plugged: Option<PluggedHook>,
}

impl<B: MemBackend> Mem<B> {
    /// A device over `config` with nothing plugged and nothing requested.
    pub fn new(config: MemConfig, backend: B) -> Self {
        let plugged = PluggedBlocks::none(config.blocks());
        Self {
            config,
            backend,
            plugged,
            requested: 0,
            on_plugged: None,
        }
    }

    /// The device that `state` was saved from. `backend` already holds what is plugged in it
    /// ([`MemState::plugged_ranges`]): nothing is plugged here.
    ///
    /// # Errors
    /// [`RestoreError`] if `state` is not a state of a device over `config`.
    pub fn restore(config: MemConfig, state: &MemState, backend: B) -> Result<Self, RestoreError> {
        let checked = state.check(&config)?;
        let (plugged, requested) = (checked.plugged, checked.requested);
        Ok(Self {
            config,
            backend,
            plugged,
            requested,
            on_plugged: None,
        })
    }

    /// What [`restore`](Self::restore) needs.
    pub fn save(&self) -> MemState {
        MemState {
            addr: self.config.addr().0,
            region_size: self.config.region_size(),
            block_size: self.config.block_size(),
            requested_size: self.requested_size(),
            plugged_size: self.plugged_size(),
            plugged: self.plugged.words().to_vec(),
        }
    }

    /// Asks the guest to come to `bytes` of plugged memory.
    ///
    /// The caller then has the transport raise a configuration interrupt, even when the size is the
    /// old one: it also ends the wait of 50 to 300 s of a driver that was told "busy" or found its
    /// memory in use.
    ///
    /// # Errors
    /// [`SizeError`] if that is no whole number of blocks or more than the region.
    pub fn set_requested_size(&mut self, bytes: u64) -> Result<(), SizeError> {
        let (block_size, region_size) = (self.config.block_size(), self.config.region_size());
        self.requested = match self.config.whole_blocks(bytes) {
            Some(blocks) => blocks,
            None if bytes > region_size => return Err(SizeError::TooLarge { bytes, region_size }),
            None => return Err(SizeError::NotWholeBlocks { bytes, block_size }),
        };
        Ok(())
    }

    /// What the host asks for, in bytes.
    pub fn requested_size(&self) -> u64 {
        self.config.bytes(self.requested)
    }

    /// What is plugged, in bytes. It says what the guest was given, not that its kernel uses it.
    pub fn plugged_size(&self) -> u64 {
        self.config.bytes(self.plugged.count())
    }

    /// The maximal runs of plugged blocks, in order.
    pub fn plugged_ranges(&self) -> impl Iterator<Item = BlockRange> {
        self.plugged.runs()
    }

    /// The region.
    pub fn config(&self) -> &MemConfig {
        &self.config
    }

    /// The host memory behind the blocks.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The host memory behind the blocks, to change what the guest does not see of it.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Has `hook` called with the plugged size in bytes whenever a request has changed it, before
    /// the driver learns of it. It runs inside the device, under its transport's lock: wake a
    /// waiter and return.
    pub fn on_plugged(&mut self, hook: impl FnMut(u64) + Send + 'static) {
        self.on_plugged = Some(Box::new(hook));
    }

    fn answer(&mut self, request: Result<Request, RequestError>) -> Response {
        let before = self.plugged_size();
        let response = self.act(request);
        let after = self.plugged_size();
        if let Some(hook) = &mut self.on_plugged
            && after != before
        {
            hook(after);
        }
        response
    }

    fn act(&mut self, request: Result<Request, RequestError>) -> Response {
        match request {
            Ok(Request::Plug(range)) => self.plug(range),
            Ok(Request::Unplug(range)) => self.unplug(range),
            Ok(Request::UnplugAll) => self.unplug_all(),
            Ok(Request::State(range)) => Response::State(self.plugged.state(range)),
            Err(error) => {
                tracing::debug!(%error, "virtio-mem: request refused");
                Response::Error
            }
        }
    }

    /// "Already plugged" is checked before "more than requested", since the specification has the
    /// device answer the former with ERROR in any case.
    fn plug(&mut self, range: BlockRange) -> Response {
        if self.plugged.state(range) != RangeState::Unplugged {
            return Response::Error;
        }
        if self.plugged.count().saturating_add(range.count()) > self.requested {
            return Response::Nack;
        }
        if let Err(error) = self.backend.plug(range) {
            tracing::warn!(%error, ?range, "virtio-mem: no host memory to plug");
            return Response::Busy;
        }
        self.plugged.set(range, true);
        Response::Ack
    }

    /// A failure of the host is answered with BUSY, not with ERROR: after an ERROR Linux marks the
    /// device broken for good, after a BUSY it puts the pages back into use and tries again later.
    fn unplug(&mut self, range: BlockRange) -> Response {
        if self.plugged.state(range) != RangeState::Plugged {
            return Response::Error;
        }
        self.drop_range(range)
    }

    /// BUSY here too when the host fails, having unplugged what it could: the driver sends this
    /// only while it uses none of the memory, and repeats it until it is acknowledged.
    fn unplug_all(&mut self) -> Response {
        let runs: Vec<_> = self.plugged.runs().collect();
        let answers = runs.into_iter().map(|range| self.drop_range(range));
        answers.fold(
            Response::Ack,
            |all, one| if one == Response::Ack { all } else { one },
        )
    }

    fn drop_range(&mut self, range: BlockRange) -> Response {
        if let Err(error) = self.backend.unplug(range) {
            tracing::warn!(%error, ?range, "virtio-mem: cannot give memory back to the host");
            return Response::Busy;
        }
        self.plugged.set(range, false);
        Response::Ack
    }

    /// Answers one request. Nothing is done for a driver that left no room for the answer.
    fn serve(
        &mut self,
        chain: DescriptorChain<&Memory>,
        memory: &Memory,
    ) -> Result<u32, virtio_queue::Error> {
        let mut reader = chain.clone().reader(memory)?;
        let mut writer = chain.writer(memory)?;
        if writer.available_bytes() < Response::SIZE {
            return Err(virtio_queue::Error::InvalidChain);
        }
        let mut bytes = [0; Request::SIZE];
        let len = reader.available_bytes().min(Request::SIZE);
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        reader
            .read_exact(bytes)
            .map_err(|_| virtio_queue::Error::InvalidChain)?;

        let response = self.answer(Request::parse(bytes, &self.config)).to_bytes();
        writer
            .write_all(&response)
            .map_err(|_| virtio_queue::Error::InvalidChain)?;
        u32::try_from(response.len()).map_err(|_| virtio_queue::Error::InvalidChain)
    }

    /// `struct virtio_mem_config` (virtio 1.2, 5.15.4).
    fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let node_id = 0; // means nothing without VIRTIO_MEM_F_ACPI_PXM
        let region_size = self.config.region_size();
        let words = [
            self.config.block_size(),
            node_id,
            self.config.addr().0,
            region_size,
            region_size, // usable_region_size: see the folder's documentation
            self.plugged_size(),
            self.requested_size(),
        ];
        let mut bytes = [0; CONFIG_SIZE];
        for (field, word) in bytes.chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl<B: MemBackend> VirtioDevice for Mem<B> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Mem
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.config_space();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..))
            .unwrap_or_default();
        let mut from = from.iter().copied();
        data.fill_with(|| from.next().unwrap_or(0));
    }

    fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        if features & self.features() == 0 {
            return Err(ActivateError::FeatureRequired(
                VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
            ));
        }
        Ok(())
    }

    /// Nothing: blocks stay as they are over a device reset.
    fn reset(&mut self) {}

    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        let queue = match queues {
            [queue, ..] if index == REQUEST_QUEUE => queue,
            _ => return Err(DeviceError::NoSuchQueue(index)),
        };
        let broken = |source| DeviceError::Queue { index, source };
        let mut used = false;
        while let Some(chain) = queue.iter(memory).map_err(broken)?.next() {
            let head = chain.head_index();
            let written = self.serve(chain, memory).map_err(broken)?;
            queue.add_used(memory, head, written).map_err(broken)?;
            used = true;
        }
        Ok(used && queue.needs_notification(memory).map_err(broken)?)
    }
}
