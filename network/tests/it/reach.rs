//! What a sandbox reaches, and what it doesn't.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use spore_network::Policy;

use crate::harness::*;

fn allow(entries: &[&str]) -> Policy {
    serde_json::from_value(serde_json::json!({ "allow": entries })).unwrap()
}

#[test]
fn nat_reaches_the_world_by_the_uplink_and_under_its_address() {
    in_world(|world| {
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&attachment);
        assert_eq!(guest.tcp(ONE, 80).unwrap(), UPLINK.to_string());
        assert_eq!(guest.tcp(TWO, 443).unwrap(), UPLINK.to_string());
        assert_eq!(attachment.interface().dns, [DNS]);
        guest.udp(DNS, 53).unwrap();
        assert!(
            guest.tcp(LAN, 80).is_err(),
            "what isn't behind the uplink isn't reached"
        );
    });
}

#[test]
fn the_host_is_never_reached_under_any_of_its_addresses() {
    in_world(|world| {
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        let listed = world
            .open()
            .attach(&allow(&["198.51.100.0/24", "10.0.0.0/8", "203.0.113.1"]))
            .unwrap();
        // As container engines publish ports: the address is rewritten before routing.
        nft("add table ip other");
        nft("add chain ip other pre { type nat hook prerouting priority dstnat; }");
        nft("add rule ip other pre tcp dport 8081 dnat to 203.0.113.1:80");
        for attachment in [&attachment, &listed] {
            let guest = Guest::new(attachment);
            guest.tcp(ONE, 80).unwrap();
            let (gateway, broadcast) = (attachment.interface().gateway, [198, 51, 100, 255].into());
            for (address, port) in [
                (gateway, 80),
                (UPLINK, 80),
                (LAN_HOST, 80),
                (UPLINK, 8081),
                (gateway, 8081),
            ] {
                assert!(guest.tcp(address, port).is_err(), "{address}:{port}");
            }
            for address in [gateway, UPLINK, LAN_HOST, broadcast] {
                assert!(guest.udp(address, 53).is_err(), "{address}");
            }
            // It exists, and the host's default route leads there.
            assert!(guest.tcp(METADATA, 80).is_err());
        }
        assert_eq!(tcp(METADATA, 80).unwrap(), UPLINK.to_string());
    });
}

#[test]
fn the_host_answers_arp_for_the_gateway_only() {
    in_world(|world| {
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&attachment);
        guest.ns.run(|| {
            ip("route add 198.51.100.2/32 dev eth0");
            assert!(tcp(UPLINK, 80).is_err());
            let neighbours = ip("neigh show dev eth0");
            assert!(
                neighbours.contains("198.51.100.2 FAILED") || neighbours.contains("198.51.100.2 INCOMPLETE"),
                "{neighbours}"
            );
        });
    });
}

#[test]
fn an_allow_list_opens_what_it_says_and_dns() {
    in_world(|world| {
        let hosts = world.directory.path().join("hosts");
        fs::write(&hosts, "203.0.113.2 files.example\n203.0.113.20 files.example\n").unwrap();
        run("mount", &["--bind", hosts.to_str().unwrap(), "/etc/hosts"]);
        let network = world.open();
        let list = [
            "203.0.113.1:80",
            "203.0.113.16/28",
            "files.example:443",
            "203.0.113.0/30:80",
        ];
        let attachment = network.attach(&allow(&list)).unwrap();
        let guest = Guest::new(&attachment);
        let far = Ipv4Addr::new(203, 0, 113, 20);
        for (address, port) in [(ONE, 80), (TWO, 443), (TWO, 80), (far, 80), (far, 443), (DNS, 53)] {
            assert_eq!(
                guest.tcp(address, port).unwrap(),
                UPLINK.to_string(),
                "{address}:{port}"
            );
        }
        guest.udp(DNS, 53).unwrap();
        for (address, port) in [(ONE, 443), (DNS, 80), (Ipv4Addr::new(198, 51, 100, 1), 80)] {
            let start = Instant::now();
            assert!(guest.tcp(address, port).is_err(), "{address}:{port}");
            assert!(
                start.elapsed() < Duration::from_millis(300),
                "it is refused, not left hanging"
            );
        }
        let all = network.attach(&allow(&["0.0.0.0/0:80"])).unwrap();
        let guest = Guest::new(&all);
        guest.tcp(ONE, 80).unwrap();
        assert!(guest.tcp(ONE, 443).is_err());
        let all = network.attach(&allow(&["0.0.0.0/0"])).unwrap();
        Guest::new(&all).tcp(ONE, 443).unwrap();
    });
}

