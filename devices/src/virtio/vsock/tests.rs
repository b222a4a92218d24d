//! The device driven through real rings by a guest driver, with host streams in memory.

mod framing;
mod hostile;
mod lifecycle;
mod transfer;

use super::testing::{Client, Guest, Socket, host_pair};
use super::{ConnectionId, GuestCid, Readiness, Vsock};

/// Port everything in the guest listens on.
const PORT: u32 = 5000;

const READABLE: Readiness = Readiness {
    readable: true,
    writable: false,
    hung_up: false,
};
const WRITABLE: Readiness = Readiness {
    readable: false,
    writable: true,
    hung_up: false,
};
const HUNG_UP: Readiness = Readiness {
    readable: true,
    writable: true,
    hung_up: true,
};

fn new_vsock() -> Vsock {
    Vsock::new(GuestCid::FIRST, 77)
}

/// A client that asked for `PORT`.
fn connect(vsock: &mut Vsock) -> (Client, ConnectionId) {
    let (mut client, stream) = host_pair();
    client.send(format!("CONNECT {PORT}\n").as_bytes());
    let id = vsock.add_stream(Box::new(stream)).unwrap();
    (client, id)
}

/// A client whose connection the guest accepted, and the guest's socket.
fn established(vsock: &mut Vsock, guest: &mut Guest, buf_alloc: u32) -> (Client, ConnectionId, Socket) {
    let (mut client, id) = connect(vsock);
    let mut socket = Socket {
        guest_port: PORT,
        buf_alloc,
        ..Socket::default()
    };
    guest.pump(vsock);
    for packet in guest.receive() {
        if let Some(answer) = socket.take(&packet) {
            assert!(guest.send(answer, &[]));
        }
    }
    guest.pump(vsock);
    assert_eq!(client.take(), format!("OK {}\n", socket.host_port).into_bytes());
    (client, id, socket)
}
