//! Random bytes from the host's kernel.

/// `N` fresh random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            // Only EINTR is possible: the pool is initialised long before we run, and the flags are valid.
            Err(_) => continue,
        }
    }
    bytes
}

/// The same as a device's entropy source.
pub fn source() -> spore_devices::virtio::rng::EntropySource {
    Box::new(|bytes| {
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}
