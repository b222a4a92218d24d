//! Telling a fork who it is.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use spore_protocol::fork_port::{MAILBOX, Wake};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{MachineError, Shared};
use crate::random;

/// Who a fork is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Its host name; empty: the one it has.
    pub hostname: String,
    /// Variables over the image's, for every command in it.
    pub env: BTreeMap<String, String>,
}

impl Shared {
    /// Writes the mailbox of a machine that is about to wake at its fork port: fresh random bytes,
    /// the time as of now, its host name. Nothing for a machine that was not saved there.
    ///
    /// # Errors
    /// [`MachineError::Device`] when the name is too long for the mailbox.
    pub(super) fn write_mailbox(&self, identity: &Identity) -> Result<(), MachineError> {
        if self.port.is_awake() {
            return Ok(());
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wake = Wake {
            generation: self.generation,
            entropy: [random::bytes(), random::bytes()],
            realtime_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
            hostname: identity.hostname.clone(),
        };
        let page = wake.to_page().map_err(|error| MachineError::Device {
            device: "the fork port",
            why: error.to_string(),
        })?;
        self.ram
            .view()
            .memory()
            .write_slice(&page, GuestAddress(MAILBOX))?;
        Ok(())
    }
}
