//! The DNS servers that a sandbox can use: the host's, as far as they can be reached from a sandbox.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::reach::NEVER;

/// As many as resolvers look at (`MAXNS` in resolv.conf(5)).
const MAX: usize = 3;

/// The host's DNS servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Those that a sandbox reaches, at most three, in the host's order.
    pub servers: Vec<Ipv4Addr>,
    /// Those that it doesn't, and why.
    pub skipped: Vec<(IpAddr, Skipped)>,
}

/// Why a sandbox can't use a DNS server of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// It listens on the host itself, which sandboxes never reach.
    Host,
    /// Loopback, link-local or of another kind that sandboxes never reach.
    Never,
    /// Sandboxes have IPv4 only.
    Ipv6,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Skipped::Host => "is the host",
            Skipped::Never => "is loopback or link-local",
            Skipped::Ipv6 => "is IPv6",
        })
    }
}

/// One line for the user, who wonders why names don't resolve.
impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.servers.as_slice() {
            [] => f.write_str("no DNS server that a sandbox can reach")?,
            servers => {
                f.write_str("DNS servers:")?;
                servers.iter().try_for_each(|server| write!(f, " {server}"))?;
            }
        }
        self.skipped
            .iter()
            .try_for_each(|(server, why)| write!(f, "; {server} {why}"))
    }
}

/// The servers in the first of `files` that names one which a sandbox reaches.
pub(crate) fn read(files: &[PathBuf], host: &[Ipv4Addr]) -> Dns {
    let mut all = Dns::default();
    for path in files {
        let mut dns = match read_file(path) {
            Ok(text) => parse(&text, host),
            Err(_) => continue,
        };
        all.skipped.append(&mut dns.skipped);
        if !dns.servers.is_empty() {
            all.servers = dns.servers;
            break;
        }
    }
    all
}

fn read_file(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn parse(text: &str, host: &[Ipv4Addr]) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            continue;
        };
        // A zone, as in fe80::1%eth0, doesn't matter for an address that is skipped anyway.
        let address = address.split('%').next().unwrap_or(address);
        let skipped = match address.parse() {
            Ok(IpAddr::V4(server)) if NEVER.iter().any(|never| never.contains(&server)) => {
                (server.into(), Skipped::Never)
            }
            Ok(IpAddr::V4(server)) if host.contains(&server) => (server.into(), Skipped::Host),
            Ok(IpAddr::V4(server)) => {
                if dns.servers.len() < MAX && !dns.servers.contains(&server) {
                    dns.servers.push(server);
                }
                continue;
            }
            Ok(IpAddr::V6(server)) => (server.into(), Skipped::Ipv6),
            Err(_) => continue,
        };
        dns.skipped.push(skipped);
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_sandbox_reaches_is_a_server() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\n\
                    nameserver\t192.0.2.9 # comment\nnameserver 192.0.2.2\nnameserver 169.254.169.253\n\
                    nameserver 192.0.2.9\nnameserver x\noptions edns0\n";
        let dns = parse(text, &[Ipv4Addr::new(192, 0, 2, 2)]);
        assert_eq!(dns.servers, [Ipv4Addr::new(192, 0, 2, 9)]);
        let why: Vec<_> = dns.skipped.iter().map(|(_, why)| *why).collect();
        assert_eq!(
            why,
            [Skipped::Never, Skipped::Ipv6, Skipped::Host, Skipped::Never]
        );
    }

    #[test]
    fn a_stub_on_loopback_is_passed_over_for_the_file_with_the_real_servers() {
        let dir = tempfile::tempdir().unwrap();
        let (stub, real) = (dir.path().join("stub"), dir.path().join("real"));
        fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        fs::write(&real, "nameserver 192.0.2.9\nnameserver 192.0.2.10\n").unwrap();
        let dns = read(&[stub.clone(), real.clone()], &[]);
        assert_eq!(dns.servers.len(), 2);
        let dns = read(&[real, stub.clone()], &[]);
        assert!(dns.skipped.is_empty(), "the first file was enough");
        let dns = read(&[stub, dir.path().join("missing")], &[]);
        assert_eq!(
            dns.to_string(),
            "no DNS server that a sandbox can reach; 127.0.0.53 is loopback or link-local"
        );
    }
}
