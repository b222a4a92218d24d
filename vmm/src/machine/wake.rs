//! Telling a fork who it is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spore_protocol::fork_port::{MAILBOX, PAGE_BYTES, Wake};
use spore_protocol::network::Network;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{MachineError, Running, Shared};
use crate::fork_port::realtime_ns;
use crate::random;

/// How long the hooks of a fork may take, all together.
const HOOKS_LIMIT: Duration = Duration::from_secs(10);

/// What a fork is told to be, beside what is drawn for it when it is let go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Identity {
    /// Host name; empty: the one it has.
    pub hostname: String,
    /// Environment of everything that is run in it, over the image's defaults.
    pub env: BTreeMap<String, String>,
    /// Who it is on its network, if it is to have one.
    pub network: Option<Network>,
}

impl Identity {
    /// Whether a fork can be told this, before there is one.
    ///
    /// # Errors
    /// [`MachineError::Identity`].
    pub fn check(&self) -> Result<(), MachineError> {
        page(&told(self)).map(drop)
    }
}

impl Shared {
    /// Writes the mailbox of a machine that is about to wake at its fork port: random bytes and ids
    /// drawn now, the time as of now, who it is asked to be.
    ///
    /// # Errors
    /// [`MachineError::Identity`] when it cannot be what is asked.
    pub(super) fn write_mailbox(&self, identity: &Identity) -> Result<(), MachineError> {
        let page = page(&wake(self.generation, identity))?;
        self.ram
            .view()
            .memory()
            .write_slice(&page, GuestAddress(MAILBOX))?;
        Ok(())
    }
}

impl Running {
    /// Why a repair failed, in the fork's own words; empty if it did not say.
    pub fn why_not_ready(&self) -> String {
        let mut page = [0; PAGE_BYTES];
        let memory = self.ram().view().memory();
        match memory.read_slice(&mut page, GuestAddress(MAILBOX)) {
            Ok(()) => Wake::reason(&page),
            Err(_) => String::new(),
        }
    }
}

fn page(wake: &Wake) -> Result<Vec<u8>, MachineError> {
    wake.to_page()
        .map_err(|error| MachineError::Identity(error.to_string()))
}

/// What a fork is told. Everything random in it is drawn here, from the host's kernel.
fn wake(generation: [u8; 16], identity: &Identity) -> Wake {
    Wake {
        generation,
        entropy: [random::bytes(), random::bytes()],
        realtime_ns: realtime_ns(),
        machine_id: random::bytes(),
        boot_id: random::bytes(),
        ..told(identity)
    }
}

/// The part of it that was asked for; the rest is zero.
fn told(identity: &Identity) -> Wake {
    Wake {
        generation: [0; 16],
        entropy: [[0; 32]; 2],
        realtime_ns: 0,
        hostname: identity.hostname.clone(),
        machine_id: [0; 16],
        boot_id: [0; 16],
        env: identity.env.clone(),
        hooks_limit_ms: u32::try_from(HOOKS_LIMIT.as_millis()).unwrap_or(u32::MAX),
        network: identity.network.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_random_is_drawn_twice_or_before_it_is_asked_for() {
        let identity = Identity::default();
        let wakes: Vec<_> = (0..8).map(|_| wake([1; 16], &identity)).collect();
        let mut drawn = BTreeSet::new();
        for wake in &wakes {
            drawn.insert(wake.entropy[0].to_vec());
            drawn.insert(wake.entropy[1].to_vec());
            drawn.insert(wake.machine_id.to_vec());
            drawn.insert(wake.boot_id.to_vec());
        }
        assert_eq!(drawn.len(), 8 * 4);
        assert!(wakes.is_sorted_by_key(|wake| wake.realtime_ns));
    }

    #[test]
    fn an_identity_may_leave_out_what_is_not_asked_for() {
        assert_eq!(
            serde_json::from_str::<Identity>("{}").unwrap(),
            Identity::default()
        );
        let identity = Identity {
            hostname: "a".into(),
            env: BTreeMap::from([("A".into(), "1".into())]),
            network: None,
        };
        let json = serde_json::to_string(&identity).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
    }
}
