//! Connections begin, end, and survive or do not survive the VM's own life.

use super::super::packet::{Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::testing::{Guest, MemoryStream, Part, Socket, host_pair, packet, reap};
use super::super::{GuestCid, GuestConnect, HostStream, MAX_CONNECTIONS, Vsock, VsockState};
use super::{HUNG_UP, PORT, READABLE, WRITABLE, connect, established, new_vsock};
use crate::virtio::vsock::ConnectionId;
use crate::virtio::{DeviceError, DeviceType, VirtioDevice};

const BOTH: u32 = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;

#[test]
fn a_client_is_connected_and_told_its_local_port() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(4, 4096));
    let (mut client, _) = connect(&mut vsock);
    assert!(guest.pump(&mut vsock));
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    let request = packets[0].0;
    assert_eq!(
        (request.op, request.dst_port, request.dst_cid),
        (Op::Request, PORT, 3)
    );
    assert_eq!(client.take(), b"");
    guest.send(packet(Op::Response, PORT, request.src_port), &[]);
    guest.pump(&mut vsock);
    assert_eq!(client.take(), format!("OK {}\n", request.src_port).into_bytes());
    assert_eq!(reap(&mut vsock), 0);
    assert!(
        !guest.pump(&mut vsock),
        "an idle connection does not interrupt the guest"
    );
}

#[test]
fn nothing_follows_a_refused_connect() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(4, 4096));
    let (mut client, _) = connect(&mut vsock);
    guest.pump(&mut vsock);
    let request = guest.receive()[0].0;
    guest.send(packet(Op::Rst, PORT, request.src_port), &[]);
    guest.pump(&mut vsock);
    assert_eq!(reap(&mut vsock), 1);
    assert!(client.is_closed());
    assert_eq!(client.take(), b"");
    assert_eq!(guest.receive_ops(), []);
}

#[test]
fn a_client_that_says_something_else_is_closed_without_a_word_to_the_guest() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(4, 4096));
    let (mut client, stream) = host_pair();
    let id = vsock.add_stream(Box::new(stream)).unwrap();
    client.send(b"HELO\n");
    vsock.host_ready(id, READABLE);
    assert_eq!(reap(&mut vsock), 1);
    assert!(client.is_closed());
    assert!(!guest.pump(&mut vsock));
    vsock.host_ready(id, READABLE); // A late report is harmless.
}

#[test]
fn a_client_waits_for_a_driver_that_is_not_there_yet() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(4, 4096));
    for queue in &mut guest.queues {
        virtio_queue::QueueT::set_ready(queue, false);
    }
    let (_client, _) = connect(&mut vsock);
    assert!(!guest.pump(&mut vsock));
    vsock.reset(); // As a driver does before it starts.
    for queue in &mut guest.queues {
        virtio_queue::QueueT::set_ready(queue, true);
    }
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Request]);
}

#[test]
fn local_ports_differ_and_start_where_the_vmm_says() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let clients: Vec<_> = (0..5).map(|_| connect(&mut vsock)).collect();
    guest.pump(&mut vsock);
    let ports: Vec<u32> = guest
        .receive()
        .iter()
        .map(|(header, _)| header.src_port)
        .collect();
    assert_eq!(ports, (0..5).map(|n| (1 << 30) + 77 + n).collect::<Vec<u32>>());
    drop(clients);
    assert_eq!(vsock.save().next_local_port, (1 << 30) + 82);
}

#[test]
fn local_ports_wrap_around_past_those_in_use() {
    let (mut vsock, mut guest) = (Vsock::new(GuestCid::FIRST, u32::MAX), Guest::new(8, 4096));
    let (_a, _) = connect(&mut vsock);
    let (_b, _) = connect(&mut vsock);
    guest.pump(&mut vsock);
    let ports: Vec<u32> = guest
        .receive()
        .iter()
        .map(|(header, _)| header.src_port)
        .collect();
    assert_eq!(ports, [(1 << 31) - 1, 1 << 30]);
}

