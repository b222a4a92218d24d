//! What a network card is connected to: a TAP device, or nothing.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use spore_devices::virtio::net::{Mac, Mtu, NetBackend, NetConfig, Offloads};
use spore_protocol::network::Network;
use vm_memory::VolatileSlice;

/// Features of a TAP (include/uapi/linux/if_tun.h).
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54D0;

/// A TAP device, of which each read and write is one frame, with a `struct virtio_net_hdr_v1` before it
/// (`IFF_VNET_HDR`, `TUNSETVNETHDRSZ` 12), and neither blocks.
pub struct Tap(Arc<OwnedFd>);

impl Tap {
    /// Of an open TAP.
    ///
    /// # Errors
    /// When it cannot be made not to block.
    pub fn new(descriptor: Arc<OwnedFd>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Self(descriptor))
    }
}

/// What the kernel reads from or writes to: guest memory, which stays mapped for as long as there is a device.
fn vectors(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let vector = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().map(vector).collect()
}

fn transferred(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl NetBackend for Tap {
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let vectors = vectors(frame);
        let count = i32::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: the vectors are those of live slices of mapped guest memory, which only the kernel reads here.
        transferred(unsafe { libc::writev(self.0.as_raw_fd(), vectors.as_ptr(), count) }).map(drop)
    }

    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let vectors = vectors(room);
        let count = i32::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: as in `send`; what the kernel writes is guest memory, which nobody holds a reference to.
        transferred(unsafe { libc::readv(self.0.as_raw_fd(), vectors.as_ptr(), count) })
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let flag = |wanted: bool, flag: libc::c_ulong| if wanted { flag } else { 0 };
        let flags = flag(offloads.checksum, TUN_F_CSUM)
            | flag(offloads.tso4, TUN_F_TSO4)
            | flag(offloads.tso6, TUN_F_TSO6)
            | flag(offloads.ecn, TUN_F_TSO_ECN);
        // SAFETY: this ioctl takes an integer.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETOFFLOAD, flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Nowhere: what is sent is gone, and nothing comes. A card that is connected to it has its link up, so that a fork
/// that gets a network needs no interrupt to hear of it; one without has an interface that is not configured.
pub struct Nowhere;

impl NetBackend for Nowhere {
    fn send(&mut self, _: &[VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// The address of a card that nobody has given one: of the locally administered ones.
const NO_MAC: [u8; 6] = [0x02, 0x53, 0x50, 0, 0, 1];

/// What a card is on its link: as it was asked for, or what a guest finds that may never have a network.
///
/// # Errors
/// An address or an MTU that is none.
pub fn config(spec: Option<&Network>) -> io::Result<NetConfig> {
    let invalid =
        |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
    let mac = Mac::try_from(spec.map_or(NO_MAC, |spec| spec.mac)).map_err(|error| invalid(&error))?;
    let mtu = spec.map_or(Ok(Mtu::ETHERNET), |spec| Mtu::try_from(spec.mtu));
    Ok(NetConfig {
        mac,
        mtu: mtu.map_err(|error| invalid(&error))?,
        only_mac: spec.map(|_| mac),
    })
}
