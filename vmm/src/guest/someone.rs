//! Who a fork is asked to be, with what that needs of the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use spore_protocol::network::Network;

use super::GuestError;
use crate::machine::Identity;

/// An end of a network on this host, and who a guest is on it.
#[derive(Clone, Debug)]
pub struct Plug {
    /// A TAP device with `IFF_VNET_HDR` and headers of 12 bytes (`TUNSETVNETHDRSZ`).
    pub tap: Arc<OwnedFd>,
    /// What the guest is on it.
    pub network: Network,
}

/// An identity, and the network it is on, if any.
#[derive(Clone, Debug, Default)]
pub struct Someone {
    identity: Identity,
    tap: Option<Arc<OwnedFd>>,
}

impl Someone {
    /// On a network.
    pub fn on(identity: Identity, plug: Plug) -> Self {
        Self {
            identity: Identity {
                network: Some(plug.network),
                ..identity
            },
            tap: Some(plug.tap),
        }
    }

    /// Whether a fork can be this, before one is made.
    ///
    /// # Errors
    /// [`GuestError::CannotBe`].
    pub fn check(&self) -> Result<(), GuestError> {
        let checked = self.identity.check();
        checked.map_err(|error| GuestError::CannotBe {
            why: error.to_string(),
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity.clone()
    }

    pub(super) fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.tap.as_deref().map(AsFd::as_fd)
    }
}

impl From<Identity> for Someone {
    fn from(identity: Identity) -> Self {
        Self { identity, tap: None }
    }
}

impl From<&Identity> for Someone {
    fn from(identity: &Identity) -> Self {
        identity.clone().into()
    }
}

impl From<&Someone> for Someone {
    fn from(someone: &Someone) -> Self {
        someone.clone()
    }
}
