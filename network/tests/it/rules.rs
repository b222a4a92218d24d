//! The rules as the kernel has them.

use serde_json::{Value, json};
use spore_network::Policy;

use crate::harness::*;

struct Listing(Vec<Value>);

impl Listing {
    fn take() -> Listing {
        let text = run("nft", &["-j", "list", "table", "inet", TABLE]);
        let listed: Value = serde_json::from_str(&text).unwrap();
        Listing(listed["nftables"].as_array().unwrap().clone())
    }

    fn rules(&self, chain: &str) -> Vec<&Value> {
        let rules = self.0.iter().filter_map(|item| item.get("rule"));
        rules
            .filter(|rule| rule["chain"] == chain)
            .map(|rule| &rule["expr"])
            .collect()
    }

    fn count(&self) -> usize {
        self.0.iter().filter(|item| item.get("rule").is_some()).count()
    }

    fn elements(&self, kind: &str, name: &str) -> Value {
        let mut sets = self.0.iter().filter_map(|item| item.get(kind));
        sets.find(|set| set["name"] == name).unwrap()["elem"].clone()
    }
}

#[test]
fn every_hook_has_its_chain_and_only_our_taps_and_range_are_dropped() {
    in_world(|world| {
        let _network = world.open();
        let listing = Listing::take();
        let base: Vec<_> = listing
            .0
            .iter()
            .filter_map(|item| item.get("chain"))
            .filter(|chain| chain.get("hook").is_some())
            .collect();
        let hooks: Vec<_> = base
            .iter()
            .map(|chain| (chain["hook"].as_str().unwrap(), chain["prio"].as_i64().unwrap()))
            .collect();
        assert_eq!(
            hooks,
            [
                ("prerouting", -300),
                ("input", 0),
                ("forward", 0),
                ("postrouting", 100)
            ]
        );
        assert!(
            base.iter().all(|chain| chain["policy"] == "accept"),
            "others' packets are none of ours"
        );
        let of_taps =
            |rule: &&Value| rule.to_string().contains("@taps") || rule.to_string().contains("@policies");
        assert!(listing.rules("prerouting").iter().all(of_taps));
        assert!(listing.rules("input").iter().all(of_taps));
        let of_range = |rule: &&Value| {
            rule.to_string().contains("172.30.0.0") || rule.to_string().contains("@ours_only")
        };
        assert!(
            listing
                .rules("forward")
                .iter()
                .all(|rule| of_taps(rule) || of_range(rule))
        );
        assert!(listing.rules("postrouting").iter().all(of_range));
    });
}

#[test]
fn sandboxes_are_elements_and_only_an_allow_list_is_a_chain() {
    in_world(|world| {
        let network = world.open();
        let before = Listing::take().count();
        let nat: Vec<_> = (0..3).map(|_| network.attach(&Policy::Nat).unwrap()).collect();
        let listing = Listing::take();
        assert_eq!(listing.count(), before);
        assert_eq!(listing.elements("set", "taps"), json!(["sp-0", "sp-1", "sp-2"]));
        assert_eq!(
            listing.elements("set", "guests")[1],
            json!({ "concat": ["sp-1", "02:53:ac:1e:00:03", "172.30.0.3"] })
        );
        assert_eq!(
            listing.elements("map", "policies")[1],
            json!(["sp-1", { "goto": { "target": "nat" } }])
        );
        let list = serde_json::from_value(json!({ "allow": ["203.0.113.1:80"] })).unwrap();
        let listed = network.attach(&list).unwrap();
        let listing = Listing::take();
        let own = listing.rules("allow-sp-3");
        assert_eq!((listing.count(), own.len()), (before + 2, 2));
        assert!(own[0].to_string().contains("203.0.113.53"), "DNS: {}", own[0]);
        drop((nat, listed));
        assert_eq!(Listing::take().count(), before);
    });
}
