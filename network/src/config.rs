//! What an instance of the network is made with.

use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::error::NetworkError;
use crate::name::{self, IfName};
use crate::range::{self, Index};

/// What an instance of the network is made with. All processes that use one `state_dir` at the same time share
/// the instance, and must agree on range, table and prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses for sandboxes: a /31 for each. /8 to /31.
    pub range: Ipv4Net,
    /// Name of the nftables table in the family `inet`; all of it is ours.
    pub table: String,
    /// What the names of TAPs begin with; the index follows in hexadecimal.
    pub tap_prefix: String,
    /// Directory for locks and records, on a file system that a boot empties.
    pub state_dir: PathBuf,
    /// The interface by which sandboxes leave the host; if none is named, that of the default route.
    pub uplink: Option<String>,
    /// Where DNS servers are read from: the first file that names one which a sandbox can reach.
    pub resolv_conf: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            range: Ipv4Net::new_assert([172, 30, 0, 0].into(), 16),
            table: "spore".into(),
            tap_prefix: "sp-".into(),
            state_dir: "/run/spore/network".into(),
            uplink: None,
            // The second is systemd-resolved's list of real servers, where the first names only its stub.
            resolv_conf: vec![
                "/etc/resolv.conf".into(),
                "/run/systemd/resolve/resolv.conf".into(),
            ],
        }
    }
}

/// A [`Config`] that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) range: Ipv4Net,
    pub(crate) table: String,
    pub(crate) tap_prefix: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) uplink: Option<IfName>,
    pub(crate) resolv_conf: Vec<PathBuf>,
}

impl TryFrom<Config> for Settings {
    type Error = NetworkError;

    fn try_from(config: Config) -> Result<Settings, NetworkError> {
        if let Some(problem) = range::problem(config.range) {
            return Err(NetworkError::Config(format!("range: {problem}")));
        }
        let word = |text: &str| {
            text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !word(&config.table) || config.table.len() > 31 {
            return Err(NetworkError::Config(format!(
                "table: {:?} is no name of a table: a letter, then up to 30 of letters, digits, - and _",
                config.table
            )));
        }
        let digits = format!("{:x}", range::count(config.range) - 1).len();
        let most = name::MAX - digits;
        if !word(&config.tap_prefix) || config.tap_prefix.len() > most {
            return Err(NetworkError::Config(format!(
                "TAP prefix: {:?} is none: a letter, then letters, digits, - and _, {most} in all with this range",
                config.tap_prefix
            )));
        }
        let uplink = config.uplink.map(IfName::try_from).transpose();
        Ok(Settings {
            range: config.range,
            table: config.table,
            tap_prefix: config.tap_prefix,
            state_dir: config.state_dir,
            uplink: uplink.map_err(|why| NetworkError::Config(format!("uplink: {why}")))?,
            resolv_conf: config.resolv_conf,
        })
    }
}

impl Settings {
    /// As it was configured.
    pub(crate) fn into_config(self) -> Config {
        Config {
            range: self.range,
            table: self.table,
            tap_prefix: self.tap_prefix,
            state_dir: self.state_dir,
            uplink: self.uplink.map(|name| name.to_string()),
            resolv_conf: self.resolv_conf,
        }
    }

    /// The name of an index's TAP.
    pub(crate) fn tap(&self, index: Index) -> Result<IfName, NetworkError> {
        IfName::try_from(format!("{}{:x}", self.tap_prefix, index.0)).map_err(NetworkError::Config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&mut Config)) -> Result<Settings, String> {
        let mut config = Config::default();
        change(&mut config);
        Settings::try_from(config).map_err(|e| e.to_string())
    }

    #[test]
    fn the_default_is_right_and_its_last_tap_has_a_name() {
        let settings = checked(|_| {}).unwrap();
        assert_eq!(settings.tap(Index(0)).unwrap().as_str(), "sp-0");
        assert_eq!(settings.tap(Index(32767)).unwrap().as_str(), "sp-7fff");
    }

    #[test]
    fn what_would_be_another_rule_or_no_name_is_refused() {
        assert!(
            checked(|c| c.table = "x { }".into())
                .unwrap_err()
                .contains("table")
        );
        assert!(checked(|c| c.table = String::new()).is_err());
        assert!(
            checked(|c| c.tap_prefix = "a\"".into())
                .unwrap_err()
                .contains("prefix")
        );
        assert!(checked(|c| c.tap_prefix = "elevenchars".into()).is_ok());
        assert!(
            checked(|c| c.tap_prefix = "twelve-chars".into())
                .unwrap_err()
                .contains("11 in all")
        );
        assert!(
            checked(|c| c.uplink = Some("eth*".into()))
                .unwrap_err()
                .contains("uplink")
        );
        assert!(
            checked(|c| c.range = "172.30.0.1/16".parse().unwrap())
                .unwrap_err()
                .contains("172.30.0.0/16")
        );
    }
}