#[test]
fn the_client_ends_first() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 65536);
    client.send(b"question");
    client.end();
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    assert_eq!(packets.len(), 2);
    packets
        .iter()
        .for_each(|packet| assert!(socket.take(packet).is_none()));
    assert_eq!(socket.shutdown, SHUTDOWN_SEND);
    assert_eq!(socket.read(99), b"question");
    // The other direction goes on, until the guest closes.
    guest.send(socket.header(Op::Rw), b"answer");
    let mut close = socket.header(Op::Shutdown);
    close.flags = BOTH;
    guest.send(close, &[]);
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"answer");
    assert_eq!(guest.receive_ops(), [Op::Rst], "what a closing guest waits for");
    assert_eq!(reap(&mut vsock), 1);
    assert!(client.is_closed());
}

#[test]
fn the_guest_ends_first() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 65536);
    guest.send(socket.header(Op::Rw), b"question");
    let mut end = socket.header(Op::Shutdown);
    end.flags = SHUTDOWN_SEND;
    guest.send(end, &[]);
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"question");
    assert!(client.at_eof() && !client.is_closed());
    client.send(b"answer");
    client.end();
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    for packet in guest.receive() {
        socket.take(&packet);
    }
    assert_eq!(socket.read(99), b"answer");
    assert_eq!(socket.shutdown, BOTH);
    assert_eq!(reap(&mut vsock), 1);
    // The guest's RST to that finds nothing, and is not answered.
    guest.send(socket.header(Op::Rst), &[]);
    assert!(guest.pump(&mut vsock));
    assert_eq!(guest.receive_ops(), []);
}

#[test]
fn end_of_file_waits_behind_bytes_a_slow_client_has_not_taken() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, socket) = established(&mut vsock, &mut guest, 65536);
    client.limit(3);
    guest.send(socket.header(Op::Rw), b"abcdefghi");
    let mut end = socket.header(Op::Shutdown);
    end.flags = SHUTDOWN_SEND;
    guest.send(end, &[]);
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"abc");
    client.end(); // The other direction's end does not hasten this one's.
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    assert!(!client.at_eof());
    vsock.host_ready(id, WRITABLE);
    assert_eq!(client.take(), b"def");
    assert!(!client.at_eof());
    vsock.host_ready(id, WRITABLE);
    assert_eq!(client.take(), b"ghi");
    assert!(client.at_eof());
    assert_eq!(reap(&mut vsock), 1);
}

#[test]
fn a_guest_that_closes_is_let_go_while_a_slow_client_still_reads() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, socket) = established(&mut vsock, &mut guest, 65536);
    client.limit(3);
    guest.send(socket.header(Op::Rw), b"abcdef");
    let mut close = socket.header(Op::Shutdown);
    close.flags = BOTH;
    guest.send(close, &[]);
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Rst]);
    assert_eq!(client.take(), b"abc");
    assert!(!client.is_closed());
    vsock.host_ready(id, WRITABLE);
    assert_eq!(client.take(), b"def");
    assert_eq!(reap(&mut vsock), 1);
    assert!(client.is_closed());
}

#[test]
fn bytes_before_a_reset_by_the_guest_reach_the_client() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, _, socket) = established(&mut vsock, &mut guest, 65536);
    guest.send(socket.header(Op::Rw), b"last");
    guest.send(socket.header(Op::Rst), &[]);
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"last");
    assert_eq!(reap(&mut vsock), 1);
    assert!(client.is_closed());
    assert_eq!(guest.receive_ops(), [], "RST is not answered");
}

