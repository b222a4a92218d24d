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

mod mailbox;

use serde::{Deserialize, Serialize};

pub use mailbox::{Head, MAX_HOSTNAME_BYTES, MailboxError, Wake, check_env, layout};

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
            Self::Network => "configuring the network",
            Self::Hook => "a hook in /etc/spore/on-fork.d",
        })
    }
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
