//! The device model: its link, its muting, and what the VMM calls.

use std::{fmt, io};

use virtio_queue::{Queue, QueueT};

use super::backend::NetBackend;
use super::config::{Accepted, NetConfig, OFFERED, config_space};
use super::counters::Counters;
use super::receive::Receive;
use super::state::{NetState, RestoreError};
use super::transmit::Transmit;
use super::{QUEUE_SIZE, RX, TX};
use crate::virtio::block::config::read_space;
use crate::virtio::{ActivateError, DeviceError, DeviceType, Memory, VirtioDevice};

/// A virtio network card (virtio 1.2, 5.1). See the [module](super) for what it is.
///
/// Its **link** is up while it has a backend. Without one, what the guest sends is taken and dropped.
///
/// A restored card is **muted**: what its guest had queued, and what it sends until [`Net::unmute`], is
/// taken and dropped, and nothing is received. A fork never sends in the name of another.
///
/// The VMM's I/O thread watches the backend's descriptor, level triggered, but only while
/// [`Net::wants_frames`] says so of an active device, which it asks after each round:
///
/// - the descriptor is readable: [`Net::receive_ready`], through the transport's `poll`;
/// - a kick: the transport's `notify_queue`, as for any device;
/// - [`Net::wants_pump`] is true after a round: [`Net::pump`], through `poll`, in the next one;
/// - [`Net::take_link_change`] is true after the backend was changed, or after a restore: the
///   transport's `config_changed`.
pub struct Net {
    pub(super) backend: Option<Box<dyn NetBackend>>,
    pub(super) config: NetConfig,
    pub(super) accepted: Accepted,
    pub(super) muted: bool,
    pub(super) counters: Counters,
    pub(super) transmit: Transmit,
    pub(super) receive: Receive,
    /// The link as the driver was told.
    announced: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("config", &self.config)
            .field("connected", &self.is_connected())
            .field("muted", &self.muted)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// A card that is connected to `backend`, if there is one, and not muted.
    pub fn new(config: NetConfig, backend: Option<Box<dyn NetBackend>>) -> Self {
        Self {
            announced: backend.is_some(),
            backend,
            config,
            accepted: Accepted::default(),
            muted: false,
            counters: Counters::default(),
            transmit: Transmit::default(),
            receive: Receive::new(),
        }
    }

    /// The card of a checkpoint, muted. It may be another on its link than the one that was saved
    /// ([`NetState::config`] says what that was), and connected to something else or to nothing.
    ///
    /// # Errors
    /// [`RestoreError`]: the state cannot be one of this device, or the backend can't serve its guest.
    pub fn restore(
        state: &NetState,
        config: NetConfig,
        backend: Option<Box<dyn NetBackend>>,
    ) -> Result<Self, RestoreError> {
        state.config()?;
        state.check_features()?;
        let mut net = Self::new(config, None);
        net.accepted = Accepted::of(state.features);
        net.muted = true;
        net.announced = state.link_up;
        net.set_backend(backend)?;
        Ok(net)
    }

    /// The card at rest.
    pub fn save(&self) -> NetState {
        NetState {
            mac: self.config.mac.bytes(),
            mtu: self.config.mtu.bytes(),
            only_mac: self.config.only_mac.map(super::Mac::bytes),
            features: self.accepted.bits(),
            link_up: self.announced,
        }
    }

    /// What it is on its link.
    pub fn config(&self) -> NetConfig {
        self.config
    }

    /// Makes it something else on its link. A driver that has read its configuration space does not look again.
    pub fn set_config(&mut self, config: NetConfig) {
        self.config = config;
    }

    /// Connects it to something else, or to nothing, and returns what it was connected to. If
    /// [`Net::take_link_change`] says so, a configuration interrupt is due.
    ///
    /// # Errors
    /// The new backend cannot serve the driver; the card stays as it was.
    pub fn set_backend(
        &mut self,
        mut backend: Option<Box<dyn NetBackend>>,
    ) -> io::Result<Option<Box<dyn NetBackend>>> {
        if let Some(backend) = &mut backend {
            backend.set_offloads(self.accepted.receiving())?;
        }
        self.receive.forget();
        Ok(std::mem::replace(&mut self.backend, backend))
    }

