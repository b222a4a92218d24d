//! Packages that cannot be had, or that do harm, from an archive of the test's own.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use spore_builder::observe::BuildEvent;
use spore_builder::{BuildError, Built, Host, Manifest, Options};
use spore_network::Config;
use spore_tests::archive::{self, Package};
use spore_tests::data::Scratch;
use spore_tests::{host, left, role, wire};

use crate::builds::assert_nothing_was_built;
use crate::image::{On, base64, run_step};

/// How many packets that ask for a connection apt may send meanwhile: in 20 s of the guest's time it is five, twice
/// (after 1, 3, 7 and 15 s again). As the base has it, it would be 20: 30 s, four times.
const ASKED: std::ops::RangeInclusive<u32> = 2..=14;
/// The disk that the base has, in MiB, and a larger one.
const DISK_MB: u64 = 20480;
const LARGER_MB: u64 = 21504;
/// What the package has in it, and what the filled disk has left.
const LARGE_BYTES: usize = 6 << 20;
const LEFT_MB: u64 = 3;

pub fn what_goes_wrong_with_packages_is_told_and_can_be_tried_again() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: making network namespaces takes root here");
        return;
    }
    if !host::cache().join("bases/debian").exists() {
        println!(
            "SKIPPED: there is no base \"debian\": `make base-debian` makes it where there is a package registry"
        );
        return;
    }
    let scratch = Scratch::new();
    std::os::unix::fs::symlink(host::cache(), scratch.path().join("cache")).unwrap();
    let mut builds = role::start_through(&["unshare", "--net"], "packaged", scratch.path());
    assert_eq!(builds.line(), "done", "what failed is above");
    builds.finish();
    assert_eq!(left::in_store(&scratch.path().join("data")), [""; 0]);
}

/// What a host with the cache and the archive in `root` does. It has its network namespace for itself.
pub fn packaged(root: &Path) {
    let own_init = b"#!/bin/sh\nexec sleep infinity\n".to_vec();
    archive::make(
        &root.join(wire::FILES),
        &[
            Package {
                name: "large",
                files: &[("opt/large", 0o644, vec![0; LARGE_BYTES])],
            },
            Package {
                name: "own-init",
                files: &[("usr/sbin/init", 0o755, own_init)],
            },
        ],
    );
    let internet = wire::host(root);
    let host = Host::open(&root.join("data"), &root.join("cache"), None).unwrap();
    let host = host.with_network(Config {
        state_dir: root.join("network"),
        ..Config::default()
    });

    wire::silence(&internet, true);
    a_mirror_that_does_not_answer(&host);
    let asked = wire::ignored(&internet);
    assert!(ASKED.contains(&asked), "apt gave up after {asked} packets");
    wire::silence(&internet, false);
    // Now the same build goes on.
    a_disk_that_is_full_amid_an_install(&host);
    // And with more room it does not fail for want of it.
    an_init_in_a_package(&host);
    a_package_that_does_not_exist(&host);
    drop(internet);
    println!("done");
}

fn a_mirror_that_does_not_answer(host: &Host) {
    let tried = build(host, DISK_MB, "large");
    let BuildError::StepFailed {
        step: 2,
        label,
        reason,
    } = tried.result.unwrap_err()
    else {
        panic!("{:?}", tried.cached);
    };
    assert_eq!(label, "apt-get update");
    let address = format!("{}:{}", wire::INTERNET, wire::HTTP);
    assert!(
        reason.contains(&address) && reason.contains("timed out"),
        "{reason}"
    );
    assert_nothing_was_built(host);
}

fn a_disk_that_is_full_amid_an_install(host: &Host) {
    let tried = build(host, DISK_MB, "large");
    assert_eq!(tried.cached, 2);
    let error = tried.result.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(
            error,
            BuildError::DiskFull {
                step: 2,
                disk_mb: DISK_MB,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(text.contains("(apt-get install) found the disk full"), "{text}");
    assert!(text.contains("diskMB 20480"), "{text}");
    assert!(text.contains("/opt/large"), "in dpkg's own words: {text}");
    assert_nothing_was_built(host);
    assert_eq!(
        host.store().list_steps().unwrap().len(),
        2,
        "not the one that failed"
    );
}

fn an_init_in_a_package(host: &Host) {
    let steps = [sources(), fill(), install(&["large", "own-init"])];
    let error = build_steps(host, LARGER_MB, &steps).result.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BuildError::NotIntact { .. }), "{error:?}");
    let what = "after steps[2] (apt_install large own-init) /sbin/init is another program";
    assert!(text.contains(what), "{text}");
    assert_nothing_was_built(host);
}

fn a_package_that_does_not_exist(host: &Host) {
    let tried = build(host, LARGER_MB, "no-such-package");
    assert_eq!(tried.cached, 2);
    let BuildError::StepFailed {
        step: 2,
        label,
        reason,
    } = tried.result.unwrap_err()
    else {
        panic!("{:?}", tried.cached);
    };
    assert_eq!(label, "apt-get install");
    assert!(
        reason.ends_with("\n  E: Unable to locate package no-such-package"),
        "{reason}"
    );
    assert_nothing_was_built(host);
}

/// A build that was tried.
struct Tried {
    result: Result<Built, BuildError>,
    /// How many of its steps need not run.
    cached: usize,
}

fn install(packages: &[&str]) -> Value {
    json!({"type": "apt_install", "args": {"packages": packages}})
}

fn build(host: &Host, disk_mb: u64, package: &str) -> Tried {
    build_steps(host, disk_mb, &[sources(), fill(), install(&[package])])
}

fn build_steps(host: &Host, disk_mb: u64, steps: &[Value]) -> Tried {
    let json = json!({
        "base": "debian",
        "steps": steps,
        "builderMemoryMB": 512,
        "runtimeMemoryMB": 512,
        "diskMB": disk_mb,
    });
    let manifest = Manifest::parse(json.to_string().as_bytes(), &host::limits()).unwrap();
    let (mut cached, begun) = (0, Instant::now());
    let mut observer = On(|event: BuildEvent<'_>| {
        if !matches!(event, BuildEvent::Output(_)) {
            // Where the minutes go that this test takes.
            eprintln!("{:6.1} s: {event:?}", begun.elapsed().as_secs_f64());
        }
        cached += usize::from(matches!(event, BuildEvent::StepCached { .. }));
    });
    let result = spore_builder::build(host, &manifest, &Options::default(), &mut observer);
    eprintln!("{:6.1} s: the end", begun.elapsed().as_secs_f64());
    Tried { result, cached }
}

/// The test's archive instead of the base's, and no proxy on the way to it.
fn sources() -> Value {
    let conf = format!(
        "Dir::Etc::sourcelist \"/etc/apt/test.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
         Acquire::http::Proxy::{} \"DIRECT\";\n",
        wire::INTERNET
    );
    let list = format!("deb [trusted=yes] http://{}/ ./\n", wire::INTERNET);
    json!({"type": "add_dir", "args": {"path": "/etc/apt", "files": [
        {"relativePath": "apt.conf.d/99test", "content": base64(conf)},
        {"relativePath": "test.list", "content": base64(list)},
    ]}})
}

/// Fills a disk of the base's own size but for a little. A larger one has room.
fn fill() -> Value {
    run_step(&format!(
        "set -- $(df -m --output=size,avail / | tail -n 1); [ $1 -gt {DISK_MB} ] || fallocate -l $(($2 - {LEFT_MB}))M /fill"
    ))
}
