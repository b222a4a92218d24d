//! The text of our nftables table. Everything in it is of a type that can't say anything else than it should.
//!
//! However many sandboxes there are, a packet meets the same few rules: what differs between sandboxes is in sets
//! and maps by the TAP's name. A sandbox with an allow list has a chain of its own that only its packets enter.
//! `docs/network.md` says what each chain is for.

use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::Settings;
use crate::name::IfName;
use crate::reach::{self, NEVER, Reach};
use crate::state::Shared;

/// What the table says of one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) tap: IfName,
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
    pub(crate) reach: Reach,
}

/// What it says besides.
#[derive(Clone, Debug)]
pub(crate) struct Table<'a> {
    pub(crate) name: &'a str,
    /// Name of the chain that says whose the table is.
    pub(crate) mark: String,
    pub(crate) range: Ipv4Net,
    pub(crate) uplinks: Vec<&'a IfName>,
    /// Uplinks that forward only because we told them to.
    pub(crate) ours_only: Vec<&'a IfName>,
}

struct Mac([u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Guest {
    fn chain(&self) -> String {
        format!("allow-{}", self.tap)
    }

    fn source(&self) -> String {
        format!("\"{}\" . {} . {}", self.tap, Mac(self.mac), self.address)
    }

    fn verdict(&self) -> String {
        match self.reach {
            Reach::Everything => format!("\"{}\" : goto nat", self.tap),
            Reach::Only(_) => format!("\"{}\" : goto {}", self.tap, self.chain()),
        }
    }

    /// The rules of its own chain, if it has one.
    fn own_rules(&self) -> Option<Vec<String>> {
        let Reach::Only(openings) = &self.reach else {
            return None;
        };
        let mut ports = reach::by_port(openings);
        let mut rules = Vec::new();
        if let Some(nets) = ports.remove(&None) {
            let nets = nets.iter().map(Ipv4Net::to_string);
            rules.push(format!("oifname @uplinks ip daddr {} accept", braced(nets)));
        }
        let ported = ports.iter().flat_map(|(port, nets)| {
            nets.iter()
                .filter_map(move |net| Some(format!("{net} . {}", (*port)?)))
        });
        let ported: Vec<String> = ported.collect();
        if !ported.is_empty() {
            rules.push(format!(
                "oifname @uplinks meta l4proto {{ tcp, udp }} ip daddr . th dport {} accept",
                braced(ported)
            ));
        }
        rules.push("goto refuse".into());
        Some(rules)
    }
}

fn braced(elements: impl IntoIterator<Item = String>) -> String {
    format!("{{ {} }}", elements.into_iter().collect::<Vec<_>>().join(", "))
}

/// `elements = {...}`, which may not be empty.
fn elements(all: &[String]) -> String {
    match all {
        [] => String::new(),
        all => format!(" elements = {};", braced(all.iter().cloned())),
    }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a IfName>) -> Vec<String> {
    names.into_iter().map(|name| format!("\"{name}\"")).collect()
}

impl<'a> Table<'a> {
    pub(crate) fn of(settings: &'a Settings, shared: &Shared, uplinks: &'a [(IfName, bool)]) -> Table<'a> {
        let ours_only = uplinks.iter().filter(|(_, ours)| *ours);
        Table {
            name: &settings.table,
            mark: shared.instance.mark(),
            range: settings.range,
            uplinks: uplinks.iter().map(|(name, _)| name).collect(),
            ours_only: ours_only.map(|(name, _)| name).collect(),
        }
    }

    /// The whole table, in the place of what was there.
    pub(crate) fn whole(&self, guests: &[Guest]) -> String {
        let sources: Vec<_> = guests.iter().map(Guest::source).collect();
        let verdicts: Vec<_> = guests.iter().map(Guest::verdict).collect();
        let own: String = guests
            .iter()
            .filter_map(|guest| Some((guest.chain(), guest.own_rules()?)))
            .map(|(chain, rules)| format!("  chain {chain} {{\n    {}\n  }}\n", rules.join("\n    ")))
            .collect();
        format!(
            r#"add table inet {name}
delete table inet {name}
table inet {name} {{
  set taps {{ type ifname;{taps} }}
  set guests {{ type ifname . ether_addr . ipv4_addr;{sources} }}
  set uplinks {{ type ifname;{uplinks} }}
  set ours_only {{ type ifname;{ours_only} }}
  chain {mark} {{
  }}
  chain refuse {{
    reject with icmpx type admin-prohibited
  }}
  chain nat {{
    oifname @uplinks accept
    goto refuse
  }}
{own}  map policies {{ type ifname : verdict;{verdicts} }}
  chain from_guest {{
    meta nfproto != ipv4 drop
    iifname . ether saddr . ip saddr != @guests drop
    ip daddr {{ {never}, {range} }} drop
    fib daddr type {{ local, broadcast, anycast, multicast }} drop
  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname @taps jump from_guest
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname @taps drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname vmap @policies
    iifname @taps drop
    oifname @taps ct state {{ established, related }} accept
    oifname @taps drop
    ip daddr {range} drop
    iifname @ours_only drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {range} oifname @uplinks masquerade
  }}
}}
"#,
            name = self.name,
            mark = self.mark,
            range = self.range,
            never = NEVER.map(|net| net.to_string()).join(", "),
            taps = elements(&quoted(guests.iter().map(|guest| &guest.tap))),
            sources = elements(&sources),
            verdicts = elements(&verdicts),
            uplinks = elements(&quoted(self.uplinks.iter().copied())),
            ours_only = elements(&quoted(self.ours_only.iter().copied())),
        )
    }

    /// Adds one sandbox.
    pub(crate) fn add(&self, guest: &Guest) -> String {
        let name = self.name;
        let mut text = String::new();
        if let Some(rules) = guest.own_rules() {
            let chain = guest.chain();
            // Writing to a String can't fail.
            let _ = writeln!(text, "add chain inet {name} {chain}");
            for rule in rules {
                let _ = writeln!(text, "add rule inet {name} {chain} {rule}");
            }
        }
        let _ = writeln!(text, "add element inet {name} policies {{ {} }}", guest.verdict());
        let _ = writeln!(text, "add element inet {name} guests {{ {} }}", guest.source());
        let _ = writeln!(text, "add element inet {name} taps {{ \"{}\" }}", guest.tap);
        text
    }

    /// Removes one sandbox.
    pub(crate) fn remove(&self, guest: &Guest) -> String {
        let name = self.name;
        let mut text = format!(
            "delete element inet {name} policies {{ \"{tap}\" }}\n\
             delete element inet {name} guests {{ {source} }}\n\
             delete element inet {name} taps {{ \"{tap}\" }}\n",
            tap = guest.tap,
            source = guest.source(),
        );
        if matches!(guest.reach, Reach::Only(_)) {
            let _ = writeln!(text, "delete chain inet {name} {}", guest.chain());
        }
        text
    }

    /// Removes the table, if it is there.
    pub(crate) fn none(&self) -> String {
        format!("add table inet {0}\ndelete table inet {0}\n", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::Opening;

    fn name(text: &str) -> IfName {
        IfName::try_from(text.to_owned()).unwrap()
    }

    fn guest(n: u8, reach: Reach) -> Guest {
        Guest {
            tap: name(&format!("sp-{n:x}")),
            mac: [2, 0x53, 172, 30, 0, n],
            address: [172, 30, 0, n].into(),
            reach,
        }
    }

    fn only(openings: &[(&str, Option<u16>)]) -> Reach {
        let opening = |(to, port): &(&str, Option<u16>)| Opening {
            to: to.parse().unwrap(),
            port: *port,
        };
        Reach::Only(openings.iter().map(opening).collect())
    }

    fn table(uplink: &IfName) -> Table<'_> {
        Table {
            name: "spore",
            mark: "owner-1".into(),
            range: "172.30.0.0/16".parse().unwrap(),
            uplinks: vec![uplink],
            ours_only: vec![],
        }
    }

    #[test]
    fn a_table_replaces_what_was_there_in_one_transaction() {
        let text = table(&name("eth0")).whole(&[]);
        assert!(text.starts_with("add table inet spore\ndelete table inet spore\ntable inet spore {\n"));
        assert!(text.contains("set uplinks { type ifname; elements = { \"eth0\" }; }"));
        assert!(
            text.contains("set taps { type ifname; }"),
            "no empty list of elements:\n{text}"
        );
    }

    #[test]
    fn more_sandboxes_are_more_elements_and_no_more_rules() {
        let uplink = name("eth0");
        let rules = |n: u8| {
            let guests: Vec<_> = (0..n).map(|n| guest(n, Reach::Everything)).collect();
            table(&uplink).whole(&guests).lines().count()
        };
        assert_eq!(rules(1), rules(100));
    }

    #[test]
    fn an_allow_list_is_a_chain_of_its_own() {
        let openings = [
            ("198.51.100.0/24", None),
            ("203.0.113.1/32", Some(443)),
            ("192.0.2.9/32", Some(53)),
        ];
        let guest = guest(1, only(&openings));
        let text = table(&name("eth0")).add(&guest);
        assert_eq!(
            text,
            "add chain inet spore allow-sp-1\n\
             add rule inet spore allow-sp-1 oifname @uplinks ip daddr { 198.51.100.0/24 } accept\n\
             add rule inet spore allow-sp-1 oifname @uplinks meta l4proto { tcp, udp } ip daddr . th dport \
             { 192.0.2.9/32 . 53, 203.0.113.1/32 . 443 } accept\n\
             add rule inet spore allow-sp-1 goto refuse\n\
             add element inet spore policies { \"sp-1\" : goto allow-sp-1 }\n\
             add element inet spore guests { \"sp-1\" . 02:53:ac:1e:00:01 . 172.30.0.1 }\n\
             add element inet spore taps { \"sp-1\" }\n"
        );
        assert!(
            table(&name("eth0"))
                .whole(&[guest])
                .contains("chain allow-sp-1 {")
        );
    }

    #[test]
    fn what_is_added_is_removed() {
        let table_of = name("eth0");
        for reach in [Reach::Everything, only(&[("203.0.113.1/32", None)])] {
            let guest = guest(7, reach);
            let added = table(&table_of).add(&guest);
            let removed = table(&table_of).remove(&guest);
            let count = |text: &str, word: &str| text.lines().filter(|l| l.starts_with(word)).count();
            assert_eq!(count(&added, "add element"), count(&removed, "delete element"));
            assert_eq!(count(&added, "add chain"), count(&removed, "delete chain"));
        }
    }
}
