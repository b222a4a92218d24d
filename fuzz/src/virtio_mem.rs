//! Requests to virtio-mem, and a record of what they may have led to.

use std::collections::BTreeSet;

use spore_devices::virtio::mem::{BackendError, BlockRange, Mem, MemBackend, MemConfig};
use vm_memory::GuestAddress;

use crate::driver::drive;

const BLOCK: u64 = 2 << 20;
const REGION: u64 = 4 << 30;
const BLOCKS: u32 = 64;

/// Blocks that have host memory.
#[derive(Default)]
pub struct Host {
    plugged: BTreeSet<u32>,
    /// Every so many calls one fails.
    fails: u8,
    calls: u32,
}

impl Host {
    fn call(&mut self) -> Result<(), BackendError> {
        self.calls += 1;
        match u32::from(self.fails) {
            0 => Ok(()),
            every if self.calls % every == 0 => Err(BackendError::new("not now")),
            _ => Ok(()),
        }
    }
}

impl MemBackend for Host {
    fn plug(&mut self, range: BlockRange) -> Result<(), BackendError> {
        self.call()?;
        for block in range.blocks() {
            assert!(block.0 < BLOCKS, "{block:?} is not in the region");
            assert!(self.plugged.insert(block.0), "{block:?} plugged twice");
        }
        Ok(())
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), BackendError> {
        self.call()?;
        for block in range.blocks() {
            assert!(self.plugged.remove(&block.0), "{block:?} was not plugged");
        }
        Ok(())
    }
}

pub fn config() -> MemConfig {
    MemConfig::new(GuestAddress(REGION), u64::from(BLOCKS) * BLOCK, BLOCK).expect("a good region")
}

/// That the device, the host and what a checkpoint would say agree.
fn agree(device: &Mem<Host>) {
    let host = &device.backend().plugged;
    assert_eq!(device.plugged_size(), host.len() as u64 * BLOCK);
    assert!(
        device
            .plugged_ranges()
            .flat_map(BlockRange::blocks)
            .map(|block| block.0)
            .eq(host.iter().copied())
    );
    let saved = device.save();
    let again = Mem::restore(config(), &saved, Host::default()).expect("what was saved can be restored");
    assert_eq!(again.save(), saved);
}

pub fn run(data: &[u8]) {
    let host = Host {
        fails: data.last().map_or(0, |byte| byte % 8),
        ..Host::default()
    };
    let driver = drive(Mem::new(config(), host), data, |driver, input| {
        let bytes = u64::from(input.u8()) * BLOCK / 2;
        let taken = driver.transport.device_mut().set_requested_size(bytes);
        assert_eq!(
            taken.is_ok(),
            bytes % BLOCK == 0 && bytes <= u64::from(BLOCKS) * BLOCK
        );
        driver.transport.config_changed().expect("the line is never cut");
        agree(driver.transport.device());
    });
    agree(driver.transport.device());
}
