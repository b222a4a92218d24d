//! A guest that means no good: everything is answered, bounded and survived.

use std::io::{self, Read, Write};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{HEADER_LEN, Header, MAX_PAYLOAD, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::testing::{Client, Guest, MEMORY_SIZE, Part, packet, reap};
use super::super::{BUF_ALLOC, HostStream, MAX_CONNECTIONS, Vsock};
use super::{HUNG_UP, PORT, READABLE, WRITABLE, connect, established, new_vsock};
use crate::virtio::{Memory, VirtioDevice};

#[test]
fn packets_of_connections_nobody_knows_are_reset_but_resets_are_not() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    for op in [
        Op::Response,
        Op::Rst,
        Op::Shutdown,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Unknown,
    ] {
        guest.send(packet(op, 1000 + u32::from(op == Op::Rst), 7), b"x");
        guest.pump(&mut vsock);
    }
    let packets = guest.receive();
    assert_eq!(packets.len(), 6);
    for (reply, payload) in packets {
        assert_eq!((reply.op, reply.src_port, reply.dst_port), (Op::Rst, 7, 1000));
        assert_eq!((reply.src_cid, reply.dst_cid, payload.len()), (2, 3, 0));
    }
}

#[test]
fn one_connection_is_reset_once_however_much_the_guest_sends() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    for _ in 0..20 {
        guest.send(packet(Op::Rw, 1000, 7), b"x");
    }
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Rst]);
}

#[test]
fn resets_that_find_no_buffer_are_bounded() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(0, 0));
    for port in 0..3 * u32::try_from(MAX_CONNECTIONS).unwrap() {
        assert!(guest.send(packet(Op::Rw, port, 7), b"x"));
        guest.pump(&mut vsock);
    }
    assert_eq!(vsock.muxer().sizes().1, 2 * MAX_CONNECTIONS);
}

#[test]
fn clients_that_come_and_go_leave_nothing_in_a_guest_without_buffers() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(0, 0));
    for _ in 0..50 {
        let (client, id) = connect(&mut vsock);
        guest.pump(&mut vsock);
        drop(client);
        vsock.host_ready(id, HUNG_UP);
        assert_eq!(reap(&mut vsock), 1);
        assert_eq!(vsock.muxer().sizes(), (0, 0, 0, 0));
    }
}

#[test]
fn packets_under_a_false_name_are_ignored() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, _, socket) = established(&mut vsock, &mut guest, 4096);
    let real = socket.header(Op::Rw);
    guest.send(Header { src_cid: 4, ..real }, b"x");
    guest.send(Header { dst_cid: 5, ..real }, b"x");
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), []);
    assert_eq!(client.take(), b"");
}

#[test]
fn other_socket_types_are_reset_as_such_and_leave_streams_alone() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, _, socket) = established(&mut vsock, &mut guest, 4096);
    guest.send(
        Header {
            socket_type: 2,
            ..socket.header(Op::Rw)
        },
        b"x",
    );
    guest.pump(&mut vsock);
    let packets = guest.receive();
    assert_eq!(
        (packets.len(), packets[0].0.op, packets[0].0.socket_type),
        (1, Op::Rst, 2)
    );
    guest.send(socket.header(Op::Rw), b"y");
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"y");
}

#[test]
fn what_has_no_place_in_a_connection_ends_it() {
    type Offence = fn(&mut Guest, Header);
    let offences: [(&str, Offence); 8] = [
        ("unknown op", |guest, header| {
            assert!(guest.send(
                Header {
                    op: Op::Unknown,
                    ..header
                },
                &[]
            ))
        }),
        ("second request", |guest, header| {
            assert!(guest.send(
                Header {
                    op: Op::Request,
                    ..header
                },
                &[]
            ))
        }),
        ("second response", |guest, header| {
            assert!(guest.send(
                Header {
                    op: Op::Response,
                    ..header
                },
                &[]
            ))
        }),
        ("more than its credit", |guest, header| {
            for _ in 0..BUF_ALLOC as usize / MAX_PAYLOAD {
                assert!(guest.send(header, &[0; MAX_PAYLOAD]));
            }
            assert!(guest.send(header, &[0]));
        }),
        ("data after its end", |guest, header| {
            assert!(guest.send(
                Header {
                    op: Op::Shutdown,
                    flags: SHUTDOWN_SEND,
                    ..header
                },
                &[]
            ));
            assert!(guest.send(header, b"x"));
        }),
        ("too long a packet", |guest, header| {
            let header = Header {
                len: u32::try_from(MAX_PAYLOAD).unwrap() + 1,
                ..header
            };
            assert!(guest.send_raw(&[&header.to_bytes()[..], &[0; MAX_PAYLOAD + 1]].concat(), &[44]));
        }),
        ("a length without bytes", |guest, header| {
            assert!(guest.send_raw(&Header { len: 9, ..header }.to_bytes(), &[]));
        }),
        ("the longest length", |guest, header| {
            assert!(
                guest.send_raw(
                    &Header {
                        len: u32::MAX,
                        ..header
                    }
                    .to_bytes(),
                    &[]
                )
            );
        }),
    ];
    for (offence, commit) in offences {
        let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
        let (mut client, _, socket) = established(&mut vsock, &mut guest, 4096);
        client.limit(0);
        commit(&mut guest, socket.header(Op::Rw));
        guest.pump(&mut vsock);
        assert_eq!(guest.receive_ops(), [Op::Rst], "{offence}");
        assert_eq!(reap(&mut vsock), 1, "{offence}");
        assert!(client.is_closed());
    }
}

