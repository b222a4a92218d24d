//! One real build: packages of the real archives, in a guest, through the host's network.

use std::process::Command;

use serde_json::{Value, json};
use spore_builder::observe::BuildEvent;
use spore_builder::{Host, Manifest, Options};
use spore_network::Config;
use spore_tests::data::Scratch;
use spore_tests::sandbox::Sandbox;
use spore_tests::{host, left};

use crate::image::{On, run_step};

/// What a checkpoint of a Debian image at rest may be, in MiB.
const AT_REST_MB: u64 = 120;
/// The rules of this test's network.
const TABLE: &str = "spore_test";

fn manifest(last: &str) -> Manifest {
    let install = |kind: &str, package: &str| json!({"type": kind, "args": {"packages": [package]}});
    let steps: [Value; 3] = [
        install("apt_install", "hello"),
        install("pip_install", "six"),
        run_step(last),
    ];
    let json = json!({"base": "debian", "steps": steps, "builderMemoryMB": 2048});
    Manifest::parse(json.to_string().as_bytes(), &host::limits()).unwrap()
}

fn said(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn packages_are_installed_in_a_guest_and_its_forks_have_them() {
    if std::env::var_os("SPORE_REGISTRY").is_none() {
        println!(
            "SKIPPED: no package registry: `make guest-test` says so in SPORE_REGISTRY when there is one"
        );
        return;
    }
    let scratch = Scratch::new();
    // A network of its own: there may be another Spore on this machine.
    let state = tempfile::tempdir().unwrap();
    let network = Config {
        range: "172.29.0.0/16".parse().unwrap(),
        table: TABLE.into(),
        tap_prefix: "st-".into(),
        state_dir: state.path().to_owned(),
        ..Config::default()
    };
    let host = Host::open(scratch.path(), &host::cache(), None).unwrap();
    let host = host.with_network(network);
    let mut output = Vec::new();
    let mut observer = On(|event: BuildEvent<'_>| {
        if let BuildEvent::Output(bytes) = event {
            output.extend(bytes);
        }
    });
    let six =
        "hello; python3 -c 'import six; print(six.__name__)'; ls /var/lib/apt/lists /var/cache/apt/archives";
    let built = spore_builder::build(&host, &manifest(six), &Options::default(), &mut observer);
    let output = String::from_utf8_lossy(&output).into_owned();
    let built = built.unwrap_or_else(|error| panic!("{error}\n{output}"));
    assert!(output.contains("Hello, world!\nsix\n"), "{output}");
    assert!(
        !output.contains(".deb\n"),
        "no package file is in the image: {output}"
    );
    assert!(
        built.memory_bytes < AT_REST_MB << 20,
        "{} bytes",
        built.memory_bytes
    );
    println!(
        "at rest: {} MiB of memory, {} MiB of disk; built in {:?}",
        built.memory_bytes >> 20,
        built.image.record.size_bytes >> 20,
        built.build
    );

    let mut fork = Sandbox::fork(host.store(), &built.checkpoint);
    assert_eq!(fork.sh("hello"), "Hello, world!");
    assert_eq!(fork.sh("id -un 1000; id -u"), "sandbox\n0");
    drop(fork);

    // Edited, it goes on after the last step that is the same.
    let mut events = Vec::new();
    let mut observer = On(|event: BuildEvent<'_>| events.push(format!("{event:?}")));
    spore_builder::build(
        &host,
        &manifest("hello >/greeting"),
        &Options::offline(),
        &mut observer,
    )
    .unwrap();
    assert!(events[0].starts_with("StepCached { step: 0"), "{events:?}");
    assert!(events[1].starts_with("StepCached { step: 1"), "{events:?}");

    drop(host);
    assert_eq!(left::in_store(scratch.path()), [""; 0]);
    assert!(!said(&["nft", "list", "tables"]).contains(TABLE));
    assert!(!said(&["ip", "-brief", "link"]).contains("st-"));
}