    /// Whether its link is up.
    pub fn is_connected(&self) -> bool {
        self.backend.is_some()
    }

    /// Whether the driver has not been told how the link is now. Asking is taken for telling: the
    /// caller calls the transport's `config_changed` if so.
    #[must_use]
    pub fn take_link_change(&mut self) -> bool {
        let now = self.is_connected();
        std::mem::replace(&mut self.announced, now) != now
    }

    /// Whether it drops everything, see [`Net`].
    pub fn is_muted(&self) -> bool {
        self.muted
    }

    /// Opens a muted card. What the guest has queued at the next call of [`Net::pump`], which is due at
    /// once, is still dropped.
    pub fn unmute(&mut self) {
        self.transmit.opening |= self.muted;
        self.muted = false;
    }

    /// What went through, and what did not.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether frames can be received: there is a backend that works, and the card is not muted.
    pub(super) fn is_open(&self) -> bool {
        self.is_connected() && !self.muted && !self.receive.gave_up()
    }

    /// Whether the backend is to be watched: there is one that works, the card is not muted, and the
    /// guest has buffers. If not, a kick (or a change that the VMM makes) changes it.
    pub fn wants_frames(&self) -> bool {
        self.is_open() && !self.receive.blocked
    }

    /// Whether the last call left frames in the transmit queue because it had taken enough for once.
    /// [`Net::pump`] is due soon, after other duties: there will be no kick for them.
    pub fn wants_pump(&self) -> bool {
        self.transmit.more
    }

    /// The backend is readable: gives the guest what came. Returns whether to interrupt it.
    ///
    /// If that stopped because the guest has no buffers, [`Net::wants_frames`] is false afterwards.
    ///
    /// # Errors
    /// [`DeviceError`] if the driver broke a queue.
    pub fn receive_ready(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool, DeviceError> {
        let outcome = match queues.get_mut(RX) {
            Some(queue) => self.receive(queue, memory).map_err(DeviceError::on(RX)),
            None => Err(DeviceError::NoSuchQueue(RX)),
        };
        // A device that needs a reset wants nothing more.
        self.receive.blocked |= outcome.is_err();
        outcome
    }

    /// Takes what the guest has queued. Returns whether to interrupt it.
    fn transmit_ready(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool, DeviceError> {
        let queue = queues.get_mut(TX).ok_or(DeviceError::NoSuchQueue(TX))?;
        let used = self.transmit(queue, memory).map_err(DeviceError::on(TX))?;
        Ok(used && queue.needs_notification(memory).map_err(DeviceError::on(TX))?)
    }

    /// Moves what can move, both ways. Returns whether to interrupt the guest.
    ///
    /// # Errors
    /// [`DeviceError`] if the driver broke a queue.
    pub fn pump(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool, DeviceError> {
        let sent = self.transmit_ready(queues, memory)?;
        Ok(self.receive_ready(queues, memory)? | sent)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&config_space(&self.config, self.is_connected()), offset, data);
    }

    fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        self.accepted = Accepted::of(features);
        // Its queues are new: nothing in them is from before.
        self.transmit = Transmit::default();
        if let Some(backend) = &mut self.backend {
            backend
                .set_offloads(self.accepted.receiving())
                .map_err(|error| ActivateError::Refused(format!("offloads: {error}")))?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.accepted = Accepted::default();
        self.transmit = Transmit::default();
        self.receive.reset();
        // A driver that starts over reads it.
        self.announced = self.is_connected();
    }

    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        match index {
            RX => self.receive_ready(queues, memory),
            TX => self.transmit_ready(queues, memory),
            _ => Err(DeviceError::NoSuchQueue(index)),
        }
    }
}
