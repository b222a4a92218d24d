//! Link, muting, checkpoints.

use super::*;
use crate::virtio::{DeviceType, VirtioDevice};

fn status(driver: &mut Driver<Net>) -> u32 {
    driver.get(0x100 + 4) >> 16 & 0xffff
}

fn saved(driver: &Driver<Net>) -> NetState {
    driver.transport.device().save()
}

fn restored(driver: &mut Driver<Net>, config: NetConfig, backend: Option<Box<dyn NetBackend>>) {
    let net = Net::restore(&saved(driver), config, backend).unwrap();
    let state = driver.transport.save();
    driver.restore(net, state).unwrap();
}

#[test]
fn it_is_a_network_card_with_the_address_it_was_given() {
    let (mut driver, _wire) = connected();
    assert_eq!(driver.transport.device().device_type() as u32, 1);
    assert_eq!(DeviceType::Net as u32, 1);
    assert_eq!(driver.get(0x100), u32::from_le_bytes([2, 0, 0, 0]));
    assert_eq!(driver.get(0x104), 1 << 16 | 0x0100);
    assert_eq!(driver.get(0x108) >> 16, 1500);
    assert_eq!(driver.get(0x10c), 0);
}

#[test]
fn offloads_are_set_to_what_the_driver_accepted() {
    let (_driver, wire) = connected();
    let every = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(wire.with(|host| host.offloads), Some(every));
    let wire = Wire::default();
    Driver::live_with(Net::new(config(), wire.end()), 1 << 1 | 1 << 8);
    let some = Offloads {
        checksum: true,
        tso6: true,
        ..Offloads::default()
    };
    assert_eq!(wire.with(|host| host.offloads), Some(some));
}

#[test]
fn a_host_that_cannot_do_what_the_driver_needs_is_no_card() {
    let wire = Wire::default();
    let mut driver = Driver::new(Net::new(config(), wire.end()));
    driver.negotiate(u64::MAX);
    wire.with(|host| host.broken = true);
    driver.set(0x70, 15);
    assert_ne!(driver.get(0x70) & 0x40, 0, "DEVICE_NEEDS_RESET");
    assert!(Net::restore(&saved(&driver), config(), wire.end()).is_err());
}

#[test]
fn without_a_backend_the_link_is_down_and_frames_go_nowhere() {
    let mut driver = Driver::live(Net::new(config(), None));
    assert_eq!(status(&mut driver), 0);
    let chain = driver.send(&packet(&frame(MAC, 60)));
    assert_eq!(driver.used(TX), Some((chain.head, 0)));
    driver.offer(RX, &[Buffer::In(1536)]);
    driver.kick(RX);
    driver.readable();
    assert_eq!(driver.used(RX), None);
    assert!(!driver.wants_frames());
    let sent = driver.counters().sent;
    assert_eq!((sent.unconnected, sent.frames), (1, 0));
}

#[test]
fn a_link_that_changes_is_said_once_and_works_at_once() {
    let mut driver = Driver::live(Net::new(config(), None));
    let posted = [driver.offer(RX, &[Buffer::In(1536)])];
    driver.kick(RX);
    let wire = Wire::default();
    let net = driver.transport.device_mut();
    assert!(!net.take_link_change());
    assert!(net.set_backend(wire.end()).unwrap().is_none());
    assert!(net.take_link_change());
    assert!(!net.take_link_change());
    driver.transport.config_changed().unwrap();
    assert_eq!(
        (status(&mut driver), driver.get(0x60), driver.get(0xfc)),
        (1, 2, 1)
    );
    assert!(driver.wants_frames(), "the guest's buffers were seen before");
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
    driver.send(&packet(&frame(MAC, 60)));
    assert_eq!(wire.sent().len(), 1);
    let net = driver.transport.device_mut();
    assert!(net.set_backend(None).unwrap().is_some());
    assert!(net.take_link_change());
    assert_eq!(status(&mut driver), 0);
}

#[test]
fn a_restored_card_drops_what_its_guest_sends_until_it_is_unmuted() {
    let (mut driver, first) = connected();
    let stale = driver.offer(TX, &[Buffer::Out(&packet(&frame(MAC, 60)))]);
    let posted = [(); 2].map(|()| driver.offer(RX, &[Buffer::In(1536)]));
    let wire = Wire::default();
    wire.deliver(&frame(OTHER, 70));
    restored(&mut driver, config(), wire.end());
    assert!(driver.transport.device().is_muted());
    driver.transport.kick_all(&driver.memory).unwrap();
    assert_eq!(driver.used(TX), Some((stale.head, 0)));
    driver.send(&packet(&frame(MAC, 61)));
    driver.readable();
    assert!(!driver.wants_frames());
    assert_eq!(driver.used(RX), None);
    assert_eq!(driver.counters().sent.muted, 2);

    // Queued and not seen yet when it is opened: still of before.
    driver.offer(TX, &[Buffer::Out(&packet(&frame(MAC, 62)))]);
    driver.transport.device_mut().unmute();
    driver.pump();
    assert!(driver.wants_frames());
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 70)));
    driver.send(&packet(&frame(MAC, 63)));
    assert_eq!(wire.sent(), [packet(&frame(MAC, 63))]);
    assert_eq!(first.sent(), Vec::<Vec<u8>>::new());
    let sent = driver.counters().sent;
    assert_eq!((sent.muted, sent.frames), (3, 1));
}

