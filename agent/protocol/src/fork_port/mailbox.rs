//! The mailbox page: who a fork is, and why it could not become so.
//!
//! What every fork is told has its place in the page ([`layout`]), ready to be used as it stands: the agent
//! that wakes reads it with a few instructions on few pages, since each page it touches is a fault in a new
//! VM. What only some are told, an environment, follows as postcard, and costs only those.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::network::{Network, NetworkError};

use super::{PAGE_BYTES, boot_id_text, machine_id_text};

/// Where things are in the page, as offsets in bytes. Numbers are little-endian and aligned to their size.
pub mod layout {
    use super::PAGE_BYTES;

    /// `u32`: [`FORMAT_NUMBER`], or 0 in a page that nothing was written to.
    pub const FORMAT: usize = 0x00;
    /// Changes with this layout.
    pub const FORMAT_NUMBER: u32 = 0x5350_0002;
    /// `u32`: how long all hooks together may take, in milliseconds.
    pub const HOOKS_LIMIT_MS: usize = 0x04;
    /// `u64`: the host's `CLOCK_REALTIME` when the fork was let go, nanoseconds since 1970.
    pub const REALTIME_NS: usize = 0x08;
    /// 16 bytes: the VM generation id.
    pub const GENERATION: usize = 0x10;
    /// 64 bytes for the kernel's random numbers.
    pub const ENTROPY: usize = 0x20;
    /// [`MACHINE_ID_BYTES`]: the text of `/etc/machine-id`.
    pub const MACHINE_ID: usize = 0x60;
    /// Its length.
    pub const MACHINE_ID_BYTES: usize = 33;
    /// [`BOOT_ID_BYTES`]: the text of `/proc/sys/kernel/random/boot_id`.
    pub const BOOT_ID: usize = 0x88;
    /// Its length.
    pub const BOOT_ID_BYTES: usize = 37;
    /// `u32`: the length of the host name; 0: the one it has.
    pub const HOSTNAME_BYTES: usize = 0xB0;
    /// The host name, of [`MAX_HOSTNAME_BYTES`](super::MAX_HOSTNAME_BYTES) at most.
    pub const HOSTNAME: usize = 0xB8;
    /// `u32`: the length of the rest, which is postcard; 0: there is none.
    pub const REST_BYTES: usize = 0xF8;
    /// The rest.
    pub const REST: usize = 0x100;
    /// `u32` length and text: why a repair failed. Written by the fork.
    pub const REASON: usize = PAGE_BYTES - 512;
}

/// Longest host name, in bytes (`__NEW_UTS_LEN`).
pub const MAX_HOSTNAME_BYTES: usize = 64;
/// Room for the rest.
const MAX_REST_BYTES: usize = layout::REASON - layout::REST;
/// Room for a reason's text.
const MAX_REASON_BYTES: usize = PAGE_BYTES - layout::REASON - 4;

/// Who a fork is.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Who it is on its network; without one its interface is taken down, if it was up.
    pub network: Option<Network>,
    /// How long its hooks may take, all together, in milliseconds.
    pub hooks_limit_ms: u32,
}

/// What not every fork is told.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// [`Wake::env`].
    pub env: BTreeMap<String, String>,
    /// [`Wake::network`].
    pub network: Option<Network>,
}

/// What the agent needs of a page beside the places that it reads itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// [`Wake::generation`].
    pub generation: [u8; 16],
    /// [`Wake::hooks_limit_ms`].
    pub hooks_limit_ms: u32,
    /// What follows.
    pub rest: Rest,
}

/// A mailbox page that tells nobody who to be, or a [`Wake`] that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// It does not fit into the page.
    #[error("what a fork is told is {0} bytes, mostly environment; {MAX_REST_BYTES} is the most")]
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
    /// Another version's, or nonsense.
    #[error("the mailbox has format {0:#x}, and this agent reads {format:#x}", format = layout::FORMAT_NUMBER)]
    Format(u32),
    /// It is malformed.
    #[error("the mailbox is malformed: {0}")]
    Malformed(#[from] postcard::Error),
}

/// Whether these can be environment variables.
///
/// # Errors
/// [`MailboxError::Variable`].
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), MailboxError> {
    let bad = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match env.iter().find(bad) {
        None => Ok(()),
        Some((name, _)) => Err(MailboxError::Variable(name.clone())),
    }
}

