//! The device at rest, and what a restored one is checked for.

use serde::{Deserialize, Serialize};

use super::config::{InvalidMac, InvalidMtu, Mac, Mtu, NetConfig, OFFERED};

/// A network card at rest. Frames are not in it: those that were on their way are lost, as on any link.
/// Untrusted until [`Net::restore`](super::Net::restore) took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The address in the configuration space.
    pub mac: [u8; 6],
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// The only source address that was let through.
    pub only_mac: Option<[u8; 6]>,
    /// Features of this device that the driver accepted, if it set DRIVER_OK.
    pub features: u64,
    /// The link was up when the driver was told of it last.
    pub link_up: bool,
}

/// Why a saved network card was refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// An address that is none.
    #[error(transparent)]
    Mac(#[from] InvalidMac),
    /// An MTU that is none.
    #[error(transparent)]
    Mtu(#[from] InvalidMtu),
    /// Features were accepted that are not offered.
    #[error("the driver accepted features {0:#x}, which a network card does not offer")]
    FeaturesNotOffered(u64),
    /// The backend does not do for the guest what it was promised.
    #[error("the network's backend: {0}")]
    Backend(#[from] std::io::Error),
}

impl NetState {
    /// What the card was on its link, as the guest that was saved knows it.
    ///
    /// # Errors
    /// [`RestoreError`]: it could not have been that.
    pub fn config(&self) -> Result<NetConfig, RestoreError> {
        Ok(NetConfig {
            mac: Mac::try_from(self.mac)?,
            mtu: Mtu::try_from(self.mtu)?,
            only_mac: self.only_mac.map(Mac::try_from).transpose()?,
        })
    }

    pub(super) fn check_features(&self) -> Result<(), RestoreError> {
        match self.features & !OFFERED {
            0 => Ok(()),
            foreign => Err(RestoreError::FeaturesNotOffered(foreign)),
        }
    }
}
