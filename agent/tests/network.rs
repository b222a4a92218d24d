//! The agent makes a machine who it is on its network: in namespaces of the test's own, with an
//! interface made by software.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use spore_protocol::{ClientError, FailureKind, Network};
use support::TestAgent;

/// What makes namespaces in which we may do anything. They are gone when the last process in them is.
const UNSHARE: [&str; 5] = ["--user", "--map-root-user", "--net", "--mount", "--"];

/// What makes an Ethernet interface to be configured, of whatever kind this kernel has.
const ADD_INTERFACE: &str = "ip tuntap add dev eth0 mode tap || ip link add eth0 type dummy";

/// Runs one of the ignored tests below in namespaces.
fn in_namespaces(test: &str) {
    let probe = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", ADD_INTERFACE])
        .output();
    match probe {
        Ok(output) if output.status.success() => {}
        other => {
            eprintln!(
                "SKIPPED: {test}: no namespaces, no iproute2 or no interfaces made by software: {other:?}"
            );
            return;
        }
    }
    let output = Command::new("unshare")
        .args(UNSHARE)
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", test])
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    if let Some(skipped) = said.lines().find(|line| line.contains("SKIPPED")) {
        eprintln!("{skipped}");
    }
}

fn shell(script: &str) -> String {
    let output = Command::new("bash").args(["-ec", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// An agent that may configure `eth0`, in a machine with a loopback interface and an `/etc` of its own.
fn agent() -> TestAgent {
    // Whoever runs this test by hand outside of namespaces keeps what he has.
    assert_eq!(
        shell("ip -o link | wc -l").trim(),
        "1",
        "this is not a fresh network namespace"
    );
    shell(&format!(
        "mount -t tmpfs tmpfs /etc; ip link set lo up; {ADD_INTERFACE}"
    ));
    TestAgent::start_with(&["--network", "eth0"])
}

fn first() -> Network {
    Network {
        mac: [2, 0, 0, 0, 0, 1],
        address: Ipv4Addr::new(10, 1, 0, 3),
        prefix_len: 31,
        gateway: Ipv4Addr::new(10, 1, 0, 2),
        dns: vec![Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(9, 9, 9, 9)],
        mtu: 1400,
    }
}

fn second() -> Network {
    Network {
        mac: [2, 0, 0, 0, 0, 2],
        address: Ipv4Addr::new(10, 1, 0, 5),
        gateway: Ipv4Addr::new(10, 1, 0, 4),
        dns: vec![Ipv4Addr::new(10, 1, 0, 4)],
        mtu: 1500,
        ..first()
    }
}

fn assert_is(network: &Network) {
    let mac = network.mac.map(|byte| format!("{byte:02x}")).join(":");
    let link = shell("ip -o link show eth0");
    assert!(link.contains(&format!("link/ether {mac} ")), "{link}");
    assert!(
        link.contains(&format!(" mtu {} ", network.mtu)) && link.contains(",UP"),
        "{link}"
    );
    let addresses = shell("ip -o -4 addr show eth0");
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    let address = format!(" inet {}/{} ", network.address, network.prefix_len);
    assert!(addresses.contains(&address), "{addresses}");
    let routes = shell("ip -4 route");
    let default = format!("default via {} dev eth0", network.gateway);
    assert_eq!(routes.lines().count(), 2, "{routes}");
    assert!(routes.contains(&default), "{routes}");
    let resolver: String = network
        .dns
        .iter()
        .map(|dns| format!("nameserver {dns}\n"))
        .collect();
    assert_eq!(shell("cat /etc/resolv.conf").trim(), resolver.trim());
    assert_eq!(shell("ls -A /etc").trim(), "resolv.conf");
}

fn refusal(result: Result<(), ClientError>) -> FailureKind {
    match result {
        Err(ClientError::Refused(failure)) => failure.kind,
        other => panic!("not refused: {other:?}"),
    }
}

/// Two ends of a connection to one of our own addresses.
fn connection(address: Ipv4Addr) -> (TcpStream, TcpStream, TcpListener) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    for end in [&one, &other] {
        end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    (one, other, listener)
}

#[test]
fn a_machine_becomes_who_it_is_told_to_be() {
    in_namespaces("becomes");
}

#[test]
#[ignore = "in namespaces"]
fn becomes() {
    let agent = agent();
    let mut client = agent.client();
    client.set_network(None).unwrap();
    assert_eq!(
        shell("ls -A /etc"),
        "",
        "a machine that is on no network and stays so has nothing done to it"
    );
    client.set_network(Some(&first())).unwrap();
    assert_is(&first());
    client.set_network(Some(&first())).unwrap();
    assert_is(&first());
    let wide = Network {
        prefix_len: 8,
        gateway: Ipv4Addr::new(10, 200, 0, 1),
        dns: Vec::new(),
        mtu: 576,
        ..first()
    };
    client.set_network(Some(&wide)).unwrap();
    assert_is(&wide);
}

#[test]
fn nothing_of_who_it_was_stays() {
    in_namespaces("forgets");
}

#[test]
#[ignore = "in namespaces"]
fn forgets() {
    let agent = agent();
    let mut client = agent.client();
    client.set_network(Some(&first())).unwrap();
    shell(
        "ip neigh add 10.1.0.2 lladdr 02:00:00:00:00:99 dev eth0
        ip addr add 10.9.9.9/24 dev eth0; ip addr add 10.9.9.10/24 dev eth0
        ip route add 10.77.0.0/16 via 10.1.0.2",
    );
    client.set_network(Some(&second())).unwrap();
    assert_is(&second());
    assert_eq!(shell("ip neigh show"), "");
    assert_eq!(
        shell("ip -6 addr show dev eth0 | grep -c 'inet6.*:1/' || true").trim(),
        "0"
    );
}

#[test]
fn without_a_network_its_interface_is_down_and_has_no_address() {
    in_namespaces("leaves");
}

#[test]
#[ignore = "in namespaces"]
fn leaves() {
    let agent = agent();
    let mut client = agent.client();
    client.set_network(Some(&first())).unwrap();
    for _ in 0..2 {
        client.set_network(None).unwrap();
        assert!(!shell("ip -o link show eth0").contains(",UP"));
        assert_eq!(shell("ip -o -4 addr show eth0; ip -4 route"), "");
        assert_eq!(shell("cat /etc/resolv.conf").trim(), "");
    }
    client.set_network(Some(&second())).unwrap();
    assert_is(&second());
}

#[test]
fn connections_of_who_it_was_are_dead_and_those_to_itself_live() {
    in_namespaces("disconnects");
}

#[test]
#[ignore = "in namespaces"]
fn disconnects() {
    let agent = agent();
    let mut client = agent.client();
    client.set_network(Some(&first())).unwrap();
    let (mut one, mut other, listener) = connection(first().address);
    let anyone = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let (mut own, mut owns_other, _listener) = connection(Ipv4Addr::LOCALHOST);
    // Many, so that a list has more than one part.
    let many = (0..200).flat_map(|_| {
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        [one, listener.accept().unwrap().0]
    });
    let many: Vec<_> = many.collect();
    // One whose other end never answers, one that is nobody's any more, and UDP of both kinds.
    let silent = std::thread::spawn(|| TcpStream::connect((Ipv4Addr::new(10, 1, 0, 2), 9)).unwrap_err());
    let (mut orphan, _open, _) = connection(first().address);
    orphan.write_all(b"last words").unwrap();
    drop(orphan);
    let connected = UdpSocket::bind((first().address, 0)).unwrap();
    connected.connect((first().gateway, 53)).unwrap();
    let open = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    std::thread::sleep(Duration::from_millis(200));

    match client.set_network(Some(&second())) {
        Err(ClientError::Refused(failure)) if failure.message.contains("INET_DIAG_DESTROY") => {
            eprintln!("SKIPPED: this kernel cannot end connections: {failure}");
            return;
        }
        outcome => outcome.unwrap(),
    }
    assert_is(&second());
    for end in [&mut one, &mut other] {
        let error = end.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
        assert!(end.write(b"x").is_err());
    }
    for mut end in many {
        assert_eq!(
            end.read(&mut [0; 1]).unwrap_err().kind(),
            ErrorKind::ConnectionAborted
        );
    }
    assert!(silent.join().is_ok());
    assert!(connected.peer_addr().is_err(), "it still is connected");
    assert!(connected.send(b"x").is_err());
    own.write_all(b"still here").unwrap();
    owns_other.read_exact(&mut [0; 10]).unwrap();
    TcpStream::connect((Ipv4Addr::LOCALHOST, anyone.local_addr().unwrap().port())).unwrap();
    open.send_to(b"x", (Ipv4Addr::LOCALHOST, 9)).unwrap();
    let left = shell("ss -tanH state connected exclude time-wait | grep -F 10.1.0.3 || true");
    assert_eq!(left, "");
}

#[test]
fn what_cannot_be_is_refused_and_what_the_kernel_refuses_is_told() {
    in_namespaces("refuses");
}

#[test]
#[ignore = "in namespaces"]
fn refuses() {
    let agent = agent();
    let mut client = agent.client();
    let off_the_link = Network {
        gateway: Ipv4Addr::new(10, 2, 0, 1),
        ..first()
    };
    assert_eq!(
        refusal(client.set_network(Some(&off_the_link))),
        FailureKind::InvalidArgument
    );
    client.set_network(Some(&first())).unwrap();
    shell("ip link set eth0 name eth1");
    match client.set_network(Some(&second())) {
        Err(ClientError::Refused(failure)) => assert!(!failure.message.is_empty(), "{failure:?}"),
        other => panic!("{other:?}"),
    }
    // It is no longer ours.
    assert!(shell("ip -o -4 addr show eth1").contains("10.1.0.3"));
}

#[test]
fn an_ordinary_process_leaves_the_machines_network_alone() {
    let agent = TestAgent::start();
    assert_eq!(
        refusal(agent.client().set_network(Some(&first()))),
        FailureKind::Unsupported
    );
    agent.client().set_network(None).unwrap();
}
