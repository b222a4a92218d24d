//! What the host lacks is said, with what to do, and nothing is left.

use std::fs;

use rustix::thread::{CapabilitySet, CapabilitySets};
use spore_network::{Config, Network, NetworkError, Policy};

use crate::harness::*;

/// Opening fails with a message that has all of `says`, and changes nothing.
fn refused(world: &World, config: Config, says: &[&str]) -> NetworkError {
    fs::create_dir_all(world.config().state_dir).unwrap();
    let before = traces(world);
    let error = Network::open(config).unwrap_err();
    let text = error.to_string();
    assert!(says.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(traces(world), before);
    error
}

#[test]
fn a_range_that_is_in_use_is_refused_and_what_uses_it_is_named() {
    in_world(|world| {
        let mut config = world.config();
        config.range = "10.77.0.0/16".parse().unwrap();
        refused(world, config, &["10.77.0.0/16", "the address 10.77.0.1 of lan0"]);
        ip("route add 172.16.0.0/12 via 10.77.0.2");
        let error = refused(
            world,
            world.config(),
            &["172.30.0.0/16", "the route to 172.16.0.0/12 by lan0"],
        );
        assert!(matches!(error, NetworkError::Collision { .. }));
        ip("route del 172.16.0.0/12");
        ip("route add blackhole 172.30.9.0/24");
        refused(world, world.config(), &["the route to 172.30.9.0/24"]);
    });
}

#[test]
fn our_own_range_is_no_collision_for_the_next_process() {
    in_world(|world| {
        let _attachment = world.open().attach(&Policy::Nat).unwrap();
        world.open();
    });
}

#[test]
fn a_host_without_a_way_out_has_no_uplink() {
    in_world(|world| {
        let mut config = world.config();
        config.uplink = Some("eth7".into());
        refused(world, config, &["uplink eth7 does not exist"]);
        ip("route del default");
        let error = refused(world, world.config(), &["no default route", "name the interface"]);
        assert!(matches!(error, NetworkError::NoUplink));
        let mut config = world.config();
        config.uplink = Some("up0".into());
        Network::open(config).unwrap();
    });
}

#[test]
fn without_the_capability_it_is_named() {
    in_world(|world| {
        let all = rustix::thread::capabilities(None).unwrap();
        let effective = all.effective - CapabilitySet::NET_ADMIN;
        fs::create_dir(world.config().state_dir).unwrap();
        let before = traces(world);
        rustix::thread::set_capabilities(None, CapabilitySets { effective, ..all }).unwrap();
        let refused = Network::open(world.config());
        rustix::thread::set_capabilities(None, all).unwrap();
        let error = refused.unwrap_err();
        assert!(matches!(error, NetworkError::NoCapability { .. }));
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        assert_eq!(traces(world), before);
    });
}

#[test]
fn without_the_tun_device_it_is_named() {
    in_world(|world| {
        run("mount", &["-t", "tmpfs", "none", "/dev/net"]);
        let error = refused(world, world.config(), &["/dev/net/tun", "modprobe tun"]);
        assert!(matches!(error, NetworkError::NoTun { .. }));
    });
}

#[test]
fn without_nft_it_is_named() {
    in_world(|world| {
        let victim = world.victim("end", Some("/nowhere:relative"));
        assert!(victim.said.starts_with("NoNft"), "{}", victim.said);
        assert!(
            victim.said.contains("install the package nftables"),
            "{}",
            victim.said
        );
        victim.end();
        assert!(!fs::exists(world.config().state_dir).unwrap());
    });
}

#[test]
fn a_table_of_our_name_that_is_anothers_is_left_alone() {
    in_world(|world| {
        nft("add table inet spore-test");
        nft("add set inet spore-test theirs { type ipv4_addr; }");
        let error = refused(
            world,
            world.config(),
            &["table `inet spore-test` exists", "another table name"],
        );
        assert!(matches!(error, NetworkError::TableTaken { .. }));
    });
}

#[test]
fn an_attachment_that_fails_half_way_leaves_nothing() {
    in_world(|world| {
        // An nft that refuses whatever names the first TAP.
        let directory = world.directory.path().join("bin");
        fs::create_dir(&directory).unwrap();
        let script = "#!/bin/sh\nrules=$(cat)\ncase $rules in *'\"sp-0\"'*) echo 'no room for sp-0' >&2; exit 1;; esac\n\
                      printf '%s\\n' \"$rules\" | PATH=/usr/sbin:/usr/bin:/sbin:/bin nft \"$@\"\n";
        fs::write(directory.join("nft"), script).unwrap();
        run("chmod", &["+x", directory.join("nft").to_str().unwrap()]);
        fs::create_dir(world.config().state_dir).unwrap();
        let before = traces(world);
        let path = format!("{}:/usr/bin:/bin", directory.display());
        let victim = world.victim("end", Some(&path));
        assert!(victim.said.contains("no room for sp-0"), "{}", victim.said);
        victim.end();
        assert_eq!(traces(world), before);
    });
}

#[test]
fn a_range_that_is_full_is_said_to_be_and_the_dead_are_not_counted() {
    in_world(|world| {
        let mut config = world.config();
        config.range = "172.30.0.0/30".parse().unwrap();
        let network = Network::open(config).unwrap();
        let first = network.attach(&Policy::Nat).unwrap();
        let second = network.attach(&Policy::Nat).unwrap();
        let error = network.attach(&Policy::Nat).unwrap_err();
        assert!(matches!(error, NetworkError::Full { count: 2, .. }), "{error}");
        drop(second.into_parts());
        // A child that another test has just forked has the lease, too, until it executes.
        let third = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            network.attach(&Policy::Nat).ok()
        });
        let third = third.unwrap();
        assert_ne!(third.interface().address, first.interface().address);
    });
}

#[test]
fn names_that_others_have_taken_are_said_to_be() {
    in_world(|world| {
        let mut config = world.config();
        config.range = "172.30.0.0/31".parse().unwrap();
        let network = Network::open(config).unwrap();
        ip("link add sp-0 type bridge");
        let error = network.attach(&Policy::Nat).unwrap_err();
        assert!(error.to_string().contains("sp-0"), "{error}");
        assert!(matches!(error, NetworkError::TapNamesInUse { .. }));
        assert!(ip("-br link").contains("sp-0"));
    });
}

#[test]
fn no_network_is_nothing_to_attach() {
    in_world(|world| {
        let error = world.open().attach(&Policy::None).unwrap_err();
        assert!(matches!(error, NetworkError::NothingAsked));
    });
}

#[test]
fn an_allow_list_that_names_what_is_never_reached_leaves_nothing() {
    in_world(|world| {
        let network = world.open();
        let before = traces(world);
        for entry in [
            "169.254.169.254",
            "172.30.0.0/20",
            "localhost:80",
            "no-such-name.invalid",
        ] {
            let policy = serde_json::from_value(serde_json::json!({ "allow": [entry] })).unwrap();
            let error = network.attach(&policy).unwrap_err().to_string();
            assert!(error.contains(entry), "{error}");
        }
        assert_eq!(traces(world), before);
    });
}

#[test]
fn another_network_namespace_is_not_the_one_it_was_opened_in() {
    in_world(|world| {
        let network = world.open();
        let attached = world.lan.run(|| network.attach(&Policy::Nat).map(drop));
        assert!(attached.is_err());
        let opened = world.lan.run(|| Network::open(world.config()).map(drop));
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("another network namespace"), "{error}");
    });
}
