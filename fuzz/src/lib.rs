//! What a hostile guest, file or manifest can say, said at random.
//!
//! Each module is one target: `run` takes any bytes, and must neither panic, nor take for ever, nor find one of
//! its assertions broken. The programs in `fuzz_targets/` hand them to libFuzzer, and `scripts/fuzz.sh` runs those.
//!
//! [`input`] makes numbers of bytes, [`driver`] a driver that does whatever it is told to a device.

pub mod agent_answers;
pub mod balloon;
pub mod block;
pub mod driver;
pub mod fork_port;
pub mod input;
pub mod ioapic;
pub mod machine_state;
pub mod manifest;
pub mod mmio_registers;
pub mod net;
pub mod virtio_mem;
pub mod vsock;
