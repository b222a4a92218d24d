//! From the wire to the guest.

use super::*;

fn post(driver: &mut Driver<Net>, count: usize, size: usize) -> Vec<Chain> {
    (0..count)
        .map(|_| driver.offer(RX, &[Buffer::In(size)]))
        .collect()
}

#[test]
fn a_frame_is_put_into_one_buffer_with_its_header() {
    let (mut driver, wire) = connected();
    let posted = post(&mut driver, 4, 1600);
    driver.kick(RX);
    assert!(driver.wants_frames());
    wire.with(|host| {
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0xaa, 0xaa];
        host.incoming
            .push_back([&header[..], &frame(OTHER, 1514)].concat());
    });
    driver.readable();
    let (head, length) = driver.used(RX).unwrap();
    assert_eq!((head, length), (posted[0].head, 1526));
    let written = driver.written(&posted[0]);
    assert_eq!(written[..12], [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
    assert_eq!(written[12..1526], frame(OTHER, 1514));
    // The next ones are untouched, and in their place.
    assert_eq!(driver.written(&posted[1]), [0xee; 1600]);
    wire.deliver(&frame(OTHER, 60));
    driver.set_used_event(RX, 1);
    driver.readable();
    assert_eq!(driver.used(RX), Some((posted[1].head, 72)));
    let received = driver.counters().received;
    assert_eq!(
        (received.frames, received.bytes, received.dropped()),
        (2, 1574, 0)
    );
    assert_eq!(driver.interrupt.count(), 2);
}

#[test]
fn a_frame_may_span_buffers_and_they_appear_all_at_once() {
    let (mut driver, wire) = connected();
    let mut posted = post(&mut driver, 20, 1536);
    posted.push(driver.offer(RX, &[Buffer::In(5), Buffer::In(6), Buffer::In(2000)]));
    posted.extend(post(&mut driver, 60, 1536));
    driver.kick(RX);
    let frames = [
        frame(OTHER, 30_000),
        frame(OTHER, 60),
        frame(OTHER, MAX_FRAME),
        frame(MAC, 1524),
    ];
    for frame in &frames {
        wire.deliver(frame);
    }
    driver.readable();
    for frame in &frames {
        assert!(driver.received(&posted).as_ref() == Some(frame));
    }
    assert_eq!(driver.received(&posted), None);
    assert_eq!(driver.counters().received.frames, 4);
    assert!(driver.wants_frames());
}

#[test]
fn a_driver_is_interrupted_for_the_buffer_it_waits_for_also_within_a_frame() {
    let (mut driver, wire) = connected();
    let posted = post(&mut driver, 64, 1536);
    driver.set_used_event(RX, 5);
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.interrupt.count(), 0);
    // Buffers 1 to 20: the one waited for is in the middle.
    wire.deliver(&frame(OTHER, 30_000));
    driver.readable();
    assert_eq!(driver.interrupt.count(), 1);
    wire.deliver(&frame(OTHER, 30_000));
    driver.readable();
    assert_eq!(driver.interrupt.count(), 1);
    for _ in 0..3 {
        assert!(driver.received(&posted).is_some());
    }
}

#[test]
fn without_merging_a_frame_has_one_buffer_or_is_dropped() {
    let wire = Wire::default();
    let mut driver = Driver::live_with(Net::new(config(), wire.end()), !(1 << 15));
    let small = post(&mut driver, 3, 1526);
    let large = post(&mut driver, 1, MAX_FRAME + 12);
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 1515));
    wire.deliver(&frame(OTHER, 1514));
    wire.deliver(&frame(OTHER, 60));
    wire.deliver(&frame(OTHER, 60));
    wire.deliver(&frame(OTHER, MAX_FRAME));
    driver.readable();
    for (chain, length) in small.iter().zip([1526, 72, 72]) {
        assert_eq!(driver.used(RX), Some((chain.head, length)));
        assert_eq!(driver.written(chain)[10..12], [1, 0]);
    }
    assert_eq!(driver.used(RX), Some((large[0].head, 65_562)));
    assert!(driver.written(&large[0])[12..] == frame(OTHER, MAX_FRAME));
    let received = driver.counters().received;
    assert_eq!((received.frames, received.too_big), (4, 1));
    // The last buffer is used, so nothing more is read.
    assert!(!driver.wants_frames());
}

