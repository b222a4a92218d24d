//! A host with an internet, for tests: two network namespaces that are gone when the processes in them end.
//!
//! The host's is that of a process that was started through `unshare --net`; it calls [`host`]. The internet is a
//! process of its own, which calls [`internet`].

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::role::{self, Player};

/// The host's address on its uplink.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The internet's.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Where the internet serves what is in [`FILES`], and else says who asks, as HTTP.
pub const HTTP: u16 = 80;
/// Where it says back what it hears, for as long as it hears something.
pub const ECHO: u16 = 7;

/// What the internet serves: this directory of what it was started with.
pub const FILES: &str = "archive";

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().unwrap();
    assert!(status.success(), "ip {line}");
}

/// Makes the internet silent, as one that drops whatever comes, or lets it answer again.
pub fn silence(internet: &Player, silent: bool) {
    let namespace = format!("--net=/proc/{}/ns/net", internet.pid());
    let rules: &[&str] = match silent {
        true => &[
            "add table inet silence",
            "add chain inet silence in { type filter hook input priority 0; policy drop; }",
            "add rule inet silence in tcp flags syn counter",
        ],
        false => &["delete table inet silence"],
    };
    for rule in rules {
        let status = Command::new("nsenter").args([&namespace, "nft", rule]).status();
        assert!(status.unwrap().success(), "nft {rule}");
    }
}

/// How many packets asked for a connection since the internet is silent.
pub fn ignored(internet: &Player) -> u32 {
    let namespace = format!("--net=/proc/{}/ns/net", internet.pid());
    let output = Command::new("nsenter")
        .args([&namespace, "nft", "list table inet silence"])
        .output()
        .unwrap();
    let rules = String::from_utf8(output.stdout).unwrap();
    let (_, after) = rules.split_once("counter packets ").expect(&rules);
    after.split(' ').next().unwrap().parse().unwrap()
}

/// Makes the namespace of this process a host with an uplink, and starts the role `internet` at its other end.
pub fn host(root: &Path) -> Player {
    ip("link set lo up");
    ip("link add up0 type veth peer name up1");
    let mut internet = role::start_through(&["unshare", "--net"], "internet", root);
    assert_eq!(internet.line(), "here");
    ip(&format!("link set up1 netns {}", internet.pid()));
    ip(&format!("addr add {HOST}/24 dev up0"));
    ip("link set up0 up");
    ip(&format!("route add default via {INTERNET}"));
    assert_eq!(internet.line(), "listening");
    internet
}

/// A script that talks to the internet through one connection, once a second, from now on. What comes back is appended
/// to the file `heard`; the file `ended` is there when the connection has ended.
pub fn ticking(heard: &str, ended: &str) -> String {
    format!(
        "{{ (while echo tick; do sleep 1; done) | nc {INTERNET} {ECHO} >{heard}; echo ended >{ended}; }} >/dev/null 2>&1 & echo"
    )
}

/// The internet: configures the end of the wire that it is given, and serves until it is killed.
pub fn internet(root: &Path) {
    println!("here");
    let given = || {
        Command::new("ip")
            .args(["link", "show", "up1"])
            .output()
            .unwrap()
            .status
            .success()
    };
    let started = Instant::now();
    while !given() {
        assert!(started.elapsed() < Duration::from_secs(10), "no wire");
        std::thread::sleep(Duration::from_millis(20));
    }
    ip("link set lo up");
    ip(&format!("addr add {INTERNET}/24 dev up1"));
    ip("link set up1 up");
    let echo = TcpListener::bind(("0.0.0.0", ECHO)).unwrap();
    std::thread::spawn(move || for_each(&echo, say_back));
    let http = TcpListener::bind(("0.0.0.0", HTTP)).unwrap();
    println!("listening");
    let files = root.join(FILES);
    for_each(&http, move |stream| answer(stream, &files));
}

fn for_each(listener: &TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let serve = serve.clone();
        std::thread::spawn(move || serve(stream));
    }
}

fn say_back(mut stream: TcpStream) {
    let mut bytes = [0; 512];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

fn answer(mut stream: TcpStream, files: &Path) {
    let peer = stream.peer_addr().unwrap();
    let mut request = Vec::new();
    let mut bytes = [0; 512];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => request.extend(&bytes[..count]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let asked = request.split(' ').nth(1).unwrap_or_default();
    let (status, body) = match std::fs::read(files.join(asked.trim_start_matches(['/', '.']))) {
        Ok(bytes) => ("200 OK", bytes),
        Err(_) if files.exists() => ("404 Not Found", Vec::new()),
        Err(_) => ("200 OK", format!("hello {}\n", peer.ip()).into_bytes()),
    };
    let head = format!("HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
}
