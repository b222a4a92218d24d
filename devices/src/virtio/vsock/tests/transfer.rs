//! Bytes both ways, in order, within credit.

use proptest::prelude::*;

use super::super::packet::Op;
use super::super::testing::{Client, Guest, Socket};
use super::super::{BUF_ALLOC, ConnectionId, Vsock};
use super::{READABLE, WRITABLE, established, new_vsock};

/// Bytes that repeat with no period a buffer could have.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|n| (n % 251).to_le_bytes()[0] ^ (n >> 13).to_le_bytes()[0])
        .collect()
}

/// One connection with a load both ways, and how generous everyone is.
struct Load {
    client: Client,
    id: ConnectionId,
    socket: Socket,
    total: usize,
    to_guest: usize,
    from_guest: usize,
    at_client: Vec<u8>,
    at_guest: Vec<u8>,
    guest_reads: usize,
    guest_writes: usize,
}

impl Load {
    fn new(vsock: &mut Vsock, guest: &mut Guest, buf_alloc: u32, total: usize) -> Self {
        let (client, id, socket) = established(vsock, guest, buf_alloc);
        Self {
            client,
            id,
            socket,
            total,
            to_guest: 0,
            from_guest: 0,
            at_client: vec![],
            at_guest: vec![],
            guest_reads: 3000,
            guest_writes: 10_000,
        }
    }

    fn is_done(&self) -> bool {
        self.at_client.len() == self.total && self.at_guest.len() == self.total
    }

    /// The client writes and reads a bit, as epoll would have it do.
    fn client_turn(&mut self, vsock: &mut Vsock) {
        if self.client.unread() < 20_000 && self.to_guest < self.total {
            let len = 30_000.min(self.total - self.to_guest);
            self.client.send(&pattern(self.to_guest, len));
            self.to_guest += len;
            vsock.host_ready(self.id, READABLE);
        }
        self.at_client.extend(self.client.take());
        vsock.host_ready(self.id, WRITABLE);
    }

    /// The guest reads a bit, tells so as Linux does, and writes what it has credit for.
    fn guest_turn(&mut self, guest: &mut Guest) {
        let read = self.socket.read(self.guest_reads);
        if !read.is_empty() {
            self.at_guest.extend(read);
            guest.send(self.socket.header(Op::CreditUpdate), &[]);
        }
        let len = self
            .guest_writes
            .min(self.total - self.from_guest)
            .min(self.socket.credit());
        if len > 0 && guest.send(self.socket.header(Op::Rw), &pattern(self.from_guest, len)) {
            self.from_guest += len;
            self.socket.sent = self.socket.sent.wrapping_add(u32::try_from(len).unwrap());
        }
    }
}

/// Runs `loads` until all is through.
fn run(vsock: &mut Vsock, guest: &mut Guest, loads: &mut [Load]) {
    for _ in 0..200_000 {
        if loads.iter().all(Load::is_done) {
            for load in loads {
                assert!(load.at_client == pattern(0, load.total), "to the client");
                assert!(load.at_guest == pattern(0, load.total), "to the guest");
            }
            return;
        }
        for load in loads.iter_mut() {
            load.client_turn(vsock);
        }
        guest.pump(vsock);
        let (_, _, _, buffered) = vsock.muxer().sizes();
        assert!(buffered <= BUF_ALLOC as usize);
        for packet in guest.receive() {
            let load = loads
                .iter_mut()
                .find(|load| load.socket.host_port == packet.0.src_port)
                .unwrap();
            assert!(packet.0.op != Op::Rst);
            if let Some(answer) = load.socket.take(&packet) {
                assert!(guest.send(answer, &[]));
            }
        }
        for load in loads.iter_mut() {
            load.guest_turn(guest);
        }
    }
    panic!(
        "stuck: {:?}",
        loads
            .iter()
            .map(|load| (load.at_client.len(), load.at_guest.len()))
            .collect::<Vec<_>>()
    );
}

#[test]
fn megabytes_both_ways_through_linux_sized_buffers() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(16, 4096));
    let mut load = Load::new(&mut vsock, &mut guest, 256 * 1024, 8 << 20);
    load.guest_reads = 50_000;
    load.guest_writes = 60_000;
    run(&mut vsock, &mut guest, &mut [load]);
}

#[test]
fn megabytes_both_ways_with_a_client_that_blocks_all_the_time() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(16, 4096));
    let mut load = Load::new(&mut vsock, &mut guest, 64 * 1024, 2 << 20);
    load.client.limit(777);
    run(&mut vsock, &mut guest, &mut [load]);
}

