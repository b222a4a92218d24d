//! Guests on a network: what they reach, who they are there, and what is left.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use spore_builder::Plugged;
use spore_network::{Config, Network, Policy};
use spore_snapshot::store::Store;
use spore_tests::sandbox::{LIMIT, Sandbox};
use spore_tests::{left, role, wire};
use spore_vmm::guest::{Guest, Someone};
use spore_vmm::machine::Identity;

use crate::image::image;

/// Forks that go online at the same time.
const FORKS: usize = 8;

pub fn forks_are_themselves_on_the_network_and_reach_what_they_may() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: making network namespaces takes root here");
        return;
    }
    let copy = image().copy();
    let root = copy.store().root();
    let mut host = role::start_through(&["unshare", "--net"], "networked", root);
    assert_eq!(host.line(), "done", "what failed is above");
    host.finish();
    assert_eq!(left::in_store(root), [""; 0]);
}

/// What a host with the store does. It has its network namespace for itself.
pub fn networked(root: &Path) {
    let internet = wire::host(root);
    let store = Store::open(root).unwrap();
    // Not in the store: its directories are the store's to sweep.
    let state = tempfile::tempdir().unwrap();
    let network = open(state.path());
    let here = TcpListener::bind(("0.0.0.0", 8080)).unwrap();

    let mut forks = eight_at_once(&store, &network);
    reach_nothing_else(&mut forks, &here);
    drop(forks);
    an_allow_list_is_all_that_is_reached(&store, &network);
    without_a_network_there_is_none(&store);
    a_live_fork_is_somebody_else(&store, &network);

    drop(network);
    assert_eq!(said(&["nft", "list", "tables"]), "", "the table is gone");
    let links = said(&["ip", "-brief", "link"]);
    assert!(!links.contains("sp-"), "{links}");
    drop(internet);
    println!("done");
}

fn open(state: &Path) -> Network {
    let servers = state.join("resolv.conf");
    std::fs::write(&servers, format!("nameserver {}\n", wire::INTERNET)).unwrap();
    let network = Network::open(Config {
        state_dir: state.join("network"),
        resolv_conf: vec![servers.clone()],
        ..Config::default()
    });
    network.unwrap()
}

