//! A guest's place on this host's network.

use std::io;
use std::sync::Arc;

use spore_network::{Attachment, Network, NetworkError, Policy};
use spore_vmm::guest::Plug;

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
        let attachment = network.attach(policy)?;
        let lost = |source: io::Error| NetworkError::System {
            doing: "handing over a TAP device".into(),
            source,
        };
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

    /// What a VM is given.
    pub fn plug(&self) -> &Plug {
        &self.plug
    }

    /// The place itself: its addresses, what went through it.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}
