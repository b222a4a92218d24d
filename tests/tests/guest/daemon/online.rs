//! Places on the network outlive the daemon with their sandboxes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::sandbox::LIMIT;
use spore_tests::{left, role, wire};

use super::Daemon;
use crate::image::image;
use crate::network::{ask, said};

/// A look into a guest takes seconds where it is interpreted.
const SOON: Duration = LIMIT;

pub fn a_place_on_the_network_is_adopted_and_given_back() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: making network namespaces takes root here");
        return;
    }
    let copy = image().copy();
    let root = copy.store().root();
    let mut host = role::start_through(&["unshare", "--net", "--mount"], "daemon online", root);
    assert_eq!(host.line(), "done", "what failed is above");
    host.finish();
    assert_eq!(left::in_store(root), [""; 0]);
}

/// A host with a daemon, in a network and a mount namespace of its own.
pub fn host(root: &Path) {
    let internet = wire::host(root);
    // Where the network keeps its state, and where it finds out about name servers: nobody else's here.
    let servers = root.join("servers");
    std::fs::write(&servers, format!("nameserver {}\n", wire::INTERNET)).unwrap();
    let servers = servers.to_str().unwrap();
    said(&["mount", "--bind", servers, "/etc/resolv.conf"]);
    said(&["mount", "-t", "tmpfs", "spore-tests", "/run"]);

    let mut daemon = Daemon::at(root);
    let first = daemon.create(json!({"network": "nat"}));
    let second = daemon.create(json!({"network": {"allow": [format!("{}:{}", wire::INTERNET, wire::HTTP)]}}));
    let lost = daemon.create(json!({"network": "nat"}));
    let hello = format!("hello {}", wire::HOST);
    let reaches = |daemon: &Daemon, sandbox: &Value| {
        assert_eq!(daemon.sh(sandbox, &ask(wire::INTERNET, wire::HTTP, 60)), hello);
    };
    for sandbox in [&first, &second, &lost] {
        reaches(&daemon, sandbox);
    }
    daemon.sh(&first, &wire::ticking("/run/heard", "/run/ended"));
    assert_eq!(taps(), 3);

    let run = root.join("run").join(lost["id"].as_str().unwrap());
    let vm = left::vms_using(&run).pop().unwrap();
    daemon.kill();
    left::kill(vm);
    daemon.again();
    left::soon("the lost one's place is given back", SOON, || taps() == 2);

    // The same place, the same rules, and a connection that went on.
    for sandbox in [&first, &second] {
        let id = sandbox["id"].as_str().unwrap();
        let shown = daemon.http.call(&format!("GET /v1/sandboxes/{id}")).expect(200);
        assert_eq!(shown["network"], sandbox["network"]);
        reaches(&daemon, sandbox);
    }
    let echo = format!(
        "echo hi | nc -w 2 {} {} || echo nothing",
        wire::INTERNET,
        wire::ECHO
    );
    assert_eq!(daemon.sh(&second, &echo), "nothing");
    let heard = || daemon.sh(&first, "wc -l </run/heard");
    let before = heard();
    left::soon("the connection going on", SOON, || heard() != before);
    assert_eq!(daemon.sh(&first, "cat /run/ended 2>/dev/null || true"), "");
    let id = first["id"].as_str().unwrap();
    let usage = daemon
        .http
        .call(&format!("GET /v1/sandboxes/{id}?usage=1"))
        .expect(200);
    assert!(
        usage["usage"]["networkReceivedBytes"].as_u64().unwrap() > 0,
        "{usage}"
    );

    // An adopted place is nobody else's, and one that is given back may be.
    let next = daemon.create(json!({"network": "nat"}));
    for sandbox in [&first, &second] {
        assert_ne!(next["network"]["address"], sandbox["network"]["address"]);
        assert_ne!(next["network"]["mac"], sandbox["network"]["mac"]);
    }
    reaches(&daemon, &next);

    // All of it again with a daemon that is stopped.
    daemon.stop();
    daemon.again();
    for sandbox in [&first, &second, &next] {
        reaches(&daemon, sandbox);
        let id = sandbox["id"].as_str().unwrap();
        daemon
            .http
            .call(&format!("DELETE /v1/sandboxes/{id}"))
            .expect(204);
    }
    left::soon("all places are given back", SOON, || taps() == 0);
    drop(daemon);
    assert_eq!(said(&["nft", "list", "tables"]), "", "the table is gone");
    drop(internet);
    said(&["umount", "/etc/resolv.conf"]);
    println!("done");
}

fn taps() -> usize {
    let output = Command::new("ip").args(["-brief", "link"]).output().unwrap();
    let links = String::from_utf8(output.stdout).unwrap();
    links.lines().filter(|line| line.starts_with("sp-")).count()
}
