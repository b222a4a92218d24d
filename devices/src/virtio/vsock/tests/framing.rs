//! A packet may be cut into descriptors anywhere.

use proptest::prelude::*;
use virtio_queue::QueueOwnedT;
use virtio_vsock::packet::VsockPacket;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{HEADER_LEN, Header, MAX_PAYLOAD, Op, PacketBuffer};
use super::super::testing::{Guest, Part, packet};
use super::{READABLE, established, new_vsock};
use crate::virtio::Memory;

#[test]
fn a_payload_in_page_fragments_arrives_as_linux_6_17_sends_it() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(4, 4096));
    let (mut client, _, socket) = established(&mut vsock, &mut guest, 4096);
    let payload: Vec<u8> = (0..MAX_PAYLOAD)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let header = Header {
        len: u32::try_from(MAX_PAYLOAD).unwrap(),
        ..socket.header(Op::Rw)
    };
    let cuts: Vec<usize> = (0..16).map(|page| HEADER_LEN + page * 4096).collect();
    assert!(guest.send_raw(&[&header.to_bytes()[..], &payload].concat(), &cuts));
    guest.pump(&mut vsock);
    assert!(client.take() == payload);
}

#[test]
fn a_receive_buffer_may_be_cut_inside_the_header() {
    let (mut vsock, mut guest) = (new_vsock(), Guest::new(1, 4096));
    let (mut client, id, mut socket) = established(&mut vsock, &mut guest, 4096);
    // Behind the one whole buffer, which takes 4052 bytes, one in pieces, which takes 12.
    let parts = [
        (0x40_0000, 10),
        (0x40_1000, 0),
        (0x40_2000, 40),
        (0x40_3000, 2),
        (0x40_4000, 4),
    ]
    .map(|(address, len)| Part {
        address,
        len,
        writable: true,
    });
    assert!(guest.offer(0, &parts));
    let bytes: Vec<u8> = (0..4064usize).map(|n| n.to_le_bytes()[0]).collect();
    client.send(&bytes);
    vsock.host_ready(id, READABLE);
    guest.pump(&mut vsock);
    let packets = guest.receive();
    packets
        .iter()
        .for_each(|packet| assert!(socket.take(packet).is_none()));
    assert_eq!(
        packets.iter().map(|(header, _)| header.len).collect::<Vec<_>>(),
        [4052, 12]
    );
    assert_eq!(socket.read(5000), bytes);
}

#[test]
fn a_packet_may_lie_across_two_memory_regions() {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap();
    let header = Header {
        len: 100,
        ..packet(Op::Rw, 1, 2)
    };
    let bytes = [&header.to_bytes()[..], &[7; 100]].concat();
    memory.write_slice(&bytes, GuestAddress(0x1000 - 20)).unwrap();
    let mut guest = Guest::new(0, 0);
    guest.offer(
        1,
        &[Part {
            address: 0x1000 - 20,
            len: 144,
            writable: false,
        }],
    );
    let chain = guest.queues[1].iter(&guest.memory).unwrap().next().unwrap();
    let buffer = PacketBuffer::new(chain, &memory, false).unwrap();
    let mut scratch = [0; 200];
    assert_eq!(buffer.read(&memory, &mut scratch), Ok((header, 100)));
    assert_eq!(scratch[..100], [7; 100]);
}

#[test]
fn header_fields_are_where_rust_vmm_has_them() {
    let mut guest = Guest::new(1, 4096);
    let header = Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: 0x1112_1314_1516_1718,
        src_port: 0x2122_2324,
        dst_port: 0x3132_3334,
        len: 3,
        socket_type: 0x4142,
        op: Op::CreditRequest,
        flags: 0x5152_5354,
        buf_alloc: 0x6162_6364,
        fwd_cnt: 0x7172_7374,
    };
    guest.send_raw(&[&header.to_bytes()[..], b"abc"].concat(), &[]);
    let mut chain = guest.queues[1].iter(&guest.memory).unwrap().next().unwrap();
    let oracle = VsockPacket::from_tx_virtq_chain(&guest.memory, &mut chain, 100).unwrap();
    assert_eq!(oracle.src_cid(), header.src_cid);
    assert_eq!(oracle.dst_cid(), header.dst_cid);
    assert_eq!(oracle.src_port(), header.src_port);
    assert_eq!(oracle.dst_port(), header.dst_port);
    assert_eq!(oracle.len(), header.len);
    assert_eq!(oracle.type_(), header.socket_type);
    assert_eq!(oracle.op(), 7);
    assert_eq!(oracle.flags(), header.flags);
    assert_eq!(oracle.buf_alloc(), header.buf_alloc);
    assert_eq!(oracle.fwd_cnt(), header.fwd_cnt);
    assert_eq!(Header::from_bytes(&header.to_bytes()), header);
}

proptest! {
    /// Whatever rust-vmm's parser takes, ours takes, and finds the same in it.
    #[test]
    fn nothing_rust_vmm_reads_is_refused(
        bytes in prop::collection::vec(any::<u8>(), HEADER_LEN..300),
        len in 0u32..300,
        cut in prop::option::of(Just(HEADER_LEN)),
    ) {
        let mut bytes = bytes;
        bytes[24..28].copy_from_slice(&len.to_le_bytes());
        bytes[30..32].copy_from_slice(&5u16.to_le_bytes());
        let mut guest = Guest::new(0, 0);
        guest.send_raw(&bytes, cut.as_slice());
        let chain = guest.queues[1].iter(&guest.memory).unwrap().next().unwrap();
        let mut scratch = [0; 300];
        let ours = PacketBuffer::new(chain.clone(), &guest.memory, false)
            .and_then(|buffer| buffer.read(&guest.memory, &mut scratch));
        if let Ok(theirs) = VsockPacket::from_tx_virtq_chain(&guest.memory, &mut chain.clone(), 300) {
            let (header, len) = ours.unwrap();
            prop_assert_eq!(header.src_cid, theirs.src_cid());
            prop_assert_eq!(header.fwd_cnt, theirs.fwd_cnt());
            prop_assert_eq!(len, theirs.len() as usize);
            let mut payload = vec![0; len];
            if let Some(data) = theirs.data_slice() {
                data.copy_to(&mut payload[..]);
            }
            prop_assert_eq!(&scratch[..len], &payload[..]);
        }
    }

    /// However a packet is cut, it reads the same.
    #[test]
    fn cuts_do_not_matter(payload in prop::collection::vec(any::<u8>(), 0..500), mut cuts in prop::collection::vec(0usize..544, 0..20)) {
        let header = Header { len: u32::try_from(payload.len()).unwrap(), ..packet(Op::Rw, 1, 2) };
        cuts.sort_unstable();
        let mut guest = Guest::new(0, 0);
        prop_assert!(guest.send_raw(&[&header.to_bytes()[..], &payload].concat(), &cuts));
        let chain = guest.queues[1].iter(&guest.memory).unwrap().next().unwrap();
        let buffer = PacketBuffer::new(chain, &guest.memory, false).unwrap();
        let mut scratch = vec![0; 500];
        prop_assert_eq!(buffer.read(&guest.memory, &mut scratch), Ok((header, payload.len())));
        prop_assert_eq!(&scratch[..payload.len()], &payload[..]);
    }
}