#[test]
fn only_an_answer_opens_a_connection() {
    for op in [Op::Rw, Op::Shutdown, Op::CreditUpdate, Op::Request, Op::Unknown] {
        let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
        let (mut client, _) = connect(&mut vsock);
        guest.pump(&mut vsock);
        let request = guest.receive()[0].0;
        guest.send(packet(op, PORT, request.src_port), b"x");
        guest.pump(&mut vsock);
        assert_eq!(guest.receive_ops(), [Op::Rst]);
        assert_eq!(reap(&mut vsock), 1);
        assert_eq!(client.take(), b"");
    }
}

#[test]
fn an_answer_before_the_question_is_ignored() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(0, 0));
    let (mut client, _) = connect(&mut vsock);
    guest.pump(&mut vsock); // No buffer for the request.
    guest.send(packet(Op::Response, PORT, (1 << 30) + 77), &[]);
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"");
    guest.offer(
        0,
        &[Part {
            address: 0x10_0000,
            len: 4096,
            writable: true,
        }],
    );
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Request]);
}

#[test]
fn a_guest_that_hears_no_more_gets_no_more() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, socket) = established(&mut vsock, &mut guest, 4096);
    guest.send(
        Header {
            flags: SHUTDOWN_RECEIVE,
            ..socket.header(Op::Shutdown)
        },
        &[],
    );
    guest.pump(&mut vsock);
    client.send(b"to deaf ears");
    vsock.host_ready(id, READABLE);
    guest.send(socket.header(Op::Rw), b"but it talks");
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), []);
    assert_eq!(client.take(), b"but it talks");
}

#[test]
fn broken_tx_chains_are_given_back_and_forgotten() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let good = packet(Op::Rw, 1000, 7);
    guest
        .memory
        .write_slice(&good.to_bytes(), GuestAddress(0x40_0000))
        .unwrap();
    let end = MEMORY_SIZE as u64;
    let part = |address, len, writable| Part {
        address,
        len,
        writable,
    };
    let chains: [&[Part]; 7] = [
        &[part(0x40_0000, 43, false)],
        &[part(0x40_0000, 0, false)],
        &[part(0x40_0000, 44, true)],
        &[part(0x40_0000, 44, false), part(0x40_1000, 4, true)],
        &[part(end - 43, 44, false)],
        &[part(u64::MAX, 44, false)],
        &[part(u64::MAX - 43, 44, false)],
    ];
    for chain in chains {
        assert!(guest.offer(1, chain));
    }
    guest.pump(&mut vsock);
    for _ in chains {
        assert_eq!(guest.take_used(1).map(|(_, len)| len), Some(0));
    }
    assert_eq!(guest.receive_ops(), []);
    guest.send(good, b"x"); // And it still works.
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Rst]);
}

#[test]
fn broken_rx_buffers_are_given_back_and_lose_nothing() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(1, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 4096);
    // The one good buffer takes this:
    client.send(b"first");
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    let bad = [
        Part {
            address: 0x40_0000,
            len: 44,
            writable: true,
        },
        Part {
            address: 0x40_0000,
            len: 4096,
            writable: false,
        },
        Part {
            address: MEMORY_SIZE as u64 - 100,
            len: 4096,
            writable: true,
        },
        Part {
            address: u64::MAX,
            len: 4096,
            writable: true,
        },
    ];
    for part in bad {
        assert!(guest.offer(0, &[part]));
    }
    client.send(b"second");
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    let (parts, len) = guest.take_used(0).unwrap();
    assert_eq!(len as usize, HEADER_LEN + 5);
    for _ in bad {
        assert_eq!(guest.take_used(0).map(|(_, len)| len), Some(0));
    }
    assert!(guest.offer(0, &parts));
    guest.pump(&mut vsock);
    for packet in guest.receive() {
        socket.take(&packet);
    }
    assert_eq!(socket.read(99), b"second");
}

