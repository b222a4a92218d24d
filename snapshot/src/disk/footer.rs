//! The end of a layer file: where the state table is, and proof that both were written whole.
//!
//! ```text
//! 0                 virtual size   table offset          end - 128      end
//! │ cluster 0, 1, …        │ zero    │ state table │ footer              │
//! ```
//!
//! The table starts at the virtual size rounded up to a cluster. All numbers are little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic, `SPORELYR` sealed or `SPOREOVL` open |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | cluster size in bytes, 65536 |
//! | 16 | 8 | virtual size in bytes |
//! | 24 | 8 | length of the table in bytes |
//! | 32 | 32 | BLAKE3 of the table; of a durable overlay still open, zeroes |
//! | 64 | 32 | zeroes |
//! | 96 | 32 | BLAKE3 of the 96 bytes before |

use super::cluster::{CLUSTER, MAX_VIRTUAL_SIZE, SECTOR, StateTable, cluster_count};
use crate::Digest;

/// Bytes of a footer.
pub(crate) const FOOTER_LEN: u64 = 128;
/// The one version there is.
pub(crate) const VERSION: u32 = 1;

const SEALED: &[u8; 8] = b"SPORELYR";
const OPEN: &[u8; 8] = b"SPOREOVL";

/// A footer that was checked: the sizes agree with each other and with the file's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// BLAKE3 of the packed state table; `None` while the overlay is open.
    pub table_digest: Option<Digest>,
}

/// Why 128 bytes are not a footer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadFooter {
    /// Something does not fit, at this offset from the footer's start.
    Wrong(u64, String),
    /// A version this build does not read.
    Version(u32),
}

impl Footer {
    /// Where the state table starts.
    pub fn table_offset(virtual_size: u64) -> u64 {
        cluster_count(virtual_size) * CLUSTER
    }

    /// The length of the table.
    pub fn table_len(virtual_size: u64) -> u64 {
        StateTable::packed_len(cluster_count(virtual_size))
    }

    /// The length of the whole file.
    pub fn file_len(virtual_size: u64) -> u64 {
        Self::table_offset(virtual_size) + Self::table_len(virtual_size) + FOOTER_LEN
    }

    /// The bytes to write.
    pub fn encode(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        bytes[..8].copy_from_slice(if self.table_digest.is_some() { SEALED } else { OPEN });
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&CLUSTER.to_le_bytes()[..4]);
        bytes[16..24].copy_from_slice(&self.virtual_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&Self::table_len(self.virtual_size).to_le_bytes());
        if let Some(digest) = self.table_digest {
            bytes[32..64].copy_from_slice(digest.as_bytes());
        }
        let check = Digest::of(&bytes[..96]);
        bytes[96..].copy_from_slice(check.as_bytes());
        bytes
    }

    /// The footer that the last 128 bytes of a file of `file_len` bytes are.
    pub fn decode(bytes: &[u8; 128], file_len: u64) -> Result<Self, BadFooter> {
        let wrong = |at, what: String| Err(BadFooter::Wrong(at, what));
        let magic = &bytes[..8];
        if magic != SEALED && magic != OPEN {
            return wrong(0, "no layer footer found (cut off, or not a layer)".into());
        }
        // The version is looked at before the checksum: another version may well have another checksum.
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(BadFooter::Version(version));
        }
        let expected = Digest::of(&bytes[..96]);
        if bytes[96..] != expected.as_bytes()[..] {
            return wrong(96, format!("the footer's checksum should be {expected}"));
        }
        let cluster = u64::from(u32::from_le_bytes(array(bytes, 12)));
        if cluster != CLUSTER {
            return wrong(12, format!("the cluster size is {cluster}, not {CLUSTER}"));
        }
        let virtual_size = u64::from_le_bytes(array(bytes, 16));
        if virtual_size == 0 || virtual_size > MAX_VIRTUAL_SIZE || !virtual_size.is_multiple_of(SECTOR) {
            return wrong(16, format!("{virtual_size} bytes cannot be a disk's size"));
        }
        let table_len = u64::from_le_bytes(array(bytes, 24));
        if table_len != Self::table_len(virtual_size) {
            return wrong(
                24,
                format!("{table_len} bytes cannot be the table of {virtual_size} bytes"),
            );
        }
        if file_len != Self::file_len(virtual_size) {
            return wrong(
                16,
                format!(
                    "the file has {file_len} bytes where {} belong",
                    Self::file_len(virtual_size)
                ),
            );
        }
        let sealed = magic == SEALED;
        Ok(Self {
            virtual_size,
            table_digest: sealed.then(|| Digest::from_bytes(array(bytes, 32))),
        })
    }
}

/// `N` bytes at `at`, which every caller keeps within the 128.
fn array<const N: usize>(bytes: &[u8; 128], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn footer() -> Footer {
        Footer {
            virtual_size: 10 << 20,
            table_digest: Some(Digest::of(b"table")),
        }
    }

    #[test]
    fn a_footer_comes_back() {
        for footer in [
            footer(),
            Footer {
                table_digest: None,
                ..footer()
            },
        ] {
            let len = Footer::file_len(footer.virtual_size);
            assert_eq!(Footer::decode(&footer.encode(), len), Ok(footer));
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = footer().encode();
        for bit in 0..128 * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Footer::decode(&bad, Footer::file_len(10 << 20)).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = footer().encode();
        bytes[8] = 7;
        assert_eq!(Footer::decode(&bytes, 0), Err(BadFooter::Version(7)));
    }

    #[test]
    fn sizes_with_a_right_checksum_are_still_checked() {
        for (at, value) in [
            (12, 1u64),
            (16, 0),
            (16, u64::MAX),
            (16, 513),
            (24, u64::MAX),
            (24, 0),
        ] {
            let mut bytes = footer().encode();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let check = Digest::of(&bytes[..96]);
            bytes[96..].copy_from_slice(check.as_bytes());
            assert!(
                Footer::decode(&bytes, Footer::file_len(10 << 20)).is_err(),
                "{at} {value}"
            );
        }
        assert!(Footer::decode(&footer().encode(), Footer::file_len(10 << 20) - 1).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 88), len in any::<u64>(), fix in any::<bool>()) {
            let mut bytes = [0; 128];
            bytes[..8].copy_from_slice(SEALED);
            bytes[8..96].copy_from_slice(&body);
            if fix {
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                let check = Digest::of(&bytes[..96]);
                bytes[96..].copy_from_slice(check.as_bytes());
            }
            prop_assert!(Footer::decode(&bytes, len).is_err());
        }
    }
}
