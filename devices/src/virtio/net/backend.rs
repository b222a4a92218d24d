//! What the host's end of a network card must be able to do.

use std::io;

use vm_memory::VolatileSlice;

/// Where a network card's frames go to and come from. In the VMM, a TAP device.
///
/// Each frame has a `struct virtio_net_hdr_v1` of [`Header::BYTES`](super::header::Header::BYTES) bytes
/// before it (a TAP with `IFF_VNET_HDR` and `TUNSETVNETHDRSZ` 12), so checksums that are not computed
/// yet and segments that are not cut yet go through as they are. Neither call may block.
pub trait NetBackend: Send {
    /// Sends one frame, header first, all of it or nothing (`writev`).
    ///
    /// The slices lie in guest memory, where the guest may change them at any moment; the header and
    /// the Ethernet header do not. There are at most 200 of them, none empty.
    ///
    /// # Errors
    /// The frame was not sent, and will not be: the device counts it as lost. `WouldBlock` too.
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Receives one frame, header first, into `room` (`readv`). Returns its length, at most the room:
    /// what is beyond that is thrown away, and the device takes a frame that fills all of the room for
    /// one that was cut. `num_buffers` of the header need not be set. There are at most 700 slices.
    ///
    /// # Errors
    /// `WouldBlock` where there is no frame. Anything else is counted as a frame lost.
    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Says what the guest's driver can take in what is received: all else must be finished by the host
    /// (`TUNSETOFFLOAD`). Called when the driver has said so, and when the backend is connected.
    ///
    /// # Errors
    /// The host cannot; the device then does not work, rather than give the guest what it can't read.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}

/// Work on frames that one side leaves to the other, for one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be left to be computed.
    pub checksum: bool,
    /// TCP over IPv4 may be left to be cut into segments.
    pub tso4: bool,
    /// TCP over IPv6 may.
    pub tso6: bool,
    /// Such segments may have ECN bits.
    pub ecn: bool,
}
