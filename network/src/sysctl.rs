//! What the kernel lets one say of an interface only in `/proc/sys/net`.
//!
//! These files belong to the network namespace of the thread that opens them.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::name::IfName;

/// IPv4 on a TAP: packets from it are forwarded, only those with a source that would be answered over it, and
/// it answers ARP for its own address only.
const TAP_IPV4: &[(&str, &str)] = &[
    ("forwarding", "1"),
    ("rp_filter", "1"),
    ("arp_ignore", "2"),
    ("arp_announce", "2"),
    ("arp_accept", "0"),
    ("proxy_arp", "0"),
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
    ("accept_source_route", "0"),
    ("route_localnet", "0"),
];
/// No IPv6 at all; where the kernel has none, there is nothing to turn off.
const TAP_IPV6: &[(&str, &str)] = &[("disable_ipv6", "1"), ("accept_ra", "0"), ("forwarding", "0")];

fn path(family: &str, interface: &str, key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net")
        .join(family)
        .join("conf")
        .join(interface)
        .join(key)
}

/// Sets up a new TAP, before it is up.
pub(crate) fn set_up_tap(name: &IfName) -> Result<(), (PathBuf, io::Error)> {
    for (family, values) in [("ipv4", TAP_IPV4), ("ipv6", TAP_IPV6)] {
        for (key, value) in values {
            let path = path(family, name.as_str(), key);
            match fs::write(&path, value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && family == "ipv6" => {}
                other => other.map_err(|error| (path, error))?,
            }
        }
    }
    Ok(())
}

/// Whether packets that come in by this interface are forwarded; "all" is what the host wants as a whole.
pub(crate) fn forwards(interface: &str) -> Result<bool, (PathBuf, io::Error)> {
    let path = path("ipv4", interface, "forwarding");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim() != "0"),
        Err(error) => Err((path, error)),
    }
}

pub(crate) fn set_forwarding(interface: &IfName, on: bool) -> Result<(), (PathBuf, io::Error)> {
    let path = path("ipv4", interface.as_str(), "forwarding");
    fs::write(&path, if on { "1" } else { "0" }).map_err(|error| (path, error))
}
