//! Names of things in the store. Each is parsed once, and can then be a file name without further checks: none
//! contains a slash, starts with a dot or is empty.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::digest::{ParseIdError, hex, unhex};

/// The name of a checkpoint: the first 16 bytes of its manifest's BLAKE3 digest, written as 32 lower-case
/// hexadecimal digits. So a manifest cannot change under its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointId([u8; 16]);

impl CheckpointId {
    /// The name of the checkpoint whose `manifest.json` has these bytes.
    pub fn of_manifest(bytes: &[u8]) -> Self {
        let digest = Digest::of(bytes);
        Self(std::array::from_fn(|i| digest.as_bytes()[i]))
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CheckpointId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        unhex(text).map(Self).ok_or_else(|| {
            ParseIdError::new(
                text,
                "a checkpoint id",
                "32 lower-case hexadecimal digits (0-9, a-f)",
            )
        })
    }
}

impl TryFrom<String> for CheckpointId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<CheckpointId> for String {
    fn from(id: CheckpointId) -> Self {
        id.to_string()
    }
}

/// A string of which we know that it obeys a rule.
macro_rules! checked_string {
    ($(#[$docs:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$docs])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let check: fn(&[u8]) -> bool = $check;
                match check(text.as_bytes()) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(ParseIdError::new(text, $what, $rule)),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_string!(
    /// The id of an image: lower-case hexadecimal digits, 8 to 64 of them. What they stand for is the builder's
    /// affair.
    ImageId,
    "an image id",
    "8 to 64 lower-case hexadecimal digits (0-9, a-f)",
    |text| (8..=64).contains(&text.len()) && text.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
);

checked_string!(
    /// A name that users give an image.
    ImageName,
    "an image name",
    "1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit",
    |text| is_name(text, b"._-")
);

checked_string!(
    /// The id of a running VM, chosen by whoever starts it.
    RunId,
    "the id of a running VM",
    "1 to 63 of a-z, 0-9, '_' and '-', the first a letter or digit",
    |text| is_name(text, b"_-")
);

fn is_name(text: &[u8], also: &[u8]) -> bool {
    let letter = |c: &u8| matches!(c, b'a'..=b'z' | b'0'..=b'9');
    (1..=63).contains(&text.len())
        && text.first().is_some_and(letter)
        && text.iter().all(|c| letter(c) || also.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken_and_come_back() {
        for name in ["a", "python-3.12_slim", "0", &"x".repeat(63)] {
            assert_eq!(name.parse::<ImageName>().unwrap().to_string(), name);
        }
        assert!("deadbeef".parse::<ImageId>().is_ok());
        assert!("sb-1_a".parse::<RunId>().is_ok());
        let id = CheckpointId::of_manifest(b"{}");
        assert_eq!(id.to_string().parse::<CheckpointId>(), Ok(id));
    }

    #[test]
    fn nothing_that_could_leave_a_directory_is_a_name() {
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "a/b",
            "../a",
            "a\0",
            "A",
            "ä",
            "-a",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
            assert!(bad.parse::<RunId>().is_err(), "{bad:?}");
            assert!(bad.parse::<ImageId>().is_err(), "{bad:?}");
            assert!(bad.parse::<CheckpointId>().is_err(), "{bad:?}");
        }
        assert!("a.lock".parse::<RunId>().is_err());
        let json = serde_json::from_str::<ImageName>("\"../x\"");
        assert!(json.unwrap_err().to_string().contains("image name"));
    }
}
