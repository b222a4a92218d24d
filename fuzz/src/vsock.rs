//! A guest that sends any packets, while clients on the host come, speak and go.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use spore_devices::virtio::vsock::{
    ConnectionId, GuestCid, GuestConnect, HostStream, MAX_CONNECTIONS, Readiness, Vsock,
};

use crate::driver::{Driver, drive};
use crate::input::Input;

/// A client that has said all it will say, and takes so much.
struct Client {
    says: VecDeque<u8>,
    room: usize,
    gone: bool,
}

impl Read for Client {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match (self.says.is_empty(), self.gone) {
            (false, _) => self.says.read(into),
            (true, true) => Ok(0),
            (true, false) => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        match taken {
            0 if self.gone => Err(ErrorKind::BrokenPipe.into()),
            0 => Err(ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for Client {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes every other connection of the guest's.
struct Answers(Cell<bool>);

impl GuestConnect for Answers {
    fn connect(&mut self, _: ConnectionId, _: u32) -> Option<Box<dyn HostStream>> {
        self.0.set(!self.0.get());
        self.0.get().then(|| {
            Box::new(Client {
                says: b"hello".to_vec().into(),
                room: 1000,
                gone: false,
            }) as _
        })
    }
}

fn own(driver: &mut Driver<Vsock>, input: &mut Input<'_>, ids: &mut Vec<ConnectionId>) {
    match input.u8() % 3 {
        0 => {
            let port = input.u8();
            let mut says = match port {
                0xFF => Vec::new(),
                port => format!("CONNECT {port}\n").into_bytes(),
            };
            let length = input.u8().into();
            says.extend(input.take(length));
            let client = Client {
                says: says.into(),
                room: usize::from(input.u8()) * 16,
                gone: input.u8() % 4 == 0,
            };
            ids.extend(driver.transport.device_mut().add_stream(Box::new(client)));
            assert!(ids.len() <= MAX_CONNECTIONS);
        }
        1 => {
            let id = match ids.get(usize::from(input.u8())) {
                Some(id) => *id,
                None => ConnectionId::from_u64(input.u64()),
            };
            let bits = input.u8();
            let readiness = Readiness {
                readable: bits & 1 != 0,
                writable: bits & 2 != 0,
                hung_up: bits & 4 != 0,
            };
            driver.transport.device_mut().host_ready(id, readiness);
        }
        _ => {
            for closed in driver.transport.device_mut().take_closed() {
                ids.retain(|id| *id != closed.id);
            }
        }
    }
    let memory = driver.memory.clone();
    let pumped = driver
        .transport
        .poll(&memory, |device, queues, memory| device.pump(queues, memory));
    pumped.expect("the line is never cut");
}

pub fn run(data: &[u8]) {
    let mut ids = Vec::new();
    let mut vsock = Vsock::new(GuestCid::FIRST, data.len() as u32);
    if data.last().is_some_and(|byte| byte % 2 == 1) {
        vsock.set_guest_connect(Box::new(Answers(Cell::new(false))));
    }
    let driver = drive(vsock, data, |driver, input| own(driver, input, &mut ids));
    let saved = driver.transport.device().save();
    let again = Vsock::restore(&saved).expect("what was saved can be restored");
    assert_eq!(again.save(), saved);
}
