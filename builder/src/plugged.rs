//! A guest's place on this host's network.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use spore_network::{Attachment, Network, NetworkError, Policy};
use spore_vmm::guest::{Plug, Someone};
use spore_vmm::machine::Identity;

fn lost(source: io::Error) -> NetworkError {
    NetworkError::System {
        doing: "handing over a TAP device".into(),
        source,
    }
}

/// An attachment to the network, and the end of it that a VM is given. Dropping it takes the guest off the network,
/// whoever still has its TAP device open.
#[derive(Debug)]
pub struct Plugged {
    attachment: Attachment,
    plug: Plug,
}

impl Plugged {
    /// A new place on `network`.
    ///
    /// # Errors
    /// What is wrong with the policy or with the host; nothing is left then.
    pub fn new(network: &Network, policy: &Policy) -> Result<Self, NetworkError> {
        Self::of(network.attach(policy)?)
    }

    fn of(attachment: Attachment) -> Result<Self, NetworkError> {
        let tap = attachment
            .tap()
            .ok_or_else(|| lost(io::ErrorKind::NotFound.into()))?;
        let tap = tap.try_clone_to_owned().map_err(lost)?;
        let interface = attachment.interface();
        let plug = Plug {
            tap: Arc::new(tap),
            network: spore_protocol::network::Network {
                mac: interface.mac,
                address: interface.address,
                prefix_len: interface.prefix_length,
                gateway: interface.gateway,
                dns: interface
                    .dns
                    .iter()
                    .copied()
                    .take(spore_protocol::network::MAX_DNS)
                    .collect(),
                mtu: interface.mtu,
            },
        };
        Ok(Self { attachment, plug })
    }

    /// Takes over a place from the descriptors it was kept with ([`Plugged::descriptors`]).
    ///
    /// # Errors
    /// When they are not those of a place on `network`; it is nobody's then, and goes.
    pub fn adopt(network: &Network, descriptors: Vec<OwnedFd>) -> Result<Self, NetworkError> {
        let mut descriptors = descriptors.into_iter();
        let (Some(lease), tap) = (descriptors.next(), descriptors.next()) else {
            return Err(lost(io::ErrorKind::NotFound.into()));
        };
        Self::of(network.adopt(lease, tap)?)
    }

    /// What keeps the place when this process ends, for somebody to hold until the next one [adopts](Plugged::adopt) it.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.attachment
            .lease()
            .into_iter()
            .chain(self.attachment.tap())
            .collect()
    }

    /// Lets go of the place without leaving it: somebody else has its descriptors.
    pub fn release(self) {
        drop(self.attachment.into_parts());
    }

    /// Somebody at this place; without one, on no network.
    pub fn someone(place: Option<&Self>, identity: Identity) -> Someone {
        match place {
            Some(plugged) => Someone::on(identity, plugged.plug.clone()),
            None => identity.into(),
        }
    }

    /// What a VM is given.
    pub fn plug(&self) -> &Plug {
        &self.plug
    }

    /// The place itself: its addresses, what went through it.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}
