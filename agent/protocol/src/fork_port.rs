//! The fork port: where the agent and the VMM meet without the guest's kernel.
//!
//! One page of registers, whose accesses are exits to the VMM, and one page of guest memory that
//! is not RAM to the kernel, the mailbox. The agent maps both through `/dev/mem`.
//!
//! To be checkpointed the agent reads [`FORK`]; the checkpoint is taken at that read, in guest user
//! mode. In the VM that was checkpointed the read returns and the mailbox is as it was. In every
//! fork it returns too, like `fork(2)` in the child, and the mailbox holds another [`Wake`]: the
//! agent writes [`WOKE`], becomes who the mailbox says it is, and writes [`READY`]. Only then does
//! the host let anything else reach the guest. A fork that could not become so says why in the
//! mailbox ([`Wake::reason`]) before it says so in [`READY`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::network::{Network, NetworkError};

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
/// Register of 64 bits: the host's `CLOCK_REALTIME` at the instant it is read, in nanoseconds since
/// 1970. The one in the mailbox is older: by as much as the host took to let the fork run.
pub const CLOCK: u64 = 0x10;

/// "SPFK", little-endian.
pub const MAGIC_VALUE: u32 = 0x4B46_5053;

/// Longest host name, in bytes (`__NEW_UTS_LEN`).
pub const MAX_HOSTNAME_BYTES: usize = 64;
/// Where in the mailbox page a fork says why a repair failed; before it is the [`Wake`].
const REASON: usize = PAGE_BYTES - REASON_BYTES;
/// How much room there is for it: a `u32` length, little-endian, and text.
const REASON_BYTES: usize = 512;

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
    /// What it shows as `/etc/machine-id`: random, see [`machine_id_text`].
    pub machine_id: [u8; 16],
    /// What it shows as `/proc/sys/kernel/random/boot_id`: random, see [`boot_id_text`].
    pub boot_id: [u8; 16],
    /// Environment of everything that is run in it, over the image's defaults and over what the fork it
    /// is a fork of was given.
    pub env: BTreeMap<String, String>,
    /// How long its hooks may take, all together, in milliseconds.
    pub hooks_limit_ms: u32,
    /// Who it is on its network; without one its interface is taken down, if it was up.
    pub network: Option<Network>,
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
    /// `/etc/machine-id` still is that of another machine.
    MachineId = 6,
    /// The kernel's boot id still is that of another machine.
    BootId = 7,
    /// The environment cannot be one.
    Environment = 8,
    /// A program in `/etc/spore/on-fork.d` failed, or took too long.
    Hook = 9,
    /// Its interface still has another machine's addresses or connections, or not its own.
    Network = 10,
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
            6 => Some(Self::MachineId),
            7 => Some(Self::BootId),
            8 => Some(Self::Environment),
            9 => Some(Self::Hook),
            10 => Some(Self::Network),
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
            Self::MachineId => "giving it a machine id",
            Self::BootId => "giving it a boot id",
            Self::Environment => "setting the environment",
            Self::Hook => "a hook in /etc/spore/on-fork.d",
            Self::Network => "configuring the network",
        })
    }
}

