//! Nothing is left, whoever ends how; and nothing is touched that is another's.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use spore_network::{Network, Policy};

use crate::harness::*;

/// Elements of the set of TAPs.
fn taps() -> Vec<String> {
    let listed: serde_json::Value =
        serde_json::from_str(&run("nft", &["-j", "list", "set", "inet", TABLE, "taps"])).unwrap();
    let elements = &listed["nftables"][1]["set"]["elem"];
    elements.as_array().map_or(vec![], |all| {
        all.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    })
}

fn links() -> String {
    ip("-br link")
}

fn wait_until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !what() {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nothing_is_left_after_the_last_one() {
    in_world(|world| {
        fs::create_dir(world.config().state_dir).unwrap();
        let before = traces(world);
        let network = world.open();
        assert_eq!(forwarding("up0").trim(), "1");
        let list = serde_json::from_str(r#"{"allow":["203.0.113.1:80"]}"#).unwrap();
        let (a, b) = (
            network.attach(&Policy::Nat).unwrap(),
            network.attach(&list).unwrap(),
        );
        drop(network);
        assert_eq!(taps(), ["sp-0", "sp-1"]);
        drop(a);
        assert_eq!(taps(), ["sp-1"]);
        assert!(!links().contains("sp-0"));
        drop(b);
        assert_eq!(traces(world), before);
    });
}

#[test]
fn a_copy_of_the_tap_does_not_keep_a_dropped_attachment() {
    in_world(|world| {
        let network = world.open();
        let attachment = network.attach(&Policy::Nat).unwrap();
        let _tap = attachment.tap().unwrap().try_clone_to_owned().unwrap();
        let _lease = attachment.lease().unwrap().try_clone_to_owned().unwrap();
        drop(attachment);
        assert!(!links().contains("sp-"));
        assert_eq!(taps(), [""; 0]);
        drop(network);
        assert!(!nft("list tables").contains(TABLE));
    });
}

#[test]
fn forwarding_that_was_on_stays_on() {
    in_world(|world| {
        fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "1").unwrap();
        drop(world.open());
        assert_eq!(forwarding("up0").trim(), "1");
    });
}

#[test]
fn a_host_that_has_become_a_router_since_stays_one() {
    in_world(|world| {
        let network = world.open();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        drop(network);
        assert_eq!(forwarding("up0").trim(), "1");
    });
}

#[test]
fn two_processes_share_the_network_and_the_last_one_removes_it() {
    in_world(|world| {
        let victim = world.victim("end", None);
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        assert_eq!(
            (victim.said.as_str(), attachment.interface().tap.as_str()),
            ("sp-0", "sp-1")
        );
        victim.end();
        assert_eq!(taps(), ["sp-1"]);
        Guest::new(&attachment).tcp(ONE, 80).unwrap();
        let victim = world.victim("end", None);
        drop(attachment);
        assert_eq!(taps(), [victim.said.as_str()]);
        victim.end();
        assert!(!nft("list tables").contains(TABLE));
        assert_eq!(forwarding("up0").trim(), "0");
    });
}

#[test]
fn a_killed_process_leaves_the_others_network_and_is_swept_by_the_next() {
    in_world(|world| {
        let victim = world.victim("die", None);
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&attachment);
        victim.kill();
        guest.tcp(ONE, 80).unwrap();
        wait_until(|| !links().contains("sp-0"));
        assert_eq!(taps(), ["sp-0", "sp-1"]);
        let other = world.open();
        assert_eq!(taps(), ["sp-1"]);
        guest.tcp(ONE, 80).unwrap();
        drop(other);
        guest.tcp(ONE, 80).unwrap();
    });
}

#[test]
fn the_only_process_killed_is_swept_by_the_next() {
    in_world(|world| {
        fs::create_dir(world.config().state_dir).unwrap();
        let before = traces(world);
        world.victim("die", None).kill();
        assert!(nft("list tables").contains(TABLE));
        let network = world.open();
        assert_eq!(taps(), [""; 0]);
        assert_eq!(
            network.attach(&Policy::Nat).unwrap().interface().tap,
            "sp-1",
            "not the last one's again"
        );
        drop(network);
        assert_eq!(traces(world), before, "and forwarding is as before the first");
    });
}

