//! The name of a network interface.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a name, without the zero at its end (`IFNAMSIZ` - 1).
pub(crate) const MAX: usize = 15;

/// A name that an interface can have and that means only itself in the text of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct IfName(String);

impl IfName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for IfName {
    type Error = String;

    fn try_from(name: String) -> Result<IfName, String> {
        // The kernel takes more than that (dev_valid_name); nft takes `*` and quotes to mean something.
        let right = !name.is_empty()
            && name.len() <= MAX
            && name != "."
            && name != ".."
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.@+".contains(&b));
        match right {
            true => Ok(IfName(name)),
            false => Err(format!(
                "{name:?} is no interface name that Spore can use: 1 to {MAX} of letters, digits and -_.@+"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_mean_something_else_in_a_rule_is_refused() {
        for name in ["eth0", "sp-7f", "wlp0s20f3", "eth0.100", "br-1a2b"] {
            assert!(IfName::try_from(name.to_owned()).is_ok(), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "eth*",
            "a\"b",
            "a b",
            "a/b",
            "a\\",
            "a\n",
            "sixteen-letters-",
        ] {
            assert!(IfName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}
