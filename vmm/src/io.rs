//! The I/O thread: serves queue kicks and the host's ends of vsock connections.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use spore_devices::Interrupt;
use spore_devices::virtio::mmio::LostInterrupt;
use spore_devices::virtio::vsock::{ConnectionId, Readiness};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device_set::{DeviceSet, lock};
use crate::exit::{Ended, EndedSlot};
use crate::fork_port::ForkPort;
use crate::layout::Slot;
use crate::ram::Ram;

/// Epoll data of the stop event.
const STOP: u64 = 0;
/// Epoll data of the vsock listener.
const LISTENER: u64 = 1;
/// Epoll data of the fork port's event: the guest is awake.
const AWOKEN: u64 = 2;
/// Epoll data of the TAP device.
const TAP: u64 = 3;
/// Epoll data of kick `n` is `KICKS + n`.
const KICKS: u64 = 1 << 8;
/// Epoll data of vsock stream `id` is `STREAMS + id`.
const STREAMS: u64 = 1 << 32;

/// What the I/O thread works with; it survives a pause.
pub struct IoLoop {
    epoll: Epoll,
    stop: Arc<EventFd>,
    listener: Option<UnixListener>,
    streams: HashMap<ConnectionId, RawFd>,
    devices: Arc<DeviceSet>,
    ram: Arc<Ram>,
    port: Arc<ForkPort>,
    /// Whether the TAP device is waited for.
    watches_tap: bool,
}

/// What an epoll event is about.
enum Source {
    Stop,
    Listener,
    Awoken,
    Tap,
    Kick(usize),
    Stream(ConnectionId),
}

impl Source {
    fn of(data: u64) -> Self {
        match data {
            STOP => Self::Stop,
            LISTENER => Self::Listener,
            AWOKEN => Self::Awoken,
            TAP => Self::Tap,
            STREAMS.. => Self::Stream(ConnectionId::from_u64(data - STREAMS)),
            _ => Self::Kick(usize::try_from(data - KICKS).unwrap_or(usize::MAX)),
        }
    }
}

