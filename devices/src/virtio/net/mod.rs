//! Network card (virtio 1.2, section 5.1): Ethernet frames between the guest and a [`NetBackend`].
//!
//! The device is a pure state machine. It opens nothing, starts no thread and reads no clock; frames
//! go from and to guest memory through slices that the backend may hand to `writev` and `readv`, so
//! nothing is copied here but the first 26 bytes of what the guest sends: those are checked, and what
//! was checked is what is sent, whatever the guest writes over it meanwhile.
//!
//! One receive queue, one transmit queue, no control queue. Checksum and TCP segmentation offloads go
//! through to the backend; receive buffers may be merged.
//!
//! - [`backend`]: what the host's end must be able to do.
//! - [`config`]: features, MAC, MTU and the configuration space.
//! - [`header`]: the header before each frame becomes a typed one, or a refusal.
//! - `buffers`: descriptor chains become slices of guest memory.
//! - `transmit`, `receive`: the two queues.
//! - [`counters`]: what went through and what did not.
//! - [`device`]: the device model, its link and its muting.
//! - [`state`]: the device at rest.
//!
//! What bounds it: [`BUDGET`] frames a call, 64 descriptors a chain, [`MAX_FRAME`] bytes a frame, and
//! one frame that waits for guest buffers.

pub mod backend;
mod buffers;
pub mod config;
pub mod counters;
pub mod device;
pub mod header;
mod receive;
pub mod state;
mod transmit;

#[cfg(test)]
mod tests;

pub use backend::{NetBackend, Offloads};
pub use config::{InvalidMac, InvalidMtu, Mac, Mtu, NetConfig};
pub use counters::{Counters, ReceiveCounters, SendCounters};
pub use device::Net;
pub use state::{NetState, RestoreError};

/// The receive queue (virtio 1.2, 5.1.2).
pub const RX: usize = 0;
/// The transmit queue.
pub const TX: usize = 1;
/// Descriptors of either queue.
pub const QUEUE_SIZE: u16 = 256;
/// Most frames one call moves each way, so that a busy guest cannot keep the VMM's I/O thread.
pub const BUDGET: usize = QUEUE_SIZE as usize;
/// Bytes of an Ethernet header, and so of the shortest frame.
pub const ETHERNET_HEADER: usize = 14;
/// Bytes of the longest frame, without the virtio header: 65550 (virtio 1.2, 5.1.6.3.1).
pub const MAX_FRAME: usize = 65_550;
