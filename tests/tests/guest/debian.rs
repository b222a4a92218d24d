//! One real build: packages of the real archives, in a guest, through the host's network.

use std::process::Command;

use serde_json::{Value, json};
use spore_builder::observe::BuildEvent;
use spore_builder::{Host, Manifest, Options};
use spore_protocol::ExecRequest;
use spore_snapshot::CheckpointId;
use spore_snapshot::store::Store;
use spore_tests::data::Scratch;
use spore_tests::sandbox::Sandbox;
use spore_tests::{host, left};

use crate::image::{On, checkpoint_after, run_step};

/// What a checkpoint of a Debian image at rest may be, in MiB.
const AT_REST_MB: u64 = 120;

/// What runs last: all that was installed, and a look for what must not be left of it.
const LAST: &str =
    "hello; python3 -c 'import six; print(six.__name__)'; ls /var/lib/apt/lists /var/cache/apt/archives";

fn manifest() -> Manifest {
    let install = |kind: &str, package: &str| json!({"type": kind, "args": {"packages": [package]}});
    let steps: [Value; 3] = [
        install("apt_install", "hello"),
        install("pip_install", "six"),
        run_step(LAST),
    ];
    let json = json!({"base": "debian", "steps": steps, "builderMemoryMB": 1024});
    Manifest::parse(json.to_string().as_bytes(), &host::limits()).unwrap()
}

/// The TAPs of sandboxes on this host. That the rules go with the last of them is the network's own tests'.
fn taps() -> Vec<String> {
    let output = Command::new("ip").args(["-brief", "link"]).output().unwrap();
    let links = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = links.lines().filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| name.starts_with("sp-"))
        .map(str::to_owned)
        .collect()
}

pub fn packages_are_installed_and_forks_have_them_and_tls_randoms_of_their_own() {
    if std::env::var_os("SPORE_REGISTRY").is_none() {
        println!(
            "SKIPPED: no package registry: `make guest-test` says so in SPORE_REGISTRY when there is one"
        );
        return;
    }
    let scratch = Scratch::new();
    // The host's one network: it is shared with whatever Spore there is on this machine.
    let before = taps();
    let host = Host::open(scratch.path(), &host::cache(), None).unwrap();
    let mut output = Vec::new();
    let mut build = || {
        let mut observer = On(|event: BuildEvent<'_>| {
            if let BuildEvent::Output(bytes) = event {
                output.extend(bytes);
            }
        });
        spore_builder::build(&host, &manifest(), &Options::default(), &mut observer)
    };
    // A mirror may be out of reach for a moment: the build says so, and goes on where it was.
    let built = build().or_else(|error| {
        println!("{error}\ntrying again");
        build()
    });
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
    tls_randoms_differ(host.store(), &built.checkpoint, fork);

    drop(host);
    assert_eq!(left::in_store(scratch.path()), [""; 0]);
    let mut left = taps();
    left.retain(|tap| !before.contains(tap));
    assert_eq!(left, [""; 0]);
}

/// Prints the random of a TLS ClientHello (RFC 8446, 4.1.2), as OpenSSL draws it. By Python's own binding to it:
/// `ssl` is that and forty modules more, which are half of all system calls.
const CLIENT_RANDOM: &str = "
import _ssl
sent = _ssl.MemoryBIO()
tls = _ssl._SSLContext(_ssl.PROTOCOL_TLS_CLIENT)._wrap_bio(_ssl.MemoryBIO(), sent, False, 'a')
try:
    tls.do_handshake()
except _ssl.SSLWantReadError:
    pass
hello = sent.read()
assert hello[0] == 22 and hello[5] == 1
print(hello[11:43].hex())
";
/// Forks of one checkpoint.
const FORKS: usize = 8;

/// Forks made in the same second of a sandbox that has drawn one already: Python is in its memory, and need not be read
/// from the disk eight times.
fn tls_randoms_differ(store: &Store, first: &CheckpointId, mut parent: Sandbox) {
    let parents = client_random(&mut parent);
    let checkpoint = checkpoint_after(first, &mut parent, store);
    drop(parent);
    let forks: Vec<Sandbox> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..FORKS)
            .map(|_| scope.spawn(|| Sandbox::fork(store, &checkpoint)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut randoms: Vec<String> = forks
        .into_iter()
        .map(|mut fork| client_random(&mut fork))
        .collect();
    randoms.push(parents);
    randoms.sort();
    randoms.dedup();
    assert_eq!(randoms.len(), FORKS + 1, "{randoms:?}");
}

fn client_random(sandbox: &mut Sandbox) -> String {
    let request = ExecRequest::new(["python3", "-I", "-S", "-c", CLIENT_RANDOM]);
    let output = sandbox.exec(&request);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.outcome.status.success(), "{errors}");
    let random = String::from_utf8(output.stdout).unwrap();
    assert_eq!(random.trim().len(), 64, "{random:?}");
    random
}