#[test]
fn a_ring_that_points_nowhere_is_the_transports_business() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(1, 4096));
    guest.memory.write_obj(1000u16, GuestAddress(0x2_1002)).unwrap(); // tx: more than the ring holds
    assert!(vsock.process_queue(1, &mut guest.queues, &guest.memory).is_err());
    let mut guest = Guest::new(1, 4096);
    for base in [MEMORY_SIZE - 2, MEMORY_SIZE - 4, MEMORY_SIZE] {
        let base = u32::try_from(base).unwrap();
        virtio_queue::QueueT::set_avail_ring_address(&mut guest.queues[1], Some(base), None);
        let _ = vsock.process_queue(1, &mut guest.queues, &guest.memory); // Must return.
    }
}

/// A stream whose every read makes the guest offer its receive buffer again, as another vCPU would.
struct Endless(Memory);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let index = GuestAddress(0x1_1002);
        let available: u16 = self.0.read_obj(index).unwrap();
        self.0.write_obj(available.wrapping_add(1), index).unwrap();
        into[0] = b'x';
        Ok(1)
    }
}

impl Write for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for Endless {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Accept(Memory);

impl super::super::GuestConnect for Accept {
    fn connect(&mut self, _: super::super::ConnectionId, _: u32) -> Option<Box<dyn HostStream>> {
        Some(Box::new(Endless(self.0.clone())))
    }
}

#[test]
fn a_guest_that_never_stops_gives_the_io_thread_back() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(2, 4096));
    // Every slot of the available ring names the same buffer, so that it can be offered for ever.
    let head: u16 = guest.memory.read_obj(GuestAddress(0x1_1004)).unwrap();
    for slot in 0..32 {
        guest
            .memory
            .write_obj(head, GuestAddress(0x1_1004 + slot * 2))
            .unwrap();
    }
    vsock.set_guest_connect(Box::new(Accept(guest.memory.clone())));
    let request = packet(Op::Request, 1000, 80);
    guest.send(
        Header {
            buf_alloc: u32::MAX,
            ..request
        },
        &[],
    );
    assert!(guest.pump(&mut vsock));
    assert!(vsock.wants_pump());
    assert!(guest.pump(&mut vsock));
    assert!(vsock.wants_pump());
}

/// One thing that can happen.
#[derive(Clone, Debug)]
enum Step {
    Connect,
    ClientSends(usize, usize),
    ClientLeaves(usize),
    ClientReads(usize, usize),
    GuestSends {
        header: Header,
        payload: usize,
        cuts: Vec<usize>,
    },
    GuestSendsBytes(Vec<u8>),
    GuestOffers(usize, Vec<(u64, u32, bool)>),
    GuestTakes,
    DriverResets,
    VmIsCopied,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop::sample::select(vec![
        Op::Request,
        Op::Response,
        Op::Response,
        Op::Response,
        Op::Rst,
        Op::Shutdown,
        Op::Rw,
        Op::Rw,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Unknown,
    ])
}

prop_compose! {
    /// Mostly packets of the few connections there may be.
    fn any_header()(
        op in any_op(),
        src_port in prop::sample::select(vec![PORT, PORT, PORT, 1]),
        dst_port in (1u32 << 30) + 77..(1 << 30) + 85,
        socket_type in prop::sample::select(vec![1, 1, 1, 1, 1, 1, 2, 9]),
        src_cid in prop::sample::select(vec![3, 3, 3, 3, 3, 3, 3, 4]),
        flags in 0u32..5,
        buf_alloc in prop::sample::select(vec![0, 1, 5000, 300_000, u32::MAX]),
        fwd_cnt in prop::sample::select(vec![0, 1, 5000, u32::MAX]),
    ) -> Header {
        Header { src_cid, socket_type, flags, buf_alloc, fwd_cnt, ..packet(op, src_port, dst_port) }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let address = prop_oneof![
        0x10_0000u64..MEMORY_SIZE as u64 + 16,
        Just(u64::MAX),
        any::<u64>()
    ];
    let len = prop_oneof![0u32..5000, Just(u32::MAX), any::<u32>()];
    prop_oneof![
        4 => Just(Step::Connect),
        4 => (0usize..8, 0usize..100_000).prop_map(|(n, len)| Step::ClientSends(n, len)),
        1 => (0usize..8).prop_map(Step::ClientLeaves),
        2 => (0usize..8, 0usize..100_000).prop_map(|(n, limit)| Step::ClientReads(n, limit)),
        12 => (any_header(), 0usize..70_000, prop::collection::vec(0usize..70_000, 0..5))
            .prop_map(|(header, payload, cuts)| Step::GuestSends { header, payload, cuts }),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Step::GuestSendsBytes),
        1 => (0usize..3, prop::collection::vec((address, len, any::<bool>()), 1..4))
            .prop_map(|(queue, parts)| Step::GuestOffers(queue, parts)),
        8 => Just(Step::GuestTakes),
        1 => Just(Step::DriverResets),
        1 => Just(Step::VmIsCopied),
    ]
}