#[test]
fn without_buffers_nothing_is_read_until_the_guest_kicks() {
    let (mut driver, wire) = connected();
    wire.deliver(&frame(OTHER, 60));
    assert!(!driver.wants_frames(), "the guest offered nothing yet");
    driver.readable();
    assert_eq!(wire.with(|host| host.reads), 0);
    let posted = post(&mut driver, 1, 1536);
    driver.kick(RX);
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
    assert!(!driver.wants_frames());
    wire.deliver(&frame(OTHER, 61));
    driver.readable();
    assert_eq!(driver.used(RX), None);
    let posted = post(&mut driver, 2, 1536);
    driver.kick(RX);
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 61)));
    assert!(driver.wants_frames());
    assert_eq!(driver.counters().received.dropped(), 0);
}

#[test]
fn a_frame_that_finds_too_few_buffers_waits_for_more_and_is_whole() {
    let (mut driver, wire) = connected();
    let mut posted = post(&mut driver, 3, 1536);
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 30_000));
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.used(RX), None);
    assert!(!driver.wants_frames());
    // The guest is asked to kick for what comes after the three.
    let avail_event = vm_memory::GuestAddress(0x1_8000 + 4 + 8 * u64::from(QUEUE_SIZE));
    let asked: u16 = vm_memory::Bytes::read_obj(&driver.memory, avail_event).unwrap();
    assert_eq!(asked, 3);
    posted.extend(post(&mut driver, 1, 1536));
    driver.kick(RX);
    assert_eq!(driver.used(RX), None);
    posted.extend(post(&mut driver, 40, 1536));
    driver.kick(RX);
    assert!(driver.received(&posted) == Some(frame(OTHER, 30_000)));
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
    assert_eq!(driver.counters().received.dropped(), 0);
}

#[test]
fn a_frame_that_all_of_a_full_ring_cannot_hold_is_dropped() {
    let (mut driver, wire) = connected();
    let posted = post(&mut driver, usize::from(QUEUE_SIZE), 100);
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 30_000));
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
    assert_eq!(driver.received(&posted), None);
    let received = driver.counters().received;
    assert_eq!((received.frames, received.too_big), (1, 1));
}

#[test]
fn what_the_backend_gives_that_is_no_frame_is_dropped() {
    let (mut driver, wire) = connected();
    let posted = post(&mut driver, 50, 1536);
    driver.kick(RX);
    wire.with(|host| {
        host.incoming.extend([
            vec![],
            vec![0; 5],
            vec![0; 25],
            vec![0; MAX_FRAME + 13],
            vec![0; 100_000],
        ]);
    });
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
    let received = driver.counters().received;
    assert_eq!((received.malformed, received.too_big, received.frames), (3, 2, 1));
}

#[test]
fn a_backend_that_only_fails_is_left_alone() {
    let (mut driver, wire) = connected();
    post(&mut driver, 5, 1536);
    driver.kick(RX);
    wire.with(|host| host.broken = true);
    let mut rounds = 0;
    while driver.wants_frames() {
        driver.readable();
        rounds += 1;
        assert!(rounds < 100, "it is watched for ever");
    }
    wire.with(|host| host.broken = false);
    driver.transport.device_mut().set_backend(wire.end()).unwrap();
    assert!(driver.wants_frames());
}

#[test]
fn one_call_receives_so_many_frames_and_no_more() {
    let (mut driver, wire) = connected();
    post(&mut driver, usize::from(QUEUE_SIZE), 100);
    driver.kick(RX);
    // Frames that use up no buffers.
    wire.with(|host| host.incoming.extend(std::iter::repeat_n(vec![0; 5], 1000)));
    driver.readable();
    assert_eq!(wire.with(|host| host.incoming.len()), 1000 - BUDGET);
    assert!(driver.wants_frames());
}
