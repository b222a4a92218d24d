//! The fork port's registers, hammered by a guest, and its mailbox page, read at both ends.

use spore_protocol::fork_port::{Head, PAGE_BYTES, READY, Wake};
use spore_vmm::fork_port::{AfterRead, ForkPort};

use crate::input::Input;

fn mailbox(data: &[u8]) {
    let mut page = data.to_vec();
    if data.len() % 2 == 0 {
        page.resize(PAGE_BYTES, 0);
    }
    let reason = Wake::reason(&page);
    assert!(!reason.contains(char::is_control), "{reason:?}");
    assert!(reason.len() <= 3 * 512, "{} bytes", reason.len());
    if let Ok(Some(head)) = Head::from_page(&page) {
        assert!(
            head.rest
                .env
                .keys()
                .all(|name| !name.is_empty() && !name.contains('='))
        );
    }
    let (at, bytes) = Wake::put_reason(&String::from_utf8_lossy(data));
    assert!(at + bytes.len() <= PAGE_BYTES);
}

fn registers(input: &mut Input<'_>) {
    let asleep = input.u8() % 2 == 0;
    let port = ForkPort::new(asleep).expect("there are descriptors");
    let (mut armed, mut first) = (false, None);
    while !input.is_empty() {
        match input.u8() % 4 {
            0 => {
                armed = input.u8() % 2 == 0;
                port.arm(armed);
            }
            1 => {
                let (offset, length) = (u64::from(input.u8() % 32), usize::from(input.u8() % 9));
                let mut bytes = [0xAA; 8];
                let parks = port.read(offset, &mut bytes[..length]) == AfterRead::Park;
                assert!(!parks || armed, "nobody wanted it to stop");
                armed &= !parks;
            }
            2 => {
                let (offset, length) = (input.u64(), usize::from(input.u8() % 9));
                let mut bytes = [0; 8];
                let _ = ForkPort::offset(offset).map(|offset| port.read(offset, &mut bytes[..length]));
            }
            _ => {
                let (offset, length) = (u64::from(input.u8() % 32), usize::from(input.u8() % 9));
                let bytes = input.take(length);
                port.write(offset, bytes);
                if let (READY, Ok(bytes)) = (offset, <[u8; 4]>::try_from(bytes)) {
                    first.get_or_insert(u32::from_le_bytes(bytes));
                }
            }
        }
        assert_eq!(
            port.reported().ready.map(|(_, value)| value),
            first,
            "the first word counts"
        );
        assert_eq!(port.is_awake(), !asleep || first == Some(0));
    }
}

pub fn run(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => registers(&mut Input::new(rest)),
        _ => mailbox(data),
    }
}