#[test]
fn what_a_vanished_client_wrote_reaches_the_guest() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 65536);
    client.send(b"testament");
    drop(client);
    // The guest is just talking to it, which must not cut it short.
    guest.send(socket.header(Op::Rw), b"are you there?");
    guest.pump(&mut vsock);
    vsock.host_ready(id, HUNG_UP);
    guest.pump(&mut vsock);
    for packet in guest.receive() {
        socket.take(&packet);
    }
    assert_eq!(socket.read(99), b"testament");
    assert!(socket.shutdown == BOTH && !socket.reset);
    assert_eq!(reap(&mut vsock), 1);
}

#[test]
fn a_silent_guest_learns_that_nobody_reads_any_more() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 5);
    client.send(b"unread");
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    drop(client);
    vsock.host_ready(id, HUNG_UP);
    guest.pump(&mut vsock);
    for packet in guest.receive() {
        socket.take(&packet);
    }
    assert_eq!(
        socket.shutdown, SHUTDOWN_RECEIVE,
        "there is a byte to deliver yet"
    );
    assert_eq!(socket.read(99), b"unrea");
    guest.send(socket.header(Op::CreditUpdate), &[]);
    guest.pump(&mut vsock);
    for packet in guest.receive() {
        socket.take(&packet);
    }
    assert_eq!((&socket.read(99)[..], socket.shutdown), (&b"d"[..], BOTH));
    assert_eq!(reap(&mut vsock), 1);
}

#[test]
fn a_client_that_vanishes_while_connecting_is_forgotten() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (client, id) = connect(&mut vsock);
    drop(client);
    vsock.host_ready(id, HUNG_UP); // Before the guest was asked:
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), []);
    assert_eq!(reap(&mut vsock), 1);

    let (client, id) = connect(&mut vsock);
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Request]);
    drop(client);
    vsock.host_ready(id, HUNG_UP); // And after.
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), [Op::Rst]);
    assert_eq!(reap(&mut vsock), 1);
}

#[test]
fn a_thousand_and_twenty_four_connections_and_no_more() {
    let mut vsock = new_vsock();
    let mut clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(&mut vsock)).collect();
    let (_client, stream) = host_pair();
    assert!(vsock.add_stream(Box::new(stream)).is_err());
    let (client, id) = clients.pop().unwrap();
    drop(client);
    vsock.host_ready(id, HUNG_UP);
    let (_client, stream) = host_pair();
    assert!(
        vsock.add_stream(Box::new(stream)).is_err(),
        "not while the VMM holds the old one"
    );
    assert_eq!(reap(&mut vsock), 1);
    let (_client, stream) = host_pair();
    assert!(vsock.add_stream(Box::new(stream)).is_ok());
}

#[test]
fn a_connection_the_guest_opens_is_refused_without_anyone_to_answer() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    guest.send(packet(Op::Request, 1234, 80), &[]);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    let reply = packets[0].0;
    assert_eq!((reply.op, reply.src_port, reply.dst_port), (Op::Rst, 80, 1234));
}

struct Answer(Vec<MemoryStream>);

impl GuestConnect for Answer {
    fn connect(&mut self, _id: ConnectionId, port: u32) -> Option<Box<dyn HostStream>> {
        let stream = self.0.pop().filter(|_| port == 80)?;
        Some(Box::new(stream))
    }
}

#[test]
fn a_connection_the_guest_opens_may_be_answered() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, stream) = host_pair();
    vsock.set_guest_connect(Box::new(Answer(vec![stream])));
    client.send(b"hello");
    let mut socket = Socket {
        guest_port: 1234,
        host_port: 80,
        buf_alloc: 4096,
        ..Socket::default()
    };
    guest.send(socket.header(Op::Request), &[]);
    guest.send(packet(Op::Request, 1235, 81), &[]);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    let ops: Vec<_> = packets
        .iter()
        .map(|(header, _)| (header.op, header.dst_port))
        .collect();
    assert_eq!(ops, [(Op::Rst, 1235), (Op::Response, 1234), (Op::Rw, 1234)]);
    packets[1..]
        .iter()
        .for_each(|packet| assert!(socket.take(packet).is_none()));
    assert_eq!(socket.read(9), b"hello");
    guest.send(socket.header(Op::Rw), b"hi");
    guest.pump(&mut vsock);
    assert_eq!(client.take(), b"hi", "no greeting: the client did not ask");
}

