//! The transport at rest, and everything a restored one is checked for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::line::{self, InterruptLine};
use super::status::{self, Status};
use super::transport::{EVENT_IDX, MmioTransport, VERSION_1, offered_features};
use crate::Interrupt;
use crate::virtio::queue_state::{QueueState, RingError, check_instant};
use crate::virtio::{Memory, VirtioDevice};

/// A transport as a checkpoint holds it: the registers, and the queues' positions. Untrusted until
/// [`MmioTransport::restore`] took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Virtio device id (virtio 1.2, 5): a state belongs to one type of device.
    pub device_type: u32,
    /// Status.
    pub status: u32,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// What the driver wrote to DriverFeatures so far.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_sel: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, as many as the device has.
    pub queues: Vec<QueueState>,
}

/// Why a saved transport was refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state is another device's.
    #[error("the state is of virtio device type {saved}, the device is of type {expected}")]
    DeviceType {
        /// In the state.
        saved: u32,
        /// The device's.
        expected: u32,
    },
    /// No sequence of events leads to this status.
    #[error("device status {0:#x} cannot be")]
    Status(u32),
    /// Unknown bits in InterruptStatus.
    #[error("interrupt status {0:#x} cannot be")]
    InterruptStatus(u32),
    /// The driver holds features this device doesn't offer.
    #[error("the driver accepted features {0:#x}, which this device does not offer")]
    FeaturesNotOffered(u64),
    /// Features were agreed on without VIRTIO_F_VERSION_1.
    #[error("the features agreed on lack VIRTIO_F_VERSION_1")]
    NotModern,
    /// Another number of queues.
    #[error("the state has {saved} queues, the device has {expected}")]
    QueueCount {
        /// In the state.
        saved: usize,
        /// The device's.
        expected: usize,
    },
    /// Another maximum size.
    #[error("queue {index}: the state has maximum size {saved}, the device {expected}")]
    QueueMaxSize {
        /// Which queue.
        index: usize,
        /// In the state.
        saved: u16,
        /// The device's.
        expected: u16,
    },
    /// A size or an alignment breaks the specification.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which queue.
        index: usize,
        /// What virtio-queue found.
        source: virtio_queue::Error,
    },
    /// The queue is ready although features aren't agreed on.
    #[error("queue {index} is ready before the features are agreed on")]
    QueueTooEarly {
        /// Which queue.
        index: usize,
    },
    /// The queue and the features disagree on VIRTIO_F_EVENT_IDX.
    #[error("queue {index} and the features disagree on VIRTIO_F_EVENT_IDX")]
    EventIdx {
        /// Which queue.
        index: usize,
    },
    /// More descriptor chains are with the device than the queue has descriptors.
    #[error("queue {index}: {held} chains are with the device, the queue's size is {size}")]
    QueueIndexes {
        /// Which queue.
        index: usize,
        /// Chains taken and not yet used.
        held: u16,
        /// Queue size in descriptors.
        size: u16,
    },
    /// The rings and the restored memory don't fit.
    #[error("queue {index}: {source}")]
    Ring {
        /// Which queue.
        index: usize,
        /// What doesn't fit.
        source: RingError,
    },
}

pub(super) fn save<D: VirtioDevice>(transport: &MmioTransport<D>) -> TransportState {
    TransportState {
        device_type: transport.device.device_type() as u32,
        status: transport.status.bits(),
        device_features_sel: transport.device_features_sel,
        driver_features_sel: transport.driver_features_sel,
        driver_features: transport.driver_features,
        queue_sel: transport.queue_sel,
        interrupt_status: transport.line.status(),
        config_generation: transport.config_generation,
        queues: transport.queues.iter().map(QueueState::from).collect(),
    }
}

pub(super) fn restore<D: VirtioDevice>(
    device: D,
    state: TransportState,
    interrupt: Arc<dyn Interrupt>,
    memory: &Memory,
) -> Result<MmioTransport<D>, RestoreError> {
    let expected = device.device_type() as u32;
    if state.device_type != expected {
        return Err(RestoreError::DeviceType {
            saved: state.device_type,
            expected,
        });
    }
    let status = Status::from_saved(state.status).ok_or(RestoreError::Status(state.status))?;
    if state.interrupt_status & !line::ALL != 0 {
        return Err(RestoreError::InterruptStatus(state.interrupt_status));
    }
    // Before FEATURES_OK the register holds whatever the driver wrote; it is judged then.
    let agreed = status.has(status::FEATURES_OK);
    if agreed {
        match state.driver_features & !offered_features(&device) {
            0 if state.driver_features & VERSION_1 == 0 => return Err(RestoreError::NotModern),
            0 => {}
            unknown => return Err(RestoreError::FeaturesNotOffered(unknown)),
        }
    }
    let event_idx = agreed && state.driver_features & EVENT_IDX != 0;
    let sizes = device.queue_max_sizes();
    if state.queues.len() != sizes.len() {
        return Err(RestoreError::QueueCount {
            saved: state.queues.len(),
            expected: sizes.len(),
        });
    }
    let mut queues = Vec::with_capacity(sizes.len());
    for (index, (&saved, &max_size)) in state.queues.iter().zip(sizes).enumerate() {
        if saved.ready && !agreed {
            return Err(RestoreError::QueueTooEarly { index });
        }
        if saved.event_idx != event_idx {
            return Err(RestoreError::EventIdx { index });
        }
        queues.push(restore_queue(index, saved, max_size, memory)?);
    }
    Ok(MmioTransport {
        device,
        line: Arc::new(InterruptLine::new(interrupt, state.interrupt_status)),
        status,
        device_features_sel: state.device_features_sel,
        driver_features_sel: state.driver_features_sel,
        driver_features: state.driver_features,
        queue_sel: state.queue_sel,
        queues,
        config_generation: state.config_generation,
        complaints: 0,
    })
}

fn restore_queue(
    index: usize,
    saved: QueueState,
    max_size: u16,
    memory: &Memory,
) -> Result<Queue, RestoreError> {
    if saved.max_size != max_size {
        return Err(RestoreError::QueueMaxSize {
            index,
            saved: saved.max_size,
            expected: max_size,
        });
    }
    let queue = Queue::try_from(saved).map_err(|source| RestoreError::Queue { index, source })?;
    let held = saved.next_available.wrapping_sub(saved.next_used);
    if held > queue.size() {
        return Err(RestoreError::QueueIndexes {
            index,
            held,
            size: queue.size(),
        });
    }
    if queue.ready() {
        check_instant(&queue, memory).map_err(|source| RestoreError::Ring { index, source })?;
    }
    Ok(queue)
}
