//! The fork port: where the agent and the VMM meet without the guest's kernel.
//!
//! One page of registers, whose accesses are exits to the VMM, and one page of guest memory that
//! is not RAM to the kernel, the mailbox. The agent maps both through `/dev/mem`.
//!
//! To be checkpointed the agent reads [`FORK`]; the checkpoint is taken at that read, in guest user
//! mode. In the VM that was checkpointed the read returns and the mailbox is as it was. In every
//! fork it returns too, like `fork(2)` in the child, and the mailbox holds another [`Wake`]: the
//! agent writes [`WOKE`], becomes who the mailbox says it is, and writes [`READY`]. Only then does
//! the host let anything else reach the guest.

use serde::{Deserialize, Serialize};

/// Guest-physical address of the register page.
pub const REGISTERS: u64 = 0xD010_0000;
/// Guest-physical address of the mailbox page.
pub const MAILBOX: u64 = 0x9_E000;
/// Size of either, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Register: reads as [`MAGIC_VALUE`].
pub const MAGIC: u64 = 0x00;
/// Register: reading it is the place to be checkpointed at.
pub const FORK: u64 = 0x04;
/// Register: written first thing in a fork.
pub const WOKE: u64 = 0x08;
/// Register: written when the fork is who it should be; the value is a [`Repair`] that failed, or 0.
pub const READY: u64 = 0x0C;

/// "SPFK", little-endian.
pub const MAGIC_VALUE: u32 = 0x4B46_5053;

/// Who a fork is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// The VM generation id: random, and another in every fork. All zero before the first one.
    pub generation: [u8; 16],
    /// Fresh random bytes for the kernel, in two halves.
    pub entropy: [[u8; 32]; 2],
    /// The host's `CLOCK_REALTIME` when the fork was let go, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// The host name it is to have; empty: the one it has.
    pub hostname: String,
}

/// What the agent repairs in a fork, as the value it writes to [`READY`] when it could not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Repair {
    /// The mailbox could not be understood.
    Mailbox = 1,
    /// The kernel did not take the random bytes.
    Entropy = 2,
    /// The clock could not be set.
    Clock = 3,
    /// The host name could not be set.
    Hostname = 4,
    /// Something this host does not know.
    Unknown = 5,
}

impl Repair {
    /// The repair that a non-zero value of [`READY`] means.
    pub fn from_register(value: u32) -> Option<Self> {
        match value {
            0 => None,
            1 => Some(Self::Mailbox),
            2 => Some(Self::Entropy),
            3 => Some(Self::Clock),
            4 => Some(Self::Hostname),
            _ => Some(Self::Unknown),
        }
    }
}

impl std::fmt::Display for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mailbox => "reading the mailbox",
            Self::Entropy => "reseeding the kernel's random numbers",
            Self::Clock => "setting the clock",
            Self::Hostname => "setting the host name",
            Self::Unknown => "a repair this host does not know",
        })
    }
}

/// A mailbox page that holds no [`Wake`].
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// It does not fit into the page.
    #[error("a wake message of {0} bytes does not fit into the mailbox")]
    TooLarge(usize),
    /// It is malformed.
    #[error("the mailbox is malformed: {0}")]
    Malformed(#[from] postcard::Error),
}

impl Wake {
    /// The bytes of a mailbox page: a `u32` length, little-endian, and that many of postcard.
    ///
    /// # Errors
    /// [`MailboxError::TooLarge`].
    pub fn to_page(&self) -> Result<Vec<u8>, MailboxError> {
        let body = postcard::to_stdvec(self)?;
        let length = u32::try_from(body.len()).map_err(|_| MailboxError::TooLarge(body.len()))?;
        let mut page = length.to_le_bytes().to_vec();
        page.extend(body);
        if page.len() > PAGE_BYTES {
            return Err(MailboxError::TooLarge(page.len()));
        }
        Ok(page)
    }

    /// The message in a mailbox page; `None` in one that nothing was written to.
    ///
    /// # Errors
    /// [`MailboxError::Malformed`].
    pub fn from_page(page: &[u8]) -> Result<Option<Self>, MailboxError> {
        let (length, rest) = page
            .split_first_chunk::<4>()
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 {
            return Ok(None);
        }
        let body = rest
            .get(..length)
            .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        Ok(Some(postcard::from_bytes(body)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wake() -> Wake {
        Wake {
            generation: [7; 16],
            entropy: [[1; 32], [2; 32]],
            realtime_ns: 9,
            hostname: "vm-1".into(),
        }
    }

    #[test]
    fn what_is_put_into_the_mailbox_comes_out() {
        let mut page = wake().to_page().unwrap();
        page.resize(PAGE_BYTES, 0xAA);
        assert_eq!(Wake::from_page(&page).unwrap(), Some(wake()));
        assert_eq!(Wake::from_page(&[0; PAGE_BYTES]).unwrap(), None);
    }

    #[test]
    fn nonsense_in_the_mailbox_is_an_error() {
        assert!(Wake::from_page(&[0xFF; PAGE_BYTES]).is_err());
        assert!(Wake::from_page(&[1]).is_err());
        let long = Wake {
            hostname: "x".repeat(PAGE_BYTES),
            ..wake()
        };
        assert!(matches!(long.to_page(), Err(MailboxError::TooLarge(_))));
    }
}