pub fn said(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A guest and its place on the network, which goes after it.
struct Online {
    guest: Sandbox,
    plugged: Plugged,
}

impl Online {
    fn new(store: &Store, network: &Network, policy: &Policy) -> Self {
        let plugged = Plugged::new(network, policy).unwrap();
        let checkpoint = store.list_checkpoints().unwrap().remove(0).0;
        let checkpoint = store.open_checkpoint(&checkpoint).unwrap();
        let who = Someone::on(Identity::default(), plugged.plug().clone());
        let guest = Sandbox::new(Guest::fork_as(store, &checkpoint, who).unwrap());
        Self { guest, plugged }
    }

    fn address(&self) -> Ipv4Addr {
        self.plugged.plug().network.address
    }

    /// Whether the guest's own kernel has who it is.
    fn check(&mut self) {
        let network = self.plugged.plug().network.clone();
        let shown = self.guest.sh("ifconfig eth0; ip route; cat /etc/resolv.conf");
        let mac = network.mac.map(|byte| format!("{byte:02X}")).join(":");
        for part in [
            format!("addr:{} ", network.address),
            format!("HWaddr {mac}"),
            format!("MTU:{}", network.mtu),
            format!("default via {}", network.gateway),
            format!("nameserver {}", wire::INTERNET),
        ] {
            assert!(shown.contains(&part), "{part} is not in:\n{shown}");
        }
    }

    fn fetch(&mut self) -> String {
        self.guest.sh(&ask(wire::INTERNET, wire::HTTP, 60))
    }
}

/// A script that prints what is there, or `nothing` within seconds: for what is not there.
fn fetch(address: Ipv4Addr, port: u16) -> String {
    ask(address, port, 3)
}

/// With nc: wget of a static BusyBox looks the port up in a way that glibc does not survive without its libraries.
pub fn ask(address: Ipv4Addr, port: u16, seconds: u32) -> String {
    format!(
        "said=$(printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w {seconds} {address} {port} 2>/dev/null | tail -n 1); \
         echo ${{said:-nothing}}"
    )
}

fn eight_at_once(store: &Store, network: &Network) -> Vec<Online> {
    let forks: Vec<Online> = std::thread::scope(|scope| {
        let one = || {
            scope.spawn(|| {
                let mut fork = Online::new(store, network, &Policy::Nat);
                // Behind the host's address, all of them.
                assert_eq!(fork.fetch(), format!("hello {}", wire::HOST));
                fork
            })
        };
        let threads: Vec<_> = (0..FORKS).map(|_| one()).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut addresses: Vec<_> = forks.iter().map(Online::address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), FORKS);
    let mut forks = forks;
    forks[0].check();
    forks[FORKS - 1].check();
    forks
}

/// The host itself, another guest, and what cloud hosts tell on link-local addresses.
fn reach_nothing_else(forks: &mut [Online], here: &TcpListener) {
    let (first, rest) = forks.split_first_mut().unwrap();
    let sibling = &mut rest[0];
    sibling
        .guest
        .sh("nc -l -p 8080 -e echo reached >/dev/null 2>&1 & echo");
    let gateway = first.plugged.plug().network.gateway;
    for address in [
        gateway,
        wire::HOST,
        sibling.address(),
        Ipv4Addr::new(169, 254, 169, 254),
    ] {
        assert_eq!(first.guest.sh(&fetch(address, 8080)), "nothing", "{address}");
    }
    here.set_nonblocking(true).unwrap();
    assert!(here.accept().is_err(), "nobody came through to the host");
    // In somebody else's name: nothing comes back, and nothing went out.
    let spoofed = "ip addr add 172.30.99.99/32 dev eth0 && ip route replace default via $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p') dev eth0 src 172.30.99.99";
    first.guest.sh(&format!("{spoofed}; true"));
    assert_eq!(first.guest.sh(&fetch(wire::INTERNET, wire::HTTP)), "nothing");
}

fn an_allow_list_is_all_that_is_reached(store: &Store, network: &Network) {
    let list = serde_json::from_str(&format!(r#"{{"allow": ["{}:{}"]}}"#, wire::INTERNET, wire::HTTP));
    let mut fork = Online::new(store, network, &list.unwrap());
    assert_eq!(fork.fetch(), format!("hello {}", wire::HOST));
    let echo = format!(
        "echo hi | nc -w 2 {} {} || echo nothing",
        wire::INTERNET,
        wire::ECHO
    );
    assert_eq!(fork.guest.sh(&echo), "nothing");
}

fn without_a_network_there_is_none(store: &Store) {
    let checkpoint = store.list_checkpoints().unwrap().remove(0).0;
    let mut fork = Sandbox::fork(store, &checkpoint);
    assert_eq!(fork.sh(&fetch(wire::INTERNET, wire::HTTP)), "nothing");
    assert!(!fork.sh("ifconfig -a").contains("inet addr:172"));
}

/// It has another address, and the connection that its parent has is dead in it; in the parent it lives.
fn a_live_fork_is_somebody_else(store: &Store, network: &Network) {
    let mut parent = Online::new(store, network, &Policy::Nat);
    parent.guest.sh(&wire::ticking("/run/heard", "/run/ended"));
    let heard = "wc -l </run/heard";
    left::soon("the parent's connection", LIMIT, || parent.guest.sh(heard) != "0");
    let plugged = Plugged::new(network, &Policy::Nat).unwrap();
    let who = Someone::on(Identity::default(), plugged.plug().clone());
    let mut forked = parent.guest.live_fork_anyone(store, &[who]);
    let mut child = Online {
        guest: Sandbox::new(forked.forks.remove(0).unwrap()),
        plugged,
    };
    child.check();
    assert_ne!(child.address(), parent.address());
    left::soon("the end of what was inherited", LIMIT, || {
        child.guest.sh("cat /run/ended 2>/dev/null || true") == "ended"
    });
    assert_eq!(child.fetch(), format!("hello {}", wire::HOST));

    let before = parent.guest.sh(heard);
    left::soon("the parent's connection going on", LIMIT, || {
        parent.guest.sh(heard) != before
    });
    assert_eq!(parent.guest.sh("cat /run/ended 2>/dev/null || true"), "");
    parent.check();

    // And one that is to have no network loses the one it inherits.
    let mut forked = parent.guest.live_fork_anyone(store, &[Someone::default()]);
    let mut offline = Sandbox::new(forked.forks.remove(0).unwrap());
    assert_eq!(offline.sh(&fetch(wire::INTERNET, wire::HTTP)), "nothing");
    assert!(!offline.sh("ifconfig -a").contains("inet addr:172"));
}
