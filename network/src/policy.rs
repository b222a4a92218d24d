//! What a sandbox may reach, as its owner writes it: `"nat"`, `"none"` or `{"allow": [...]}`.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Entries that an allow list can have.
pub const MAX_ALLOWED: usize = 64;

/// What a sandbox may reach. Whatever it says, the host itself, other sandboxes, link-local addresses and
/// loopback are never among it.
///
/// ```
/// use spore_network::Policy;
/// let policy: Policy = serde_json::from_str(r#"{"allow": ["example.com:443", "198.51.100.0/24"]}"#)?;
/// assert!(matches!(policy, Policy::Allow(_)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// No network interface at all.
    None,
    /// Everything that lies beyond the uplink.
    Nat,
    /// What the list says, and DNS at the host's servers.
    Allow(AllowList),
}

/// At least one entry and at most [`MAX_ALLOWED`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct AllowList(Vec<Allowed>);

impl AllowList {
    /// A list of these.
    ///
    /// # Errors
    /// When there is none or too many.
    pub fn new(entries: Vec<Allowed>) -> Result<AllowList, PolicyError> {
        match entries.len() {
            0 => Err(PolicyError::Empty),
            1..=MAX_ALLOWED => Ok(AllowList(entries)),
            many => Err(PolicyError::TooMany(many)),
        }
    }

    /// The entries, in the order they were written.
    #[must_use]
    pub fn entries(&self) -> &[Allowed] {
        &self.0
    }
}

impl TryFrom<Vec<String>> for AllowList {
    type Error = PolicyError;

    fn try_from(entries: Vec<String>) -> Result<AllowList, PolicyError> {
        if entries.len() > MAX_ALLOWED {
            return Err(PolicyError::TooMany(entries.len()));
        }
        let entries: Result<_, _> = entries.iter().map(|entry| entry.parse()).collect();
        AllowList::new(entries?)
    }
}

impl From<AllowList> for Vec<String> {
    fn from(list: AllowList) -> Vec<String> {
        list.0.iter().map(Allowed::to_string).collect()
    }
}

/// One entry: addresses or a host name, and all of it or one port (TCP and UDP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Where to.
    pub target: Target,
    /// Without one, every protocol and port.
    pub port: Option<NonZeroU16>,
}

/// Where an entry points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These addresses.
    Net(Ipv4Net),
    /// The IPv4 addresses that the name has when the sandbox is made.
    Host(HostName),
}

/// A name that DNS could know: letters, digits, `-` and `_` in labels of at most 63 bytes, 253 in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl HostName {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<HostName> {
        let labels = text.strip_suffix('.').unwrap_or(text);
        let right = labels.len() <= 253
            && labels.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            })
            // No top-level domain is a number, but a mistyped address ends in one.
            && !labels.rsplit('.').next()?.bytes().all(|b| b.is_ascii_digit());
        right.then(|| HostName(text.to_owned()))
    }
}

impl FromStr for Allowed {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Allowed, PolicyError> {
        let refuse = |why| PolicyError::Entry {
            entry: text.chars().take(300).collect(),
            why,
        };
        let (target, port) = match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => return Err(refuse(EntryProblem::Ipv6)),
            Some((target, port)) => {
                let digits = port.bytes().all(|b| b.is_ascii_digit());
                let port = port.parse().ok().filter(|_| digits);
                (target, Some(port.ok_or_else(|| refuse(EntryProblem::Port))?))
            }
            None => (text, None),
        };
        if target.starts_with('[') {
            return Err(refuse(EntryProblem::Ipv6));
        }
        let target = if let Ok(address) = target.parse::<Ipv4Addr>() {
            Target::Net(address.into())
        } else if target.contains('/') {
            let net: Ipv4Net = target.parse().map_err(|_| refuse(EntryProblem::Target))?;
            if net != net.trunc() {
                return Err(refuse(EntryProblem::HostBits(net.trunc())));
            }
            Target::Net(net)
        } else {
            Target::Host(HostName::parse(target).ok_or_else(|| refuse(EntryProblem::Target))?)
        };
        Ok(Allowed { target, port })
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Net(net) if net.prefix_len() == 32 => write!(f, "{}", net.addr())?,
            Target::Net(net) => write!(f, "{net}")?,
            Target::Host(name) => f.write_str(name.as_str())?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// Why an allow list is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Nothing in it.
    #[error("an empty allow list allows nothing: say \"none\" for no network at all")]
    Empty,
    /// More than [`MAX_ALLOWED`].
    #[error("{0} entries in an allow list; {MAX_ALLOWED} are the most (a CIDR stands for many addresses)")]
    TooMany(usize),
    /// An entry that says nothing.
    #[error("allow list entry {entry:?}: {why}")]
    Entry {
        /// As it was written.
        entry: String,
        /// What is wrong with it.
        why: EntryProblem,
    },
}

/// What is wrong with an entry of an allow list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// Sandboxes have IPv4 only.
    #[error("an IPv6 address, but sandboxes have IPv4 only")]
    Ipv6,
    /// After the colon.
    #[error("what follows the colon is no port (1 to 65535)")]
    Port,
    /// Before the colon.
    #[error(
        "neither an IPv4 address, a CIDR nor a host name; write 198.51.100.7, 198.51.100.0/24 or \
         a.example, each with or without :port"
    )]
    Target,
    /// `10.1.2.3/8`
    #[error("an address inside a network is no network; did you mean {0}?")]
    HostBits(Ipv4Net),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn the_three_policies_are_written_as_they_are_read() {
        for text in [
            r#""nat""#,
            r#""none""#,
            r#"{"allow":["10.0.0.0/8","10.1.2.3","10.1.2.0/24:80","a.example:443","b-1.example","0.0.0.0/0"]}"#,
        ] {
            assert_eq!(serde_json::to_string(&parse(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn a_wrong_entry_is_named_with_its_reason() {
        for (entry, says) in [
            ("10.1.2.3/8", "did you mean 10.0.0.0/8?"),
            ("10.0.0.0/33", "neither"),
            ("10.0.0.256", "neither"),
            ("10.0.0", "neither"),
            ("a.example:0", "no port"),
            ("a.example:70000", "no port"),
            ("a.example:+80", "no port"),
            ("a.example:", "no port"),
            ("[::1]:80", "IPv6"),
            ("fd00::1", "IPv6"),
            ("", "neither"),
            (":80", "neither"),
            ("-a.example", "neither"),
            ("a..example", "neither"),
            ("a b", "neither"),
            ("a}; drop", "neither"),
        ] {
            let said = parse(&serde_json::json!({ "allow": ["10.0.0.1", entry] }).to_string()).unwrap_err();
            assert!(
                said.contains(&format!("{entry:?}")) && said.contains(says),
                "{said}"
            );
        }
    }

    #[test]
    fn a_list_has_bounds() {
        assert!(parse(r#"{"allow":[]}"#).unwrap_err().contains("none"));
        let list = |n: usize| serde_json::json!({ "allow": vec!["10.0.0.1"; n] }).to_string();
        assert!(parse(&list(64)).is_ok());
        assert!(parse(&list(65)).unwrap_err().contains("65 entries"));
    }

    #[test]
    fn anything_else_is_no_policy() {
        for text in [
            r#""all""#,
            "{}",
            r#"{"allow":"10.0.0.1"}"#,
            r#"{"deny":[]}"#,
            "null",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