#[test]
fn nobody_reaches_a_sandbox_from_outside_not_even_another() {
    in_world(|world| {
        let network = world.open();
        let (a, b) = (
            network.attach(&Policy::Nat).unwrap(),
            network.attach(&Policy::Nat).unwrap(),
        );
        let (guest_a, guest_b) = (Guest::new(&a), Guest::new(&b));
        guest_b.ns.run(|| serve_tcp(80));
        // TCP needs packets both ways; this hears what comes one way.
        let ear = guest_b.ns.run(|| ear(Ipv4Addr::UNSPECIFIED, 9));
        let address = b.interface().address;
        let knock = |who: &str| {
            assert!(tcp(address, 80).is_err(), "{who}");
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let _ = socket.send_to(who.as_bytes(), (address, 9));
        };
        guest_a.ns.run(|| knock("another sandbox"));
        assert!(guest_a.tcp(b.interface().gateway, 80).is_err());
        world.internet.run(|| {
            ip("route add 172.30.0.0/16 via 198.51.100.2");
            knock("the internet");
        });
        world.lan.run(|| knock("another network"));
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let _third = network.attach(&Policy::Nat).unwrap();
        world.internet.run(|| knock("the internet, through a router"));
        world.lan.run(|| knock("another network, through a router"));
        assert_eq!(heard(&ear), [""; 0]);
        guest_b.tcp(ONE, 80).unwrap();
    });
}

#[test]
fn a_host_that_routes_for_us_routes_for_nobody_else() {
    in_world(|world| {
        let network = world.open();
        fs::write("/proc/sys/net/ipv4/conf/lan0/forwarding", "1").unwrap();
        let from_outside = || {
            world.internet.run(|| {
                ip("route replace 10.77.0.0/24 via 198.51.100.2");
                tcp(LAN, 80)
            })
        };
        assert!(from_outside().is_err());
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let _attachment = network.attach(&Policy::Nat).unwrap();
        from_outside().unwrap();
    });
}

#[test]
fn what_comes_from_another_address_is_dropped() {
    in_world(|world| {
        let network = world.open();
        let (a, b) = (
            network.attach(&Policy::Nat).unwrap(),
            network.attach(&Policy::Nat).unwrap(),
        );
        let (guest, other) = (Guest::new(&a), b.interface().address);
        let ear = world.internet.run(|| ear(ONE, 9));
        let send = |from: Ipv4Addr, text: &str| {
            guest.ns.run(|| {
                UdpSocket::bind((from, 0))
                    .unwrap()
                    .send_to(text.as_bytes(), (ONE, 9))
                    .unwrap()
            });
        };
        // So that it knows the gateway's MAC address, which it can't ask for under another address.
        guest.tcp(ONE, 80).unwrap();
        for address in [other, [192, 0, 2, 7].into(), UPLINK] {
            guest.ns.run(|| ip(&format!("addr add {address}/32 dev eth0")));
            send(address, "spoofed");
        }
        send(a.interface().address, "honest");
        assert_eq!(heard(&ear), ["honest"]);
    });
}

