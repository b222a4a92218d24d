//! The network card driven through its transport and its queues, with a wire in memory.

mod hostile;
mod lifecycle;
mod receiving;
mod sending;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::VolatileSlice;

use super::*;
use crate::virtio::testing::{Buffer, Chain, Driver};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The host's end.
#[derive(Default)]
struct Host {
    /// What the guest sent, headers and all.
    sent: Vec<Vec<u8>>,
    /// What is to come to the guest, headers and all.
    incoming: VecDeque<Vec<u8>>,
    /// Both fail.
    broken: bool,
    /// How often a frame was asked for.
    reads: usize,
    offloads: Option<Offloads>,
}

#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Host>>);

impl Wire {
    fn with<T>(&self, look: impl FnOnce(&mut Host) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        self.with(|host| std::mem::take(&mut host.sent))
    }

    fn deliver(&self, frame: &[u8]) {
        self.with(|host| host.incoming.push_back([&[0; 12], frame].concat()));
    }

    fn end(&self) -> Option<Box<dyn NetBackend>> {
        Some(Box::new(self.clone()))
    }
}

impl NetBackend for Wire {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        assert!(frame.len() <= 200 && frame.iter().all(|slice| !slice.is_empty()));
        self.with(|host| {
            if host.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let mut bytes = Vec::new();
            for slice in frame {
                let mut part = vec![0; slice.len()];
                slice.copy_to(&mut part[..]);
                bytes.extend(part);
            }
            host.sent.push(bytes);
            Ok(())
        })
    }

    /// As a TAP does: what does not fit is gone.
    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        assert!(room.len() <= 700);
        self.with(|host| {
            host.reads += 1;
            if host.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let frame = host.incoming.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            let mut rest = &frame[..];
            for slice in room {
                let (now, later) = rest.split_at(rest.len().min(slice.len()));
                slice.copy_from(now);
                rest = later;
            }
            Ok(frame.len() - rest.len())
        })
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.with(|host| match host.broken {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => {
                host.offloads = Some(offloads);
                Ok(())
            }
        })
    }
}

fn config() -> NetConfig {
    NetConfig {
        mac: Mac::try_from(MAC).unwrap(),
        mtu: Mtu::ETHERNET,
        only_mac: None,
    }
}

/// A frame of `length` bytes from `source`.
fn frame(source: [u8; 6], length: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6], &source[..], &[8, 0]].concat();
    frame.extend((frame.len()..length).map(|at| u8::try_from(at % 251).unwrap()));
    frame
}

/// A frame as the guest's driver puts it into the queue: with a plain header.
fn packet(frame: &[u8]) -> Vec<u8> {
    [&[0; 12], frame].concat()
}

/// A live card on a wire.
fn connected() -> (Driver<Net>, Wire) {
    let wire = Wire::default();
    (Driver::live(Net::new(config(), wire.end())), wire)
}

impl Driver<Net> {
    fn send(&mut self, packet: &[u8]) -> Chain {
        let chain = self.offer(TX, &[Buffer::Out(packet)]);
        self.kick(TX);
        chain
    }

    /// The backend is readable.
    fn readable(&mut self) {
        let memory = self.memory.clone();
        self.transport
            .poll(&memory, |net, queues, memory| net.receive_ready(queues, memory))
            .unwrap();
    }

    fn pump(&mut self) {
        let memory = self.memory.clone();
        self.transport
            .poll(&memory, |net, queues, memory| net.pump(queues, memory))
            .unwrap();
    }

    fn counters(&self) -> Counters {
        self.transport.device().counters()
    }

    fn wants_frames(&self) -> bool {
        self.transport.device().wants_frames()
    }

    /// How many chains of a queue were given back, and with how many bytes each.
    fn all_used(&mut self, index: usize) -> Vec<u32> {
        std::iter::from_fn(|| self.used(index))
            .map(|(_, length)| length)
            .collect()
    }

    /// The next frame the guest finds, put together from `posted` as a driver with MRG_RXBUF does.
    fn received(&mut self, posted: &[Chain]) -> Option<Vec<u8>> {
        let (head, length) = self.used(RX)?;
        let bytes = |driver: &Self, head: u16, length: u32| {
            let chain = posted
                .iter()
                .rfind(|chain| chain.head == head)
                .expect("a chain of ours");
            driver.written(chain)[..length as usize].to_vec()
        };
        let mut frame = bytes(self, head, length);
        let parts = u16::from_le_bytes([frame[10], frame[11]]);
        for _ in 1..parts {
            let (head, length) = self.used(RX).expect("all parts at once");
            frame.extend(bytes(self, head, length));
        }
        Some(frame.split_off(12))
    }
}
