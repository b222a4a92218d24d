//! The small words of a manifest: names of images and bases, environment variables, file modes.

use super::rule::{Rule, display_as_inner, quoted};

/// An image's name: `[a-z0-9][a-z0-9._-]{0,62}`. Safe as a file name and in a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

/// A base's name, of the same grammar as an [`ImageName`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BaseName(String);

/// An environment variable's name: `[A-Za-z_][A-Za-z0-9_]*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnvName(String);

/// A file's permission bits, `0000` to `7777`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(u16);

display_as_inner!(ImageName);
display_as_inner!(BaseName);
display_as_inner!(EnvName);

impl ImageName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Rule::BadName`].
    pub fn parse(text: &str) -> Result<ImageName, Rule> {
        check_name(text).map(ImageName)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl BaseName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Rule::BadName`].
    pub fn parse(text: &str) -> Result<BaseName, Rule> {
        check_name(text).map(BaseName)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl EnvName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Rule::BadEnvName`].
    pub fn parse(text: &str) -> Result<EnvName, Rule> {
        let good = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if good {
            Ok(EnvName(text.to_owned()))
        } else {
            Err(Rule::BadEnvName)
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FileMode {
    /// Parses three or four octal digits: `644`, `0644`, `4755`. A mode is a string and never a JSON number:
    /// 755 and 493 could both be meant, and without numbers nothing that is hashed depends on how a language
    /// prints one.
    ///
    /// # Errors
    /// [`Rule::BadMode`].
    pub fn parse(text: &str) -> Result<FileMode, Rule> {
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u16::from_str_radix(text, 8) {
            Ok(bits) if octal => Ok(FileMode(bits)),
            _ => Err(Rule::BadMode { found: quoted(text) }),
        }
    }

    /// The mode of these permission bits; bits above `07777` are dropped.
    pub const fn from_bits(bits: u16) -> FileMode {
        FileMode(bits & 0o7777)
    }

    /// The permission bits.
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }
}

fn check_name(text: &str) -> Result<String, Rule> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good = (1..=63).contains(&text.len())
        && text.bytes().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
        && text.bytes().next().is_some_and(plain);
    if good {
        Ok(text.to_owned())
    } else {
        Err(Rule::BadName { found: quoted(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_lower_case_and_begin_with_a_letter_or_digit() {
        for good in ["a", "0", "debian-12", "py3.12_x", &"a".repeat(63)] {
            assert!(ImageName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "..",
            "A",
            "a/b",
            "a b",
            "é",
            "a\n",
            &"a".repeat(64),
        ] {
            assert!(BaseName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_variables_have_posix_names() {
        for good in ["A", "_", "PATH", "a1_B"] {
            assert!(EnvName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "1A", "A=B", "A-B", "A B", "É"] {
            assert!(EnvName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mode_is_three_or_four_octal_digits() {
        assert_eq!(FileMode::parse("644").unwrap().bits(), 0o644);
        assert_eq!(FileMode::parse("0755").unwrap().bits(), 0o755);
        assert_eq!(FileMode::parse("7777").unwrap().bits(), 0o7777);
        for bad in [
            "", "7", "77", "00755", "0o755", "0888", "+755", "-755", " 755", "u+x",
        ] {
            assert!(FileMode::parse(bad).is_err(), "{bad}");
        }
    }
}