impl Wake {
    /// A mailbox page, with no reason yet.
    ///
    /// # Errors
    /// [`MailboxError`].
    pub fn to_page(&self) -> Result<Vec<u8>, MailboxError> {
        if self.hostname.len() > MAX_HOSTNAME_BYTES || self.hostname.contains('\0') {
            return Err(MailboxError::Hostname(self.hostname.clone()));
        }
        let rest = Rest {
            env: self.env.clone(),
            network: self.network.clone(),
        };
        rest.check()?;
        let rest = match rest == Rest::default() {
            true => Vec::new(),
            false => postcard::to_stdvec(&rest)?,
        };
        if rest.len() > MAX_REST_BYTES {
            return Err(MailboxError::TooLarge(rest.len()));
        }
        let mut page = vec![0; PAGE_BYTES];
        // Every place is inside the page and its content has at most that size, as checked above.
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        // Both lengths are below the page's.
        let number = |length: usize| u32::try_from(length).unwrap_or(0).to_le_bytes();
        put(layout::FORMAT, &layout::FORMAT_NUMBER.to_le_bytes());
        put(layout::HOOKS_LIMIT_MS, &self.hooks_limit_ms.to_le_bytes());
        put(layout::REALTIME_NS, &self.realtime_ns.to_le_bytes());
        put(layout::GENERATION, &self.generation);
        put(layout::ENTROPY, self.entropy.as_flattened());
        put(layout::MACHINE_ID, &machine_id_text(self.machine_id));
        put(layout::BOOT_ID, &boot_id_text(self.boot_id));
        put(layout::HOSTNAME_BYTES, &number(self.hostname.len()));
        put(layout::HOSTNAME, self.hostname.as_bytes());
        put(layout::REST_BYTES, &number(rest.len()));
        put(layout::REST, &rest);
        Ok(page)
    }

    /// What a fork writes into its mailbox page to say why a repair failed: at which offset, and what.
    pub fn put_reason(reason: &str) -> (usize, Vec<u8>) {
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let text = &reason.as_bytes()[..end];
        // A few hundred.
        let length = u32::try_from(text.len()).unwrap_or(0);
        (layout::REASON, [&length.to_le_bytes()[..], text].concat())
    }

    /// Why a repair failed, in the words of a fork that reported it; empty if it did not say. One line
    /// without control characters, whatever the page holds.
    pub fn reason(page: &[u8]) -> String {
        let Ok(text) = counted(page, layout::REASON, layout::REASON + 4, MAX_REASON_BYTES) else {
            return String::new();
        };
        let text = String::from_utf8_lossy(text);
        text.chars().filter(|c| !c.is_control()).collect()
    }
}

impl Head {
    /// Reads a page; `None` in one that nothing was written to.
    ///
    /// # Errors
    /// [`MailboxError`], but never [`MailboxError::TooLarge`].
    pub fn from_page(page: &[u8]) -> Result<Option<Self>, MailboxError> {
        match number(page, layout::FORMAT)? {
            0 => return Ok(None),
            layout::FORMAT_NUMBER => {}
            other => return Err(MailboxError::Format(other)),
        }
        let hostname = counted(page, layout::HOSTNAME_BYTES, layout::HOSTNAME, MAX_HOSTNAME_BYTES)?;
        if hostname.contains(&0) {
            return Err(MailboxError::Hostname(String::from_utf8_lossy(hostname).into()));
        }
        let rest = match counted(page, layout::REST_BYTES, layout::REST, MAX_REST_BYTES)? {
            [] => Rest::default(),
            bytes => postcard::from_bytes(bytes)?,
        };
        rest.check()?;
        let generation = page.get(layout::GENERATION..).and_then(|rest| rest.first_chunk());
        Ok(Some(Self {
            generation: *generation.ok_or(postcard::Error::DeserializeUnexpectedEnd)?,
            hooks_limit_ms: number(page, layout::HOOKS_LIMIT_MS)?,
            rest,
        }))
    }
}

impl Rest {
    fn check(&self) -> Result<(), MailboxError> {
        check_env(&self.env)?;
        Ok(self.network.as_ref().map_or(Ok(()), Network::check)?)
    }
}

fn number(page: &[u8], at: usize) -> Result<u32, postcard::Error> {
    let bytes = page.get(at..).and_then(|rest| rest.first_chunk());
    bytes
        .map(|bytes| u32::from_le_bytes(*bytes))
        .ok_or(postcard::Error::DeserializeUnexpectedEnd)
}