#[test]
fn unmuting_a_card_that_no_driver_uses_harms_no_later_frame() {
    let wire = Wire::default();
    let fresh = Net::new(config(), None).save();
    let mut net = Net::restore(&fresh, config(), wire.end()).unwrap();
    net.unmute();
    let mut driver = Driver::live(net);
    driver.send(&packet(&frame(MAC, 63)));
    assert_eq!(wire.sent().len(), 1);
    let mut again = Net::new(config(), wire.end());
    again.unmute();
    let mut driver = Driver::live(again);
    driver.send(&packet(&frame(MAC, 63)));
    assert_eq!(wire.sent().len(), 1);
}

#[test]
fn a_restored_card_goes_on_where_the_saved_one_was() {
    let (mut driver, wire) = connected();
    let mut posted: Vec<Chain> = (0..60).map(|_| driver.offer(RX, &[Buffer::In(1536)])).collect();
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 3000));
    driver.readable();
    driver.send(&packet(&frame(MAC, 60)));
    assert!(driver.received(&posted).is_some());
    let other = NetConfig {
        mac: Mac::try_from(OTHER).unwrap(),
        mtu: Mtu::try_from(1400).unwrap(),
        only_mac: Some(Mac::try_from(OTHER).unwrap()),
    };
    let wire = Wire::default();
    restored(&mut driver, other, wire.end());
    driver.transport.device_mut().unmute();
    driver.pump();
    assert!(driver.wants_frames());
    assert_eq!(driver.get(0x104) & 0xffff, 0x0200);
    assert_eq!(driver.get(0x108) >> 16, 1400);
    posted.push(driver.offer(RX, &[Buffer::In(1536)]));
    wire.deliver(&frame(MAC, 20_000));
    driver.readable();
    assert!(driver.received(&posted) == Some(frame(MAC, 20_000)));
    driver.send(&packet(&frame(MAC, 60)));
    driver.send(&packet(&frame(OTHER, 60)));
    assert_eq!(wire.sent(), [packet(&frame(OTHER, 60))]);
}

#[test]
fn a_frame_that_waited_at_a_checkpoint_is_lost_and_the_buffers_are_not() {
    let (mut driver, wire) = connected();
    let mut posted: Vec<Chain> = (0..3).map(|_| driver.offer(RX, &[Buffer::In(1536)])).collect();
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 30_000));
    driver.readable();
    let wire = Wire::default();
    restored(&mut driver, config(), wire.end());
    driver.transport.kick_all(&driver.memory).unwrap();
    driver.transport.device_mut().unmute();
    driver.pump();
    wire.deliver(&frame(OTHER, 4000));
    driver.readable();
    assert!(driver.received(&posted) == Some(frame(OTHER, 4000)));
    posted.push(driver.offer(RX, &[Buffer::In(1536)]));
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
}

#[test]
fn a_restored_guest_hears_of_a_link_that_is_another() {
    for (before, after) in [(true, true), (true, false), (false, true), (false, false)] {
        let wire = Wire::default();
        let backend = |there: bool| if there { wire.end() } else { None };
        let mut driver = Driver::live(Net::new(config(), backend(before)));
        restored(&mut driver, config(), backend(after));
        assert_eq!(driver.transport.device_mut().take_link_change(), before != after);
        assert_eq!(status(&mut driver), u32::from(after));
    }
}

#[test]
fn a_driver_that_starts_over_finds_a_new_card() {
    let (mut driver, wire) = connected();
    (0..3).for_each(|_| drop(driver.offer(RX, &[Buffer::In(1536)])));
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 30_000));
    driver.readable();
    driver.bring_up(u64::MAX);
    assert!(!driver.wants_frames());
    assert!(!driver.transport.device_mut().take_link_change());
    let posted = [driver.offer(RX, &[Buffer::In(1536)])];
    driver.kick(RX);
    wire.deliver(&frame(OTHER, 60));
    driver.readable();
    assert_eq!(driver.received(&posted), Some(frame(OTHER, 60)));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let (driver, wire) = connected();
    let good = saved(&driver);
    assert_eq!(good.config().unwrap(), config());
    let refused = |state: NetState| Net::restore(&state, config(), wire.end()).is_err();
    assert!(!refused(good));
    for wrong in [
        NetState { mac: [0; 6], ..good },
        NetState {
            mac: [0xff; 6],
            ..good
        },
        NetState { mtu: 0, ..good },
        NetState { mtu: 67, ..good },
        NetState {
            only_mac: Some([1; 6]),
            ..good
        },
        NetState {
            features: 1 << 17,
            ..good
        },
        NetState {
            features: u64::MAX,
            ..good
        },
    ] {
        assert!(refused(wrong), "{wrong:?}");
        assert!(postcard::from_bytes::<NetState>(&postcard::to_stdvec(&wrong).unwrap()).is_ok());
    }
    // Merging that was never agreed on: the guest reads nonsense, and the host is none the worse.
    let net = Net::restore(&NetState { features: 0, ..good }, config(), wire.end()).unwrap();
    assert_eq!(net.save().features, 0);
}