#[test]
fn with_other_settings_the_next_sweeps_as_well() {
    in_world(|world| {
        let mut config = world.config();
        config.range = "10.200.0.0/16".parse().unwrap();
        config.table = "another".into();
        let victim = world.victim("die", None);
        let refused = Network::open(config.clone()).unwrap_err().to_string();
        assert!(
            refused.contains("172.30.0.0/16") && refused.contains("10.200.0.0/16"),
            "{refused}"
        );
        victim.kill();
        let network = Network::open(config).unwrap();
        assert!(!nft("list tables").contains(TABLE));
        drop(network);
        assert_eq!(forwarding("up0").trim(), "0");
    });
}

#[test]
fn an_attachment_lives_as_long_as_somebody_has_its_lease() {
    in_world(|world| {
        let victim = world.victim("heir", None);
        let said = victim.said.clone();
        let (tap, _) = said.split_once(' ').unwrap();
        // The heir's standard input is the victim's, and its end is in our hands.
        let input = victim.kill_but_keep_input();
        let network = world.open();
        assert_eq!(taps(), [tap]);
        assert!(links().contains(tap));
        drop(network);
        assert!(nft("list tables").contains(TABLE), "it is still in use");
        drop(input);
        wait_until(|| !links().contains(tap));
        // The kernel closes a dying process's files one by one: the lease may be the last.
        wait_until(|| {
            drop(world.open());
            !nft("list tables").contains(TABLE)
        });
    });
}

#[test]
fn an_attachment_can_be_given_away_and_taken_over() {
    in_world(|world| {
        let network = world.open();
        let attachment = network.attach(&Policy::Nat).unwrap();
        let interface = attachment.interface().clone();
        let parts = attachment.into_parts().unwrap();
        assert_eq!(taps(), ["sp-0"]);
        let stranger = fs::File::open("/dev/null").unwrap();
        assert!(network.adopt(stranger.into(), None).is_err());
        let attachment = network.adopt(parts.lease, parts.tap).unwrap();
        assert_eq!(attachment.interface(), &interface);
        Guest::new(&attachment).tcp(ONE, 80).unwrap();
        drop(attachment);
        assert_eq!(taps(), [""; 0]);
        assert!(!links().contains("sp-0"));
    });
}

#[test]
fn rules_that_somebody_flushed_are_made_anew_for_all() {
    in_world(|world| {
        let network = world.open();
        let first = network.attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&first);
        nft("flush ruleset");
        assert!(guest.tcp(ONE, 80).is_err());
        let second = network.attach(&Policy::Nat).unwrap();
        assert_eq!(taps(), ["sp-0", "sp-1"]);
        guest.tcp(ONE, 80).unwrap();
        nft("flush ruleset");
        drop(second);
        assert_eq!(taps(), ["sp-0"]);
    });
}

#[test]
fn what_is_anothers_is_left_alone() {
    in_world(|world| {
        nft("add table inet other");
        nft("add chain inet other forward { type filter hook forward priority 10; policy accept; }");
        ip("tuntap add sp-0 mode tap");
        ip("link add sp-2 type bridge");
        ip("link set sp-2 alias spore-network");
        let network = world.open();
        let (a, b) = (
            network.attach(&Policy::Nat).unwrap(),
            network.attach(&Policy::Nat).unwrap(),
        );
        assert_eq!(
            (a.interface().tap.as_str(), b.interface().tap.as_str()),
            ("sp-1", "sp-3")
        );
        drop((a, b, network));
        let links = links();
        assert!(links.contains("sp-0") && links.contains("sp-2") && !links.contains("sp-1"));
        assert!(nft("list chain inet other forward").contains("priority filter + 10"));
    });
}