/// The bytes at `at`, whose number is at `length_at`.
fn counted(page: &[u8], length_at: usize, at: usize, most: usize) -> Result<&[u8], postcard::Error> {
    let length = number(page, length_at)? as usize;
    let bytes = (length <= most).then(|| page.get(at..at + length)).flatten();
    bytes.ok_or(postcard::Error::DeserializeUnexpectedEnd)
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
            network: Some(crate::network::tests::network()),
            hooks_limit_ms: 10_000,
        }
    }

    fn with_variable(name: &str, value: &str) -> Wake {
        Wake {
            env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
            ..wake()
        }
    }

    #[test]
    fn everything_a_fork_is_told_is_in_its_place() {
        let page = wake().to_page().unwrap();
        assert_eq!(page.len(), PAGE_BYTES);
        let at = |at: usize, bytes: usize| &page[at..at + bytes];
        assert_eq!(at(layout::REALTIME_NS, 8), 9u64.to_le_bytes());
        assert_eq!(at(layout::ENTROPY, 64), wake().entropy.as_flattened());
        assert_eq!(
            at(layout::MACHINE_ID, layout::MACHINE_ID_BYTES),
            machine_id_text([3; 16])
        );
        assert_eq!(at(layout::BOOT_ID, layout::BOOT_ID_BYTES), boot_id_text([4; 16]));
        assert_eq!(at(layout::HOSTNAME_BYTES, 4), 4u32.to_le_bytes());
        assert_eq!(at(layout::HOSTNAME, 5), b"vm-1\0");
        let head = Head::from_page(&page).unwrap().unwrap();
        assert_eq!((head.generation, head.hooks_limit_ms), ([7; 16], 10_000));
        assert_eq!((head.rest.env, head.rest.network), (wake().env, wake().network));
        assert_eq!(Head::from_page(&[0; PAGE_BYTES]).unwrap(), None);
    }

    #[test]
    fn the_places_do_not_overlap_and_numbers_are_aligned() {
        let places = [
            (layout::FORMAT, 4, 4),
            (layout::HOOKS_LIMIT_MS, 4, 4),
            (layout::REALTIME_NS, 8, 8),
            (layout::GENERATION, 16, 8),
            (layout::ENTROPY, 64, 8),
            (layout::MACHINE_ID, layout::MACHINE_ID_BYTES, 8),
            (layout::BOOT_ID, layout::BOOT_ID_BYTES, 8),
            (layout::HOSTNAME_BYTES, 4, 4),
            (layout::HOSTNAME, MAX_HOSTNAME_BYTES, 8),
            (layout::REST_BYTES, 4, 4),
            (layout::REST, MAX_REST_BYTES, 1),
            (layout::REASON, 512, 4),
        ];
        let mut end = 0;
        for (at, bytes, alignment) in places {
            assert!(at >= end && at % alignment == 0, "{at:#x}");
            end = at + bytes;
        }
        assert_eq!(end, PAGE_BYTES);
    }

    #[test]
    fn nonsense_in_the_mailbox_is_an_error() {
        assert!(matches!(
            Head::from_page(&[0xFF; PAGE_BYTES]),
            Err(MailboxError::Format(_))
        ));
        assert!(Head::from_page(&[1]).is_err());
        let with = |at: usize, bytes: &[u8]| {
            let mut page = wake().to_page().unwrap();
            page[at..at + bytes.len()].copy_from_slice(bytes);
            Head::from_page(&page)
        };
        let most = u32::try_from(MAX_REST_BYTES).unwrap();
        // A rest that would reach into the reason; a name that would into the rest, or ends early.
        assert!(with(layout::REST_BYTES, &(most + 1).to_le_bytes()).is_err());
        assert!(with(layout::HOSTNAME_BYTES, &65u32.to_le_bytes()).is_err());
        assert!(with(layout::HOSTNAME_BYTES, &u32::MAX.to_le_bytes()).is_err());
        assert!(matches!(
            with(layout::HOSTNAME, b"a\0b"),
            Err(MailboxError::Hostname(_))
        ));
        assert!(with(layout::REST, &[0xFF; 8]).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_at_both_ends() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0")] {
            assert!(matches!(
                with_variable(name, value).to_page(),
                Err(MailboxError::Variable(_))
            ));
            let rest = postcard::to_stdvec(&Rest {
                env: with_variable(name, value).env,
                network: None,
            })
            .unwrap();
            let mut page = with_variable("A", "x").to_page().unwrap();
            page[layout::REST..][..rest.len()].copy_from_slice(&rest);
            page[layout::REST_BYTES] = u8::try_from(rest.len()).unwrap();
            assert!(matches!(Head::from_page(&page), Err(MailboxError::Variable(_))));
        }
        for hostname in ["x".repeat(65), "a\0b".to_owned()] {
            let bad = Wake { hostname, ..wake() };
            assert!(matches!(bad.to_page(), Err(MailboxError::Hostname(_))));
        }
        let mut bad = wake();
        bad.network.as_mut().unwrap().prefix_len = 32;
        assert!(matches!(bad.to_page(), Err(MailboxError::Network(_))));
        let room = with_variable("A", &"x".repeat(3000));
        let head = Head::from_page(&room.to_page().unwrap()).unwrap().unwrap();
        assert_eq!(head.rest.env, room.env);
        let large = with_variable("A", &"x".repeat(PAGE_BYTES));
        assert!(matches!(large.to_page(), Err(MailboxError::TooLarge(_))));
    }

    #[test]
    fn a_reason_comes_out_as_one_clean_line_whatever_was_put_in() {
        let mut page = wake().to_page().unwrap();
        assert_eq!(Wake::reason(&page), "");
        let mut put = |reason: &str| {
            let (at, bytes) = Wake::put_reason(reason);
            page[at..at + bytes.len()].copy_from_slice(&bytes);
            assert_eq!(Head::from_page(&page).unwrap().unwrap().rest.env, wake().env);
            Wake::reason(&page)
        };
        assert_eq!(put("10-a exited with 3"), "10-a exited with 3");
        assert_eq!(put("a\x1b[1m\nb"), "a[1mb");
        assert_eq!(put(&"x".repeat(9999)), "x".repeat(MAX_REASON_BYTES));
        // Cut between two characters.
        assert_eq!(put(&"é".repeat(400)), "é".repeat(MAX_REASON_BYTES / 2));
        assert_eq!(Wake::reason(&[0xFF; PAGE_BYTES]), "");
        assert_eq!(Wake::reason(&[1]), "");
    }
}