#[test]
fn a_guest_with_hardly_any_room_is_never_overrun() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(2, 100));
    let mut load = Load::new(&mut vsock, &mut guest, 37, 100_000);
    load.guest_reads = 11;
    run(&mut vsock, &mut guest, &mut [load]);
}

#[test]
fn no_connection_starves_another() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(4, 4096));
    let mut loads: Vec<_> = (0..6)
        .map(|_| Load::new(&mut vsock, &mut guest, 256 * 1024, 1 << 20))
        .collect();
    for load in &mut loads {
        load.client.send(&pattern(0, 100_000));
        load.to_guest = 100_000;
        vsock.host_ready(load.id, READABLE);
    }
    // Four buffers a round, six connections: after three rounds each had two of them.
    for _ in 0..3 {
        guest.pump(&mut vsock);
        for packet in guest.receive() {
            let load = loads
                .iter_mut()
                .find(|load| load.socket.host_port == packet.0.src_port)
                .unwrap();
            load.socket.take(&packet);
        }
    }
    for load in &loads {
        assert_eq!(load.socket.unread.len(), 2 * (4096 - 44));
    }
    run(&mut vsock, &mut guest, &mut loads);
}

#[test]
fn a_guest_that_gives_no_credit_is_asked_once_and_believed_when_it_does() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 10);
    client.send(&pattern(0, 25));
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    let lens: Vec<_> = packets
        .iter()
        .map(|(header, _)| (header.op, header.len))
        .collect();
    assert_eq!(lens, [(Op::Rw, 10), (Op::CreditRequest, 0)]);
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), []);
    packets.iter().for_each(|packet| {
        socket.take(packet);
    });
    socket.read(4);
    guest.send(socket.header(Op::CreditUpdate), &[]);
    guest.pump(&mut vsock);
    let lens: Vec<_> = guest
        .receive()
        .iter()
        .map(|(header, _)| (header.op, header.len))
        .collect();
    assert_eq!(lens, [(Op::Rw, 4), (Op::CreditRequest, 0)]);
}

#[test]
fn a_guest_that_asks_for_credit_is_answered() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (_client, _, socket) = established(&mut vsock, &mut guest, 4096);
    guest.send(socket.header(Op::Rw), b"12345");
    guest.send(socket.header(Op::CreditRequest), &[]);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    let update = packets[0].0;
    assert_eq!(
        (update.op, update.buf_alloc, update.fwd_cnt),
        (Op::CreditUpdate, BUF_ALLOC, 5)
    );
}

#[test]
fn a_client_that_does_not_read_stops_the_guest_at_its_credit() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, socket) = established(&mut vsock, &mut guest, 4096);
    client.limit(0);
    for _ in 0..BUF_ALLOC / 32_768 {
        assert!(guest.send(socket.header(Op::Rw), &[7; 32_768]));
        guest.pump(&mut vsock);
    }
    assert_eq!(vsock.muxer().sizes().3, BUF_ALLOC as usize);
    assert_eq!(guest.receive_ops(), [], "no room, no credit update");
    client.limit(usize::MAX);
    vsock.host_ready(id, WRITABLE);
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::CreditUpdate]);
    assert_eq!(client.take().len(), BUF_ALLOC as usize);
}

#[test]
fn what_finds_no_buffer_waits_for_one() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, _socket) = established(&mut vsock, &mut guest, 1 << 30);
    client.send(&[1; 40_000]);
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    assert!(!vsock.wants_pump(), "the guest's kick will say when to go on");
    assert_eq!(guest.receive().len(), 8);
    guest.pump(&mut vsock);
    assert_eq!(guest.receive().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever everyone's sizes are, all bytes arrive.
    #[test]
    fn any_sizes_work(
        rx_buffers in 1u64..20,
        rx_size in 45u32..9000,
        buf_alloc in 1u32..300_000,
        client_limit in 1usize..100_000,
        guest_reads in 1usize..80_000,
        guest_writes in 1usize..65_537,
    ) {
        let (mut vsock, mut guest) = (new_vsock(), Guest::new(rx_buffers, rx_size));
        // Small steps, little load.
        let total = (client_limit.min(guest_reads).min(guest_writes).min(rx_size as usize - 44).min(buf_alloc as usize) * 300).min(1 << 20);
        let mut load = Load::new(&mut vsock, &mut guest, buf_alloc, total);
        load.client.limit(client_limit);
        (load.guest_reads, load.guest_writes) = (guest_reads, guest_writes);
        run(&mut vsock, &mut guest, &mut [load]);
    }
}
