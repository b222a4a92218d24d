//! TAP interfaces: one file descriptor, one interface, and they go together.
//! (`Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`)

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;

use crate::name::IfName;

pub(crate) const DEVICE: &str = "/dev/net/tun";
/// Bytes of `struct virtio_net_hdr_v1` before each frame (virtio 1.2, 5.1.6).
pub const HEADER_BYTES: usize = 12;
/// What a TAP's MTU can be at most (`drivers/net/tun.c`: 65535 less the Ethernet header).
pub(crate) const MAX_MTU: u16 = 65521;

const CHECKSUM_AND_TCP: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// Since Linux 6.2.
const UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Why there is no TAP.
#[derive(Debug)]
pub(crate) enum TapError {
    NameInUse,
    NoDevice(io::Error),
    System(&'static str, io::Error),
}

/// Makes the interface `name`, and returns the descriptor that keeps it, and its offloads (`TUN_F_*`).
///
/// It isn't persistent: it goes when the last descriptor does.
pub(crate) fn create(name: &IfName) -> Result<(OwnedFd, u32), TapError> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(TapError::NoDevice)?;

    // SAFETY: ifreq is plain bytes, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from.cast_signed();
    }
    // All below 0x8000 but for the last, which is the sign bit of a short.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    #[allow(clippy::cast_possible_truncation)]
    {
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
    }
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    match check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }) {
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            return Err(TapError::NameInUse);
        }
        other => other.map_err(|error| TapError::System("making a TAP (TUNSETIFF)", error))?,
    }
    let header: libc::c_int = 12;
    const _: () = assert!(HEADER_BYTES == 12);
    // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
        .map_err(|error| TapError::System("setting a TAP's header size (TUNSETVNETHDRSZ)", error))?;

    for offloads in [CHECKSUM_AND_TCP | UDP, CHECKSUM_AND_TCP, 0] {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let set = check(unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            )
        });
        if set.is_ok() {
            return Ok((file.into(), offloads));
        }
    }
    Ok((file.into(), 0))
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
