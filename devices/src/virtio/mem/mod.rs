//! The virtio memory device (virtio 1.2, 5.15): guest memory that grows and shrinks in blocks.
//!
//! The device owns one region of guest physical address space, cut into blocks of equal size, and
//! the record of which blocks are plugged. The host sets a *requested size*; the guest's driver
//! (`drivers/virtio/virtio_mem.c`) plugs and unplugs blocks of its own choice to come near it, and
//! every one of its requests is answered here. What host memory stands behind a block is the
//! [`MemBackend`]'s business: this folder knows no mappings, no memslots and no KVM.
//!
//! Three choices of ours:
//! - VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE is offered and required. An unplugged block is absent, so a
//!   driver that did not promise to keep its hands off must not run.
//! - The usable region is always the whole region. The specification lets the device start with a
//!   smaller one that grows with the requested size (QEMU: requested size + 256 MiB). That would
//!   bound where a driver plugs, not how much, which the requested size already does; and it would
//!   be one more number that a checkpoint must carry and that may only ever grow. Linux fills the
//!   region from its start, so nothing is won by the smaller one.
//! - A device reset leaves every block as it is (5.15.5.2: "MUST NOT change the state of memory
//!   blocks during device reset"); a driver that finds memory plugged unplugs it itself.

mod backend;
mod block;
mod device;
mod plugged;
mod request;
mod state;

#[cfg(test)]
mod model;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use backend::{BackendError, MemBackend};
pub use block::{BlockIndex, BlockRange, ConfigError, MemConfig};
pub use device::{Mem, SizeError};
pub use plugged::{PluggedBlocks, RangeState};
pub use request::{Request, RequestError, Response};
pub use state::{MemState, RestoreError};