/// A mailbox page that holds no [`Wake`], or a [`Wake`] that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// It does not fit into the page.
    #[error("what a fork is told is {0} bytes, mostly environment; {max} is the most", max = REASON - 4)]
    TooLarge(usize),
    /// Too long, or with a NUL.
    #[error("host name {0:?}: it may have {MAX_HOSTNAME_BYTES} bytes and no NUL")]
    Hostname(String),
    /// This cannot be the name of an environment variable, or not have this value.
    #[error("environment variable {0:?}: its name must not be empty or have '=', and neither NUL")]
    Variable(String),
    /// No machine can be this on a network.
    #[error("network: {0}")]
    Network(#[from] NetworkError),
    /// It is malformed.
    #[error("the mailbox is malformed: {0}")]
    Malformed(#[from] postcard::Error),
}

impl Wake {
    /// A mailbox page: a `u32` length, little-endian, that many bytes of postcard, and no reason yet.
    ///
    /// # Errors
    /// [`MailboxError`].
    pub fn to_page(&self) -> Result<Vec<u8>, MailboxError> {
        self.check()?;
        let body = postcard::to_stdvec(self)?;
        let length = u32::try_from(body.len()).map_err(|_| MailboxError::TooLarge(body.len()))?;
        if body.len() > REASON - 4 {
            return Err(MailboxError::TooLarge(body.len()));
        }
        let mut page = length.to_le_bytes().to_vec();
        page.extend(body);
        page.resize(PAGE_BYTES, 0);
        Ok(page)
    }

    /// The message in a mailbox page; `None` in one that nothing was written to.
    ///
    /// # Errors
    /// [`MailboxError`], but never [`MailboxError::TooLarge`].
    pub fn from_page(page: &[u8]) -> Result<Option<Self>, MailboxError> {
        let Some(body) = counted(page.get(..REASON).unwrap_or(page))? else {
            return Ok(None);
        };
        let wake: Self = postcard::from_bytes(body)?;
        wake.check()?;
        Ok(Some(wake))
    }

    fn check(&self) -> Result<(), MailboxError> {
        if self.hostname.len() > MAX_HOSTNAME_BYTES || self.hostname.contains('\0') {
            return Err(MailboxError::Hostname(self.hostname.clone()));
        }
        if let Some(network) = &self.network {
            network.check()?;
        }
        let bad = |(name, value): &(&String, &String)| {
            name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
        };
        match self.env.iter().find(bad) {
            Some((name, _)) => Err(MailboxError::Variable(name.clone())),
            None => Ok(()),
        }
    }

    /// What a fork writes into its mailbox page to say why a repair failed: at which offset, and what.
    pub fn put_reason(reason: &str) -> (usize, Vec<u8>) {
        let mut end = reason.len().min(REASON_BYTES - 4);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let text = &reason.as_bytes()[..end];
        // A few hundred.
        let length = u32::try_from(text.len()).unwrap_or(0);
        (REASON, [&length.to_le_bytes()[..], text].concat())
    }

    /// Why a repair failed, in the words of a fork that reported it; empty if it did not say. One line
    /// without control characters, whatever the page holds.
    pub fn reason(page: &[u8]) -> String {
        let Ok(Some(text)) = counted(page.get(REASON..).unwrap_or_default()) else {
            return String::new();
        };
        let text = String::from_utf8_lossy(text);
        text.chars().filter(|c| !c.is_control()).collect()
    }
}

/// What a `u32`, little-endian, says the length of; `None` if it is zero.
fn counted(bytes: &[u8]) -> Result<Option<&[u8]>, MailboxError> {
    let (length, rest) = bytes
        .split_first_chunk::<4>()
        .ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 {
        return Ok(None);
    }
    let counted = rest.get(..length);
    Ok(Some(counted.ok_or(postcard::Error::DeserializeUnexpectedEnd)?))
}

/// Sixteen random bytes as `/etc/machine-id` has them, with the newline at its end: machine-id(5).
pub fn machine_id_text(bytes: [u8; 16]) -> [u8; 33] {
    let mut text = [b'\n'; 33];
    for (digits, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(uuid(bytes)) {
        *digits = hex(byte);
    }
    text
}

/// Sixteen random bytes as `/proc/sys/kernel/random/boot_id` has them, with the newline at its end.
pub fn boot_id_text(bytes: [u8; 16]) -> [u8; 37] {
    let mut text = [b'\n'; 37];
    let mut at = 0;
    for (index, byte) in uuid(bytes).into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text[at] = b'-';
            at += 1;
        }
        text[at..at + 2].copy_from_slice(&hex(byte));
        at += 2;
    }
    text
}

