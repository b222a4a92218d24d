//! A guest that sends and receives in whatever buffers, on a wire that comes, goes and fails: what goes out is
//! frames with headers that make sense, and nothing while the card is muted.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;

use spore_devices::virtio::net::{MAX_FRAME, Mac, Mtu, Net, NetBackend, NetConfig, NetState, Offloads};
use vm_memory::VolatileSlice;

use crate::driver::{Driver, drive};
use crate::input::Input;

/// Bytes of the header before each frame.
const HEADER: usize = 12;

#[derive(Default)]
struct Host {
    incoming: VecDeque<usize>,
    sent: usize,
    broken: bool,
    only: Option<[u8; 6]>,
    muted: bool,
}

/// Both ends are on one thread.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Host>>);

// SAFETY: a target runs its input on one thread, and what it makes does not outlive it.
unsafe impl Send for Wire {}

impl NetBackend for Wire {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        assert!(!host.muted, "sent while muted");
        assert!(frame.len() <= 200 && frame.iter().all(|slice| !slice.is_empty()));
        let mut bytes = Vec::new();
        for slice in frame {
            let mut part = vec![0; slice.len()];
            slice.copy_to(&mut part[..]);
            bytes.extend(part);
        }
        let length = bytes.len() - HEADER;
        assert!((14..=MAX_FRAME).contains(&length));
        let field = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        assert!(bytes[0] <= 1 && [0, 1, 4, 0x81, 0x84].contains(&bytes[1]));
        if bytes[0] == 1 {
            assert!(field(6) + field(8) + 2 <= length);
        }
        if let Some(only) = host.only {
            assert_eq!(bytes[HEADER + 6..HEADER + 12], only);
        }
        host.sent += 1;
        match host.broken {
            true => Err(ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut host = self.0.borrow_mut();
        assert!(!host.muted, "received while muted");
        assert!(room.len() <= 700);
        if host.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let length = host.incoming.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let mut rest = length;
        for slice in room {
            let part = vec![0x5A; rest.min(slice.len())];
            slice.copy_from(&part[..]);
            rest -= part.len();
        }
        Ok(length - rest)
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

fn config(only: Option<[u8; 6]>) -> NetConfig {
    NetConfig {
        mac: Mac::try_from([2, 0, 0, 0, 0, 1]).expect("an address"),
        mtu: Mtu::ETHERNET,
        only_mac: only.map(|only| Mac::try_from(only).expect("an address")),
    }
}

fn own(driver: &mut Driver<Net>, input: &mut Input<'_>, wire: &Wire) {
    match input.u8() % 6 {
        0 | 1 => {
            let length = match input.u8() {
                short @ 0..=0xEF => usize::from(short) * 8,
                _ => usize::from(input.u16()) * 2,
            };
            wire.0.borrow_mut().incoming.push_back(length);
        }
        2 => {
            let broken = input.u8() % 4 == 0;
            wire.0.borrow_mut().broken = broken;
        }
        3 => {
            let backend = (input.u8() % 4 != 0).then(|| Box::new(wire.clone()) as Box<dyn NetBackend>);
            let changed = driver.transport.device_mut().set_backend(backend);
            changed.expect("it takes any offloads");
            if driver.transport.device_mut().take_link_change() {
                driver.transport.config_changed().expect("the line is never cut");
            }
        }
        4 => {
            driver.transport.device_mut().unmute();
            wire.0.borrow_mut().muted = false;
        }
        _ => {}
    }
    let memory = driver.memory.clone();
    let pumped = driver
        .transport
        .poll(&memory, |device, queues, memory| device.pump(queues, memory));
    pumped.expect("the line is never cut");
}

pub fn run(data: &[u8]) {
    // A state of any kind is refused or makes a card.
    if let Ok(state) = postcard::from_bytes::<NetState>(data)
        && let Ok(net) = Net::restore(&state, config(None), None)
    {
        assert_eq!(net.save().features, state.features);
    }
    let wire = Wire::default();
    let choice = data.last().copied().unwrap_or(0);
    let only = (choice & 1 != 0).then_some([0; 6].map(|_| 0x22));
    wire.0.borrow_mut().only = only;
    let mut net = Net::new(config(only), Some(Box::new(wire.clone())));
    if choice & 2 != 0 {
        wire.0.borrow_mut().muted = true;
        net = Net::restore(&net.save(), config(only), Some(Box::new(wire.clone()))).expect("it was one");
    }
    let driver = drive(net, data, |driver, input| own(driver, input, &wire));
    let counters = driver.transport.device().counters();
    assert_eq!(
        counters.sent.frames + counters.sent.refused,
        wire.0.borrow().sent as u64
    );
    let saved = driver.transport.device().save();
    let again = Net::restore(&saved, config(only), None).expect("what was saved can be restored");
    assert_eq!(again.save().features, saved.features);
}