/// Gives back every well-formed receive buffer the device used; checks what it wrote.
fn take_all(guest: &mut Guest) {
    while let Some((parts, len)) = guest.take_used(0) {
        assert!(u64::from(len) <= parts.iter().map(|part| u64::from(part.len)).sum::<u64>());
        if len > 0 {
            assert!(len as usize >= HEADER_LEN);
            guest.offer(0, &parts);
        }
    }
    while guest.take_used(2).is_some() {
        guest.offer(
            2,
            &[Part {
                address: 0x4_0000,
                len: 4,
                writable: true,
            }],
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever guest and clients do, the device neither panics nor grows.
    #[test]
    fn anything_may_happen(steps in prop::collection::vec(any_step(), 1..120)) {
        let (mut vsock, mut guest) = (new_vsock(), Guest::new(6, 4096));
        let mut clients: Vec<(Client, _)> = vec![];
        for step in steps {
            match step {
                Step::Connect => {
                    if clients.len() == 8 {
                        clients.remove(0);
                    }
                    clients.push(connect(&mut vsock));
                }
                Step::ClientSends(n, len) => {
                    if let Some((client, id)) = clients.get_mut(n) {
                        client.send(&vec![1; len]);
                        vsock.host_ready(*id, READABLE);
                    }
                }
                Step::ClientLeaves(n) => {
                    if n < clients.len() {
                        let (client, id) = clients.remove(n);
                        drop(client);
                        vsock.host_ready(id, HUNG_UP);
                    }
                }
                Step::ClientReads(n, limit) => {
                    if let Some((client, id)) = clients.get_mut(n) {
                        client.take();
                        client.limit(limit);
                        vsock.host_ready(*id, WRITABLE);
                    }
                }
                Step::GuestSends { header, payload, mut cuts } => {
                    let header = Header { len: u32::try_from(payload).unwrap(), ..header };
                    cuts.sort_unstable();
                    guest.send_raw(&[&header.to_bytes()[..], &vec![2; payload]].concat(), &cuts);
                }
                Step::GuestSendsBytes(bytes) => {
                    guest.send_raw(&bytes, &[]);
                }
                Step::GuestOffers(queue, parts) => {
                    let parts: Vec<_> = parts
                        .into_iter()
                        .map(|(address, len, writable)| Part { address, len, writable })
                        .collect();
                    // The test driver's own structures are not the device's to protect.
                    if parts.iter().all(|part| part.address >= 0x10_0000) {
                        guest.offer(queue, &parts);
                    }
                }
                Step::GuestTakes => take_all(&mut guest),
                Step::DriverResets => vsock.reset(),
                Step::VmIsCopied => {
                    guest = guest.fork();
                    vsock = Vsock::restore(&vsock.save()).unwrap();
                    clients.clear();
                }
            }
            guest.pump(&mut vsock);
            prop_assert!(vsock.take_closed().len() <= MAX_CONNECTIONS);
            let (streams, farewells, ready, buffered) = vsock.muxer().sizes();
            prop_assert!(streams <= MAX_CONNECTIONS && farewells <= 2 * MAX_CONNECTIONS && ready <= streams);
            prop_assert!(buffered <= BUF_ALLOC as usize + 32);
        }
    }

    /// Rings full of noise: an error or not, but it returns.
    #[test]
    fn rings_may_hold_anything(noise in prop::collection::vec(any::<u8>(), 0x3000), queue in 0usize..3, index in 0u16..33) {
        let (mut vsock, mut guest) = (Vsock::restore(&new_vsock().save()).unwrap(), Guest::new(1, 4096));
        let (_client, _) = connect(&mut vsock);
        let base = 0x1_0000 * (queue as u64 + 1);
        guest.memory.write_slice(&noise, GuestAddress(base)).unwrap();
        guest.memory.write_obj(index, GuestAddress(base + 0x1002)).unwrap();
        for queue in 0..3 {
            let _ = vsock.process_queue(queue, &mut guest.queues, &guest.memory);
        }
    }
}
