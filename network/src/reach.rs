//! A policy with its names resolved: addresses and ports, and nothing that could never be reached.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::policy::{AllowList, Allowed, Policy, Target};

/// Addresses that one name may stand for.
const MAX_ADDRESSES: usize = 64;

/// What is never reached, whatever a policy says, besides the host and the sandboxes' range: this network,
/// loopback, link-local (and with it the clouds' metadata), multicast, reserved and broadcast. (RFC 6890)
pub(crate) const NEVER: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Where packets of a guest may go beyond the uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reach {
    Everything,
    Only(Vec<Opening>),
}

/// Addresses, and all of it or one port of theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Opening {
    pub(crate) to: Ipv4Net,
    pub(crate) port: Option<u16>,
}

/// Asks the host's resolver, as any program would.
pub(crate) fn host_addresses(name: &str) -> io::Result<Vec<Ipv4Addr>> {
    Ok((name, 0)
        .to_socket_addrs()?
        .filter_map(|address| match address {
            SocketAddr::V4(address) => Some(*address.ip()),
            SocketAddr::V6(_) => None,
        })
        .collect())
}

impl Reach {
    /// Resolves the names of a policy with `resolve`.
    pub(crate) fn resolve(
        policy: &Policy,
        range: Ipv4Net,
        resolve: impl Fn(&str) -> io::Result<Vec<Ipv4Addr>>,
    ) -> Result<Reach, NetworkError> {
        match policy {
            Policy::None => Err(NetworkError::NothingAsked),
            Policy::Nat => Ok(Reach::Everything),
            Policy::Allow(list) => openings(list, range, resolve).map(Reach::Only),
        }
    }

    /// Adds DNS at these servers.
    pub(crate) fn with_dns(self, servers: &[Ipv4Addr]) -> Reach {
        match self {
            Reach::Everything => Reach::Everything,
            Reach::Only(mut openings) => {
                openings.extend(servers.iter().map(|server| Opening {
                    to: Ipv4Net::from(*server),
                    port: Some(53),
                }));
                Reach::Only(openings)
            }
        }
    }
}

fn openings(
    list: &AllowList,
    range: Ipv4Net,
    resolve: impl Fn(&str) -> io::Result<Vec<Ipv4Addr>>,
) -> Result<Vec<Opening>, NetworkError> {
    let never = |net: &Ipv4Net| NEVER.iter().chain([&range]).find(|never| never.contains(net));
    let mut openings = Vec::new();
    for entry in list.entries() {
        let port = entry.port.map(u16::from);
        let refuse = |net: Ipv4Net, within: &Ipv4Net| NetworkError::NeverReached {
            entry: entry.to_string(),
            address: net,
            within: *within,
        };
        match &entry.target {
            Target::Net(net) => match never(net) {
                Some(within) => return Err(refuse(*net, within)),
                None => openings.push(Opening { to: *net, port }),
            },
            Target::Host(name) => {
                let addresses = resolve(name.as_str()).map_err(|source| unresolved(entry, source))?;
                let (wrong, right): (Vec<Ipv4Net>, Vec<Ipv4Net>) = addresses
                    .into_iter()
                    .take(MAX_ADDRESSES)
                    .map(Ipv4Net::from)
                    .partition(|net| never(net).is_some());
                if let (Some(wrong), true) = (wrong.first(), right.is_empty()) {
                    return Err(refuse(*wrong, never(wrong).unwrap_or(&range)));
                }
                if right.is_empty() {
                    let none = io::Error::new(io::ErrorKind::NotFound, "the name has no IPv4 address");
                    return Err(unresolved(entry, none));
                }
                openings.extend(right.into_iter().map(|to| Opening { to, port }));
            }
        }
    }
    Ok(openings)
}

fn unresolved(entry: &Allowed, source: io::Error) -> NetworkError {
    NetworkError::Unresolved {
        entry: entry.to_string(),
        source,
    }
}

/// Openings by port, each with networks that do not overlap, as nft wants the elements of a set.
pub(crate) fn by_port(openings: &[Opening]) -> BTreeMap<Option<u16>, Vec<Ipv4Net>> {
    let mut ports: BTreeMap<Option<u16>, Vec<Ipv4Net>> = BTreeMap::new();
    for opening in openings {
        ports.entry(opening.port).or_default().push(opening.to);
    }
    for nets in ports.values_mut() {
        *nets = Ipv4Net::aggregate(nets);
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Ipv4Net {
        "172.30.0.0/16".parse().unwrap()
    }

    fn names(name: &str) -> io::Result<Vec<Ipv4Addr>> {
        Ok(match name {
            "two.example" => vec![[198, 51, 100, 1].into(), [198, 51, 100, 2].into()],
            "half.example" => vec![[169, 254, 169, 254].into(), [198, 51, 100, 3].into()],
            "rebound.example" => vec![[127, 0, 0, 1].into()],
            "v6.example" => vec![],
            _ => return Err(io::Error::other("no such name")),
        })
    }

    fn resolved(entry: &str) -> Result<Reach, String> {
        let policy = serde_json::from_value(serde_json::json!({ "allow": [entry] })).unwrap();
        Reach::resolve(&policy, range(), names).map_err(|e| e.to_string())
    }

    fn opening(to: &str, port: Option<u16>) -> Opening {
        Opening {
            to: to.parse().unwrap(),
            port,
        }
    }

    #[test]
    fn a_name_stands_for_all_its_addresses_but_those_never_reached() {
        let port = Some(443);
        assert_eq!(
            resolved("two.example:443").unwrap(),
            Reach::Only(vec![
                opening("198.51.100.1/32", port),
                opening("198.51.100.2/32", port)
            ])
        );
        assert_eq!(
            resolved("half.example").unwrap(),
            Reach::Only(vec![opening("198.51.100.3/32", None)])
        );
    }

    #[test]
    fn what_is_never_reached_is_refused_and_named() {
        for entry in [
            "169.254.169.254",
            "127.0.0.0/8:80",
            "172.30.4.0/24",
            "224.0.0.1",
            "rebound.example",
        ] {
            let said = resolved(entry).unwrap_err();
            assert!(said.contains(entry) && said.contains("never"), "{said}");
        }
        assert!(resolved("0.0.0.0/0").is_ok(), "it holds much that can be reached");
    }

    #[test]
    fn a_name_without_an_address_is_refused_and_named() {
        for entry in ["nowhere.example:80", "v6.example"] {
            assert!(resolved(entry).unwrap_err().contains(entry));
        }
    }

    #[test]
    fn networks_of_one_port_do_not_overlap() {
        let ports = by_port(&[
            opening("10.0.0.0/8", Some(80)),
            opening("10.1.0.0/16", Some(80)),
            opening("10.1.0.0/16", Some(443)),
            opening("10.0.0.0/9", None),
            opening("10.128.0.0/9", None),
        ]);
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        assert_eq!(ports[&Some(80)], [net("10.0.0.0/8")]);
        assert_eq!(ports[&Some(443)], [net("10.1.0.0/16")]);
        assert_eq!(ports[&None], [net("10.0.0.0/8")]);
    }
}