#[test]
fn a_paused_vm_goes_on_where_it_was() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 65536);
    client.send(b"before");
    guest.send(socket.header(Op::Rw), b"in flight");
    let state = vsock.save(); // Saving is all that a pause, or a fork of it, does to the device.
    client.send(b" and after");
    vsock.host_ready(id, READABLE);
    assert_eq!(vsock.save(), state);
    vsock.process_queue(0, &mut guest.queues, &guest.memory).unwrap();
    assert_eq!(client.take(), b"in flight");
    for packet in guest.receive() {
        socket.take(&packet);
    }
    assert_eq!(socket.read(99), b"before and after");
    assert!(!socket.reset);
}

#[test]
fn a_copy_tells_its_guest_of_the_reset_before_anything_else() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (_client, _, socket) = established(&mut vsock, &mut guest, 65536);

    let mut copy_guest = guest.fork();
    let mut copy = Vsock::restore(&vsock.save()).unwrap();
    let (_new_client, _) = connect(&mut copy);
    copy_guest.send(socket.header(Op::Rw), b"to the dead"); // A packet of an inherited connection.
    assert!(copy_guest.pump(&mut copy));
    assert_eq!(copy_guest.events(), [0], "one transport reset");
    assert_eq!(
        copy_guest.receive_ops(),
        [Op::Rst],
        "and no request until the guest took it in"
    );
    copy_guest.pump(&mut copy);
    assert_eq!(copy_guest.receive_ops(), []);
    copy_guest.return_event_buffer();
    copy.process_queue(2, &mut copy_guest.queues, &copy_guest.memory)
        .unwrap();
    let packets = copy_guest.receive();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].0.op, Op::Request);
    assert!(
        packets[0].0.src_port > socket.host_port,
        "a port the guest has not seen"
    );
    assert_eq!(copy_guest.events(), [] as [u32; 0], "once");

    // The original noticed nothing.
    guest.pump(&mut vsock);
    assert_eq!(guest.receive_ops(), []);
    assert_eq!(guest.events(), [] as [u32; 0]);
}

#[test]
fn a_copy_whose_guest_has_no_event_buffer_waits_for_one() {
    let mut guest = Guest::new(8, 4096);
    let state = new_vsock().save();
    // Four generations use up the four buffers of a driver that never gives one back.
    let mut copies: Vec<Vsock> = (0..4).map(|_| Vsock::restore(&state).unwrap()).collect();
    for copy in &mut copies {
        guest.pump(copy);
    }
    let mut copy = Vsock::restore(&state).unwrap();
    let (_client, _) = connect(&mut copy);
    guest.send(packet(Op::Rw, 1, 2), b"stale");
    guest.pump(&mut copy);
    assert_eq!(guest.receive_ops(), [], "not even RST before the reset");
    assert_eq!(guest.events().len(), 4);
    guest.return_event_buffer();
    guest.pump(&mut copy);
    assert_eq!(guest.events(), [0]);
    assert_eq!(guest.receive_ops(), [Op::Rst]);
}