/// A random UUID of them: version 4 (RFC 9562, 5.4), as either id has to be.
fn uuid(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    bytes
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
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
            machine_id: [3; 16],
            boot_id: [4; 16],
            env: BTreeMap::from([("A".into(), "1".into()), ("B".into(), String::new())]),
            hooks_limit_ms: 10_000,
            network: Some(crate::network::tests::network()),
        }
    }

    #[test]
    fn what_is_put_into_the_mailbox_comes_out() {
        let page = wake().to_page().unwrap();
        assert_eq!(page.len(), PAGE_BYTES);
        assert_eq!(Wake::from_page(&page).unwrap(), Some(wake()));
        assert_eq!(Wake::from_page(&[0; PAGE_BYTES]).unwrap(), None);
    }

    #[test]
    fn nonsense_in_the_mailbox_is_an_error() {
        assert!(Wake::from_page(&[0xFF; PAGE_BYTES]).is_err());
        assert!(Wake::from_page(&[1]).is_err());
        // A message that would reach into the reason.
        let mut page = wake().to_page().unwrap();
        page[..4].copy_from_slice(&u32::try_from(REASON).unwrap().to_le_bytes());
        assert!(matches!(Wake::from_page(&page), Err(MailboxError::Malformed(_))));
    }

    #[test]
    fn what_cannot_be_is_refused_at_both_ends() {
        let with = |name: &str, value: &str| Wake {
            env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..wake()
        };
        for bad in [with("", "x"), with("A=B", "x"), with("A\0", "x"), with("A", "\0")] {
            assert!(matches!(bad.to_page(), Err(MailboxError::Variable(_))));
            let body = postcard::to_stdvec(&bad).unwrap();
            let mut page = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
            page.extend(body);
            assert!(matches!(Wake::from_page(&page), Err(MailboxError::Variable(_))));
        }
        for name in ["x".repeat(65), "a\0b".to_owned()] {
            let bad = Wake {
                hostname: name,
                ..wake()
            };
            assert!(matches!(bad.to_page(), Err(MailboxError::Hostname(_))));
        }
        let mut bad = wake();
        bad.network.as_mut().unwrap().prefix_len = 32;
        assert!(matches!(bad.to_page(), Err(MailboxError::Network(_))));
        let none = Wake {
            network: None,
            ..wake()
        };
        assert_eq!(Wake::from_page(&none.to_page().unwrap()).unwrap(), Some(none));
        let room = with("A", &"x".repeat(3000));
        assert_eq!(Wake::from_page(&room.to_page().unwrap()).unwrap(), Some(room));
        let large = with("A", &"x".repeat(PAGE_BYTES));
        assert!(matches!(large.to_page(), Err(MailboxError::TooLarge(_))));
    }

    #[test]
    fn a_reason_comes_out_as_one_clean_line_whatever_was_put_in() {
        let mut page = wake().to_page().unwrap();
        assert_eq!(Wake::reason(&page), "");
        let mut put = |reason: &str| {
            let (at, bytes) = Wake::put_reason(reason);
            page[at..at + bytes.len()].copy_from_slice(&bytes);
            assert_eq!(Wake::from_page(&page).unwrap(), Some(wake()));
            Wake::reason(&page)
        };
        assert_eq!(put("10-a exited with 3"), "10-a exited with 3");
        assert_eq!(put("a\x1b[1m\nb"), "a[1mb");
        assert_eq!(put(&"x".repeat(9999)), "x".repeat(REASON_BYTES - 4));
        // Cut between two characters.
        assert_eq!(put(&"é".repeat(400)), "é".repeat((REASON_BYTES - 4) / 2));
        assert_eq!(Wake::reason(&[0xFF; PAGE_BYTES]), "");
        assert_eq!(Wake::reason(&[1]), "");
    }

    #[test]
    fn ids_are_version_4_uuids_in_the_forms_their_files_have() {
        let bytes = std::array::from_fn(|index| u8::try_from(index * 17).unwrap());
        assert_eq!(machine_id_text(bytes), *b"00112233445546778899aabbccddeeff\n");
        assert_eq!(boot_id_text(bytes), *b"00112233-4455-4677-8899-aabbccddeeff\n");
        assert_eq!(
            boot_id_text([0xFF; 16]),
            *b"ffffffff-ffff-4fff-bfff-ffffffffffff\n"
        );
    }

    #[test]
    fn every_repair_has_its_number_and_what_is_not_known_is_unknown() {
        for number in 1..=10 {
            let repair = Repair::from_register(number).unwrap();
            assert_eq!(repair as u32, number);
        }
        assert_eq!(Repair::from_register(0), None);
        assert_eq!(Repair::from_register(u32::MAX), Some(Repair::Unknown));
    }
}
