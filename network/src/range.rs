//! The addresses of sandboxes: a range, cut into a /31 for each. (RFC 3021)

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::link::Route;
use crate::reach::NEVER;

/// Which /31 of the range, from 0. It names everything that belongs to one attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Index(pub(crate) u32);

/// Routes shorter than this are how a host reaches everything (`0.0.0.0/1` of a VPN), not a network it is on.
const DEFAULT_LIKE: u8 = 8;

/// How many /31 there are in it.
pub(crate) fn count(range: Ipv4Net) -> u32 {
    1 << (31 - u32::from(range.prefix_len().min(31)))
}

/// Why a range can't be used, if so.
pub(crate) fn problem(range: Ipv4Net) -> Option<String> {
    if range != range.trunc() {
        return Some(format!("{range} is no network; did you mean {}?", range.trunc()));
    }
    if !(8..=31).contains(&range.prefix_len()) {
        return Some(format!("{range} is too large or too small: /8 to /31"));
    }
    let never = NEVER
        .iter()
        .find(|never| never.contains(&range) || range.contains(*never))?;
    Some(format!("{range} can't be routed: it is in {never}"))
}

/// The host's and the guest's address.
pub(crate) fn addresses(range: Ipv4Net, index: Index) -> (Ipv4Addr, Ipv4Addr) {
    let host = u32::from(range.network()) | index.0 << 1;
    (host.into(), (host | 1).into())
}

/// Locally administered, and as unique on the host as the address it is made of.
pub(crate) fn guest_mac(guest: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = guest.octets();
    [0x02, 0x53, a, b, c, d]
}

/// As [`guest_mac`], for the host's end of the TAP.
pub(crate) fn host_mac(host: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = host.octets();
    [0x06, 0x53, a, b, c, d]
}

/// What `range` collides with, for a person. `ours` says of an interface whether it is one of our TAPs.
pub(crate) fn collision(
    range: Ipv4Net,
    addresses: &[(u32, Ipv4Addr)],
    routes: &[Route],
    ours: impl Fn(u32) -> bool,
    name: impl Fn(u32) -> String,
) -> Option<String> {
    let by = |index: Option<u32>| index.map_or(String::new(), |index| format!(" by {}", name(index)));
    if let Some((index, address)) = addresses
        .iter()
        .find(|(index, address)| range.contains(address) && !ours(*index))
    {
        return Some(format!("the address {address} of {}", name(*index)));
    }
    routes
        .iter()
        .filter(|route| route.to.prefix_len() >= DEFAULT_LIKE && !route.by.is_some_and(&ours))
        .find(|route| range.contains(&route.to) || route.to.contains(&range))
        .map(|route| format!("the route to {}{}", route.to, by(route.by)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn found(addresses: &[(u32, Ipv4Addr)], routes: &[Route]) -> Option<String> {
        collision(
            net("172.30.0.0/16"),
            addresses,
            routes,
            |i| i == 9,
            |i| format!("if{i}"),
        )
    }

    #[test]
    fn a_range_is_cut_into_pairs() {
        let range = net("172.30.0.0/16");
        assert_eq!(count(range), 32768);
        assert_eq!(
            addresses(range, Index(0)),
            ([172, 30, 0, 0].into(), [172, 30, 0, 1].into())
        );
        assert_eq!(
            addresses(range, Index(32767)),
            ([172, 30, 255, 254].into(), [172, 30, 255, 255].into())
        );
        assert_eq!(count(net("192.0.2.8/31")), 1);
        assert_eq!(
            addresses(net("192.0.2.8/31"), Index(0)).1,
            Ipv4Addr::new(192, 0, 2, 9)
        );
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        for text in [
            "172.30.1.0/16",
            "10.0.0.0/7",
            "10.0.0.0/32",
            "127.0.0.0/16",
            "169.254.0.0/16",
            "240.0.0.0/8",
        ] {
            assert!(problem(net(text)).is_some(), "{text}");
        }
        for text in ["172.30.0.0/16", "10.0.0.0/8", "100.64.0.0/10", "192.168.7.0/31"] {
            assert_eq!(problem(net(text)), None);
        }
    }

    #[test]
    fn a_collision_is_named() {
        assert_eq!(
            found(&[(1, [127, 0, 0, 1].into()), (2, [192, 0, 2, 2].into())], &[]),
            None
        );
        assert_eq!(
            found(&[(2, [172, 30, 9, 9].into())], &[]).unwrap(),
            "the address 172.30.9.9 of if2"
        );
        for (to, collides) in [
            ("172.30.4.0/24", true),
            ("172.16.0.0/12", true),
            ("172.30.0.0/16", true),
            ("172.31.0.0/16", false),
            ("0.0.0.0/0", false),
            ("128.0.0.0/1", false),
        ] {
            let route = Route::for_test(net(to), Some(3));
            assert_eq!(
                found(&[], &[route]),
                collides.then(|| format!("the route to {to} by if3"))
            );
        }
    }

    #[test]
    fn our_own_taps_are_no_collision() {
        let route = Route::for_test(net("172.30.0.0/31"), Some(9));
        assert_eq!(found(&[(9, [172, 30, 0, 0].into())], &[route]), None);
    }

    proptest! {
        #[test]
        fn no_two_sandboxes_share_an_address(length in 8u8..=31, base: u32, a: u32, b: u32) {
            let range = Ipv4Net::new(base.into(), length).unwrap().trunc();
            let (a, b) = (Index(a % count(range)), Index(b % count(range)));
            let (host_a, guest_a) = addresses(range, a);
            let (host_b, guest_b) = addresses(range, b);
            prop_assert!(range.contains(&host_a) && range.contains(&guest_a));
            prop_assert_eq!(Ipv4Net::new(host_a, 31).unwrap().trunc().addr(), host_a);
            prop_assert!(host_a != guest_b && host_b != guest_a);
            prop_assert_eq!(a == b, host_a == host_b);
            prop_assert_eq!(a == b, guest_a == guest_b);
        }
    }
}