#[test]
fn a_copy_of_a_copy_waits_for_the_last_of_the_resets() {
    let (vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let mut copy = Vsock::restore(&vsock.save()).unwrap();
    guest.pump(&mut copy);
    // Copied again before the guest handled the first reset.
    let mut guest = guest.fork();
    let mut copy = Vsock::restore(&copy.save()).unwrap();
    let (_client, _) = connect(&mut copy);
    guest.pump(&mut copy);
    assert_eq!(guest.events(), [0, 0]);
    guest.return_event_buffer(); // It handled the first...
    guest.pump(&mut copy);
    assert_eq!(guest.receive_ops(), []);
    guest.return_event_buffer(); // ...and now ours.
    guest.pump(&mut copy);
    assert_eq!(guest.receive_ops(), [Op::Request]);
}

#[test]
fn unusable_event_buffers_do_not_swallow_the_reset() {
    let mut guest = Guest::new(8, 4096);
    let mut copy = Vsock::restore(&new_vsock().save()).unwrap();
    // The four good buffers go to four copies; what is left is bad, but for the last one.
    for _ in 0..4 {
        guest.pump(&mut Vsock::restore(&new_vsock().save()).unwrap());
    }
    for (address, len, writable) in [
        (0x4_0100, 3, true),
        (0x4_0100, 4, false),
        (u64::MAX, 4, true),
        (0x4_0200, 4, true),
    ] {
        guest.offer(
            2,
            &[Part {
                address,
                len,
                writable,
            }],
        );
    }
    guest.pump(&mut copy);
    let used: Vec<u32> = std::iter::from_fn(|| guest.take_used(2))
        .map(|(_, len)| len)
        .collect();
    assert_eq!(used, [4, 4, 4, 4, 0, 0, 0, 4]);
}

#[test]
fn a_driver_that_starts_over_needs_no_reset_event_and_loses_its_connections() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(8, 4096));
    let (client, _, socket) = established(&mut vsock, &mut guest, 65536);
    let (waiting, _) = connect(&mut vsock);
    guest.send(packet(Op::Rw, 1, 2), b"stale");
    vsock.reset();
    assert_eq!(reap(&mut vsock), 1);
    assert!(client.is_closed() && !waiting.is_closed());
    let mut guest = Guest::new(8, 4096);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    assert_eq!(packets.len(), 1);
    assert!(packets[0].0.op == Op::Request && packets[0].0.src_port != socket.host_port);
    assert_eq!(guest.events(), [] as [u32; 0]);

    let mut copy = Vsock::restore(&vsock.save()).unwrap();
    copy.reset();
    let mut guest = Guest::new(8, 4096);
    let (_client, _) = connect(&mut copy);
    guest.pump(&mut copy);
    assert_eq!(guest.events(), [] as [u32; 0]);
    assert_eq!(guest.receive_ops(), [Op::Request]);
}

#[test]
fn state_survives_serialization_and_nonsense_is_refused() {
    let state = new_vsock().save();
    let bytes = postcard::to_stdvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<VsockState>(&bytes).unwrap(), state);
    for guest_cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        assert!(
            Vsock::restore(&VsockState {
                guest_cid,
                ..state.clone()
            })
            .is_err()
        );
    }
    // An index no driver comes to must not lock the guest out.
    let mut copy = Vsock::restore(&VsockState {
        reset_handled_at: Some(30_000),
        ..state
    })
    .unwrap();
    let mut guest = Guest::new(8, 4096);
    let (_client, _) = connect(&mut copy);
    guest.pump(&mut copy);
    guest.return_event_buffer();
    guest.pump(&mut copy);
    assert_eq!(guest.receive_ops(), [Op::Request]);
}

#[test]
fn the_transport_finds_what_it_needs() {
    let mut vsock = new_vsock();
    assert_eq!(vsock.device_type(), DeviceType::Vsock);
    assert_eq!(vsock.queue_max_sizes().len(), 3);
    assert_eq!(vsock.features(), 1);
    let mut config = [0xff; 10];
    vsock.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut config = [0xff; 4];
    vsock.read_config(4, &mut config);
    assert_eq!(config, [0; 4]);
    vsock.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 4]);
    let mut guest = Guest::new(1, 4096);
    let result = vsock.process_queue(3, &mut guest.queues, &guest.memory);
    assert!(matches!(result, Err(DeviceError::NoSuchQueue(3))));
    assert!(
        vsock
            .process_queue(0, &mut guest.queues[..2], &guest.memory)
            .is_err()
    );
}