impl IoLoop {
    /// A loop over the devices' queues, and over connections made to `listener`.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new(
        devices: Arc<DeviceSet>,
        ram: Arc<Ram>,
        port: Arc<ForkPort>,
        listener: Option<UnixListener>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let stop = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let add =
            |fd: RawFd, data: u64| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data));
        add(stop.as_raw_fd(), STOP)?;
        add(port.awoken_event().as_raw_fd(), AWOKEN)?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            add(listener.as_raw_fd(), LISTENER)?;
        }
        for (number, kick) in (KICKS..).zip(devices.kicks()) {
            add(kick.event.as_raw_fd(), number)?;
        }
        Ok(Self {
            epoll,
            stop,
            listener,
            streams: HashMap::new(),
            devices,
            ram,
            port,
            watches_tap: false,
        })
    }

    /// Writing to it makes [`IoLoop::run`] return.
    pub fn stop_event(&self) -> Arc<EventFd> {
        self.stop.clone()
    }

    /// Serves until stopped; returns itself, to be run again after a pause.
    pub fn run(mut self, ended: &EndedSlot) -> Self {
        if let Err(error) = self.serve() {
            ended.set(Ended::Failed(format!("the I/O thread: {error}")));
        }
        self
    }

    fn serve(&mut self) -> Result<(), LostInterrupt> {
        // Kicks that came before the pause may have been counted and not served. A fork hears that its connections
        // are gone when it is awake: the interrupt for it would be the first thing that its kernel does. And what
        // it had to send is dropped then.
        let asleep = !self.port.is_awake();
        let slots = Slot::ALL
            .into_iter()
            .filter(|slot| !asleep || ![Slot::Vsock, Slot::Net].contains(slot));
        self.devices.kick_all(&slots.collect::<Vec<_>>(), &self.ram)?;
        let mut events = vec![EpollEvent::default(); 64];
        loop {
            let more = self.pump_vsock()? | self.pump_net()?;
            let count = match self.epoll.wait(if more { 0 } else { -1 }, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error.into()),
            };
            let mut stop = false;
            for event in &events[..count] {
                match Source::of(event.data()) {
                    Source::Stop => stop = true,
                    Source::Listener => self.accept(),
                    Source::Awoken => {
                        let _ = self.port.awoken_event().read();
                        lock(&self.devices.net).device_mut().unmute();
                        self.devices.kick_all(&[Slot::Vsock, Slot::Net], &self.ram)?;
                        // Its kernel too: programs that watch the generation id reseed.
                        self.devices.generation_line.trigger()?;
                    }
                    Source::Tap => {
                        lock(&self.devices.net).poll(&self.ram.view().memory(), |card, queues, memory| {
                            card.receive_ready(queues, memory)
                        })?;
                    }
                    Source::Kick(number) => {
                        if let Some(kick) = self.devices.kicks().get(number) {
                            self.devices.serve(kick, &self.ram)?;
                        }
                    }
                    Source::Stream(id) => {
                        let set = event.event_set();
                        let readiness = Readiness {
                            readable: set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
                            writable: set.contains(EventSet::OUT),
                            hung_up: set.intersects(EventSet::HANG_UP | EventSet::ERROR),
                        };
                        lock(&self.devices.vsock).device_mut().host_ready(id, readiness);
                    }
                }
            }
            if stop {
                let _ = self.stop.read();
                return Ok(());
            }
        }
    }

    /// Moves what can move and lets go of streams that are over. Says whether there is more to do.
    fn pump_vsock(&mut self) -> Result<bool, LostInterrupt> {
        if !self.port.is_awake() {
            return Ok(false);
        }
        let mut vsock = lock(&self.devices.vsock);
        vsock.poll(&self.ram.view().memory(), |device, queues, memory| {
            device.pump(queues, memory)
        })?;
        for closed in vsock.device_mut().take_closed() {
            if let Some(fd) = self.streams.remove(&closed.id)
                && let Err(error) = self
                    .epoll
                    .ctl(ControlOperation::Delete, fd, EpollEvent::default())
            {
                tracing::debug!(%error, "a closed stream was not in epoll");
            }
        }
        Ok(vsock.device().wants_pump())
    }

    /// Moves what frames can move, and waits for more or not, as the network card wants it. Says whether there is
    /// more to do.
    fn pump_net(&mut self) -> Result<bool, LostInterrupt> {
        if !self.port.is_awake() {
            return Ok(false);
        }
        let mut card = lock(&self.devices.net);
        if card.device().wants_pump() {
            card.poll(&self.ram.view().memory(), |card, queues, memory| {
                card.pump(queues, memory)
            })?;
        }
        // A device that no driver drives takes nothing off the wire.
        let wanted = card.is_active() && card.device().wants_frames();
        let more = card.is_active() && card.device().wants_pump();
        drop(card);
        if self.watches_tap != wanted
            && let Some(tap) = self.devices.tap()
        {
            // Not waited for with no event: that a TAP is gone is always told, and would be, over and over.
            let operation = match wanted {
                true => ControlOperation::Add,
                false => ControlOperation::Delete,
            };
            self.epoll
                .ctl(operation, tap.as_raw_fd(), EpollEvent::new(EventSet::IN, TAP))?;
            self.watches_tap = wanted;
        }
        Ok(more)
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors: the client sees a hang; the next event tries again.
                    tracing::warn!(%error, "a vsock client could not be accepted");
                    return;
                }
            };
            let fd = stream.as_raw_fd();
            if let Err(error) = stream.set_nonblocking(true) {
                tracing::warn!(%error, "a vsock client could not be made non-blocking");
                continue;
            }
            match lock(&self.devices.vsock)
                .device_mut()
                .add_stream(Box::new(stream))
            {
                Ok(id) => {
                    let events =
                        EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
                    self.streams.insert(id, fd);
                    let event = EpollEvent::new(events, STREAMS + id.as_u64());
                    if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
                        tracing::warn!(%error, "a vsock client could not be watched");
                    }
                }
                Err(error) => tracing::warn!(%error, "a vsock client was turned away"),
            }
        }
    }
}