#[test]
fn what_comes_from_another_mac_is_dropped() {
    in_world(|world| {
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&attachment);
        let ear = world.internet.run(|| ear(ONE, 9));
        let send = |text: &str| {
            guest.ns.run(|| {
                ip(&format!(
                    "neigh replace {} lladdr 06:53:ac:1e:00:00 dev eth0",
                    attachment.interface().gateway
                ));
                UdpSocket::bind("0.0.0.0:0")
                    .unwrap()
                    .send_to(text.as_bytes(), (ONE, 9))
                    .unwrap();
            });
        };
        send("honest");
        guest.ns.run(|| ip("link set eth0 address 02:00:00:00:00:99"));
        send("spoofed");
        guest.ns.run(|| ip("link set eth0 address 02:53:ac:1e:00:01"));
        send("honest again");
        assert_eq!(heard(&ear), ["honest", "honest again"]);
    });
}

#[test]
fn ipv6_is_off_on_a_tap() {
    in_world(|world| {
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&attachment);
        let tap = &attachment.interface().tap;
        assert_eq!(ip(&format!("-6 addr show dev {tap}")), "");
        guest.ns.run(|| {
            let ping = std::process::Command::new("ip")
                .args(["-6", "neigh", "show"])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&ping.stdout), "");
        });
        let value = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6")).unwrap();
        assert_eq!(value.trim(), "1");
    });
}

#[test]
fn eight_at_once_have_each_their_own_address() {
    in_world(|world| {
        let network = world.open();
        let here = Ns::here();
        let attachments: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| here.run(|| network.attach(&Policy::Nat).unwrap())))
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let mut addresses: Vec<_> = attachments.iter().map(|a| a.interface().address).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 8);
        let guests: Vec<_> = attachments.iter().map(Guest::new).collect();
        for guest in &guests {
            assert_eq!(guest.tcp(ONE, 80).unwrap(), UPLINK.to_string());
        }
    });
}

#[test]
fn a_megabyte_goes_through_with_the_uplinks_mtu_and_is_counted() {
    in_world(|world| {
        let attachment = world.open().attach(&Policy::Nat).unwrap();
        assert_eq!(attachment.interface().mtu, MTU);
        assert!(ip(&format!("link show {}", attachment.interface().tap)).contains(&format!("mtu {MTU}")));
        let guest = Guest::new(&attachment);
        let sink = world.internet.run(|| TcpListener::bind("0.0.0.0:7").unwrap());
        let echo = thread::spawn(move || {
            let (mut stream, _) = sink.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
        let sent: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        let back = guest.ns.run(|| {
            let mut stream = std::net::TcpStream::connect((ONE, 7)).unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            back
        });
        echo.join().unwrap();
        assert!(sent == back);
        let traffic = attachment.traffic().unwrap();
        assert!(
            traffic.sent_bytes > 1 << 20 && traffic.received_bytes > 1 << 20,
            "{traffic:?}"
        );
        assert!(
            traffic.sent_frames < 700,
            "segmentation is left to the host: {traffic:?}"
        );
    });
}

#[test]
fn the_next_owner_of_an_address_gets_nothing_of_the_last() {
    in_world(|world| {
        let mut config = world.config();
        config.range = "172.30.0.0/31".parse().unwrap();
        let network = spore_network::Network::open(config).unwrap();
        let server = world.internet.run(|| ear(ONE, 9));
        let mouth = || {
            let socket = UdpSocket::bind("0.0.0.0:4000").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
            socket
        };
        let first = network.attach(&Policy::Nat).unwrap();
        let guest = Guest::new(&first);
        let socket = guest.ns.run(mouth);
        socket.send_to(b"hello", (ONE, 9)).unwrap();
        let (_, back) = server.recv_from(&mut [0; 16]).unwrap();
        server.send_to(b"answer", back).unwrap();
        socket.recv(&mut [0; 16]).unwrap();
        let address = first.interface().address;
        drop((guest, first));

        let second = network.attach(&Policy::Nat).unwrap();
        assert_eq!(second.interface().address, address);
        let guest = Guest::new(&second);
        let socket = guest.ns.run(mouth);
        server.send_to(b"more for the first", back).unwrap();
        assert!(socket.recv(&mut [0; 32]).is_err());
    });
}
