//! Telling a fork who it is.

use std::time::{SystemTime, UNIX_EPOCH};

use spore_protocol::fork_port::{MAILBOX, Wake};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{Machine, MachineError};
use crate::random;

impl Machine {
    /// Writes the mailbox of a machine that is about to wake at its fork port: fresh random bytes,
    /// the time as of now, its host name. Nothing for a machine that was not saved there.
    ///
    /// # Errors
    /// [`MachineError::Device`] when the name is too long for the mailbox.
    pub fn write_mailbox(&self, hostname: &str) -> Result<(), MachineError> {
        if self.shared.port.is_awake() {
            return Ok(());
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wake = Wake {
            generation: self.shared.generation,
            entropy: [random::bytes(), random::bytes()],
            realtime_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
            hostname: hostname.to_owned(),
        };
        let page = wake.to_page().map_err(|error| MachineError::Device {
            device: "the fork port",
            why: error.to_string(),
        })?;
        self.shared
            .ram
            .view()
            .memory()
            .write_slice(&page, GuestAddress(MAILBOX))?;
        Ok(())
    }
}
