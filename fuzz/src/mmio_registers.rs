//! The transport's registers and its saved state, with a device behind it that does nothing of its own (virtio-rng).

use spore_devices::virtio::mmio::TransportState;
use spore_devices::virtio::rng::Rng;

use crate::driver::{Driver, drive, memory};
use crate::input::Input;

fn device() -> Rng {
    Rng::new(Box::new(|bytes| {
        bytes.fill(0x5A);
        Ok(())
    }))
}

pub fn run(data: &[u8]) {
    // A state from a file is refused, or makes a device that a driver may go on with.
    if let Some((0xFF, rest)) = data.split_first().map(|(first, rest)| (*first, rest)) {
        if let Ok((state, rest)) = postcard::take_from_bytes::<TransportState>(rest)
            && let Some(mut driver) = Driver::restored(device(), state, memory())
        {
            driver.act(&mut Input::new(rest), |_, _| {});
        }
        return;
    }
    let driver = drive(device(), data, |_, _| {});
    // What was saved of a live one survives its file, and is taken back or refused in good order.
    let saved = driver.transport.save();
    let bytes = postcard::to_allocvec(&saved).expect("it can be written");
    let read: TransportState = postcard::from_bytes(&bytes).expect("it can be read");
    assert_eq!(read, saved);
    if let Some(again) = Driver::restored(device(), read, driver.memory) {
        assert_eq!(again.transport.save(), saved);
    }
}
