//! A fork is somebody else than its parent and its siblings before anyone can talk to it, or it is not at all.

use std::collections::BTreeSet;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spore_protocol::fork_port::Repair;
use spore_snapshot::CheckpointId;
use spore_tests::sandbox::{Sandbox, shell};
use spore_tests::witness::{self, Testimony};
use spore_vmm::guest::{Guest, GuestError};
use spore_vmm::machine::Identity;

use crate::image::{checkpoint_of, image};

/// How many forks are made at once.
const FORKS: usize = 8;
/// How far the guest's wall clock may be from the host's, in nanoseconds.
const CLOCK_NS: u64 = 50_000_000;
const HOOKS: &str = "/etc/spore/on-fork.d";

/// What one guest is seen to be.
#[derive(Debug, Clone)]
struct Seen {
    id: String,
    hostname: String,
    machine_id: String,
    boot_id: String,
    uuid: String,
    /// The generation id, as the page of it has it.
    generation: String,
    /// How often its kernel said that it is a fork.
    reseeded: u32,
    monotonic_ns: u64,
    /// How far its wall clock is from the host's at most: the time an answer took is in it.
    clock_known_to_ns: u64,
    witness: Testimony,
}

/// A parent and forks of one checkpoint of it.
struct Family {
    /// When its checkpoint was about to be made.
    parent: Seen,
    /// And again after it.
    parent_after: Seen,
    forks: Vec<Seen>,
    /// How long after each other the first and the last were asked for.
    asked_within: Duration,
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

fn text(sandbox: &mut Sandbox, path: &str) -> String {
    let bytes = sandbox.get(path).expect(path);
    String::from_utf8(bytes).unwrap().trim_end().to_owned()
}

fn look(sandbox: &mut Sandbox) -> Seen {
    // An answer says as much about the clock as it is quick, and on a busy host the first ones are not.
    let (before, pong, after) = (0..2000)
        .map(|_| {
            let before = now_ns();
            let pong = sandbox.agent.ping().unwrap();
            (before, pong, now_ns())
        })
        .find(|(before, _, after)| after - before < CLOCK_NS / 2)
        .expect("no answer in time to tell what time it is");
    let clock_known_to_ns = before
        .abs_diff(pong.realtime_ns)
        .max(after.abs_diff(pong.realtime_ns));
    let witness = witness::ask(sandbox);
    // The kernel hears of it by an interrupt after the fork is ready.
    let rest = sandbox.sh(
        "sleep 0.5; echo $(devmem 0x9F000 64)$(devmem 0x9F008 64) $(dmesg | grep -c 'virtual machine fork')",
    );
    let (generation, reseeded) = rest.split_once(' ').unwrap();
    Seen {
        id: sandbox.id().to_owned(),
        hostname: text(sandbox, "/proc/sys/kernel/hostname"),
        machine_id: text(sandbox, "/etc/machine-id"),
        boot_id: text(sandbox, "/proc/sys/kernel/random/boot_id"),
        uuid: text(sandbox, "/proc/sys/kernel/random/uuid"),
        generation: generation.to_owned(),
        reseeded: reseeded.parse().unwrap(),
        monotonic_ns: pong.monotonic_ns,
        clock_known_to_ns,
        witness,
    }
}

/// The family that several tests look at.
fn family() -> &'static Family {
    static FAMILY: OnceLock<Family> = OnceLock::new();
    FAMILY.get_or_init(|| {
        let store = image().store();
        let mut parent = image().fork();
        witness::start(&mut parent);
        let before = look(&mut parent);
        let id = checkpoint_of(&mut parent, store);
        let all = Barrier::new(FORKS);
        let mut forks: Vec<_> = std::thread::scope(|scope| {
            let fork = || {
                all.wait();
                let asked = Instant::now();
                (asked, Sandbox::fork(store, &id))
            };
            let forks: Vec<_> = (0..FORKS).map(|_| scope.spawn(fork)).collect();
            forks.into_iter().map(|fork| fork.join().unwrap()).collect()
        });
        let asked: Vec<_> = forks.iter().map(|(asked, _)| *asked).collect();
        // Looked at two at a time: a guest whose kernel is interpreted needs a good part of a processor for its
        // clock ticks alone while it is busy.
        let seen = std::thread::scope(|scope| {
            let look_at = |forks: &mut [(Instant, Sandbox)]| -> Vec<Seen> {
                forks.iter_mut().map(|(_, fork)| look(fork)).collect()
            };
            let halves: Vec<_> = forks
                .chunks_mut(FORKS / 2)
                .map(|half| scope.spawn(move || look_at(half)))
                .collect();
            halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
        });
        let after = look(&mut parent);
        store.delete_checkpoint(&id).unwrap();
        Family {
            parent: before,
            parent_after: after,
            forks: seen,
            asked_within: *asked.iter().max().unwrap() - *asked.iter().min().unwrap(),
        }
    })
}

impl Family {
    /// That something differs between all forks and the parent.
    fn all_differ(&self, what: &str, of: impl Fn(&Seen) -> &str) {
        let everybody = self.forks.iter().chain([&self.parent]);
        let different: BTreeSet<&str> = everybody.map(of).collect();
        assert_eq!(different.len(), FORKS + 1, "{what}: {different:?}");
    }
}

pub fn forks_made_in_the_same_second_draw_different_random_numbers() {
    let family = family();
    assert!(
        family.asked_within < Duration::from_secs(1),
        "{:?}",
        family.asked_within
    );
    // Drawn by a process that ran before the checkpoint and after it; what a TLS client says hello with is
    // drawn from `getrandom` too.
    family.all_differ("getrandom", |seen| &seen.witness.getrandom);
    family.all_differ("/dev/urandom", |seen| &seen.witness.urandom);
    family.all_differ("the kernel's UUIDs", |seen| &seen.uuid);
    // The parent draws on, and nothing that a fork drew.
    let after = &family.parent_after;
    assert!(family.forks.iter().all(|fork| fork.uuid != after.uuid));
    assert!(
        family
            .forks
            .iter()
            .all(|fork| fork.witness.getrandom != after.witness.getrandom)
    );
}

pub fn forks_made_in_the_same_second_have_different_ids_and_names_everywhere_they_show() {
    let family = family();
    family.all_differ("machine id", |seen| &seen.machine_id);
    family.all_differ("boot id", |seen| &seen.boot_id);
    family.all_differ("host name", |seen| &seen.hostname);
    for seen in &family.forks {
        assert_eq!(seen.hostname, seen.id);
        let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(seen.machine_id.len() == 32 && hex(&seen.machine_id), "{seen:?}");
        let parts: Vec<&str> = seen.boot_id.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        assert!(
            parts.iter().all(|part| hex(part)) && parts[2].starts_with('4'),
            "{seen:?}"
        );
        // Also where they were mapped and opened before the checkpoint, in another mount namespace.
        assert_eq!(seen.witness.machine_id, seen.machine_id);
        assert_eq!(seen.witness.boot_id, seen.boot_id);
    }
    // The parent stays who it is.
    let (before, after) = (&family.parent, &family.parent_after);
    assert_eq!(before.machine_id, after.machine_id);
    assert_eq!(before.boot_id, after.boot_id);
    assert_eq!(before.hostname, after.hostname);
}

pub fn forks_made_in_the_same_second_have_different_generation_ids_and_their_kernels_know() {
    let family = family();
    family.all_differ("generation id", |seen| &seen.generation);
    assert_eq!(family.parent.generation, family.parent_after.generation);
    for seen in &family.forks {
        assert!(seen.generation.starts_with("0x"), "{seen:?}");
        assert_eq!(seen.reseeded, family.parent.reseeded + 1, "{seen:?}");
    }
    assert_eq!(family.parent.reseeded, family.parent_after.reseeded);
}

pub fn the_clock_of_a_fork_is_the_hosts_and_no_clock_goes_back() {
    let family = family();
    let known = family.forks.iter().map(|seen| seen.clock_known_to_ns);
    eprintln!("wall clocks at most {} us off", known.max().unwrap() / 1000);
    for seen in &family.forks {
        assert!(seen.clock_known_to_ns < CLOCK_NS, "{seen:?}");
        assert!(seen.monotonic_ns > family.parent.monotonic_ns, "{seen:?}");
        // Seen by a process that ran through the checkpoint.
        assert!(seen.witness.looks > family.parent.witness.looks, "{seen:?}");
        assert_eq!(seen.witness.back_ns, 0, "{seen:?}");
    }
    assert_eq!(family.parent_after.witness.back_ns, 0);
}

pub fn no_id_of_a_machine_gets_onto_its_disk() {
    let mut fork = image().fork();
    // Bound without what is mounted below it.
    fork.sh("mkdir /run/disk && mount -o bind / /run/disk");
    assert_eq!(fork.get("/run/disk/etc/machine-id").unwrap(), b"");
    assert_eq!(text(&mut fork, "/etc/machine-id").len(), 32);
    // And who writes another is told that it cannot be.
    let output = fork.exec(&shell("echo 0123456789abcdef0123456789abcdef >/etc/machine-id"));
    assert!(!output.outcome.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("Read-only file system"), "{said}");
}

pub fn a_forks_environment_is_what_was_asked_and_goes_on_into_its_forks() {
    let store = image().store();
    let see = |fork: &mut Sandbox| fork.sh("echo $LEVEL $ONE $TWO $THREE");
    let given = [("LEVEL", "3"), ("ONE", "parent"), ("TWO", "parent")];
    let mut parent = Sandbox::fork_with(store, &image().checkpoint(), &given);
    assert_eq!(see(&mut parent), "3 parent parent");
    // What a request says goes over it, what the image says that nobody overrides stays.
    let mut request = shell("echo $ONE $GREETING");
    request.env = [("ONE".to_owned(), "request".to_owned())].into();
    let said = String::from_utf8(parent.exec(&request).stdout).unwrap();
    assert_eq!(said, "request hello, wörld \"$HOME\"\n");
    let id = checkpoint_of(&mut parent, store);
    let mut child = Sandbox::fork_with(store, &id, &[("TWO", "child"), ("THREE", "a  b")]);
    assert_eq!(see(&mut child), "3 parent child a b");
    // One that is asked for nothing has its parent's; and nobody has a sibling's.
    assert_eq!(see(&mut Sandbox::fork(store, &id)), "3 parent parent");
    assert_eq!(see(&mut parent), "3 parent parent");
    assert_eq!(see(&mut image().fork()), "2");
    store.delete_checkpoint(&id).unwrap();
}

pub fn an_environment_that_cannot_be_is_refused_before_anything_runs() {
    let store = image().store();
    let checkpoint = store.open_checkpoint(&image().checkpoint()).unwrap();
    let refusal = |name: &str, value: String| {
        let env = [(name.to_owned(), value)].into();
        let identity = Identity {
            env,
            ..Identity::default()
        };
        Guest::fork_as(store, &checkpoint, &identity)
            .err()
            .unwrap()
            .to_string()
    };
    let said = refusal("A=B", "x".into());
    assert!(said.contains("environment variable \"A=B\""), "{said}");
    let said = refusal("A", "x".repeat(4000));
    assert!(said.contains("bytes"), "{said}");
}

/// A checkpoint of a guest with these hooks.
fn with_hooks(hooks: &[(&str, &str)]) -> (Sandbox, CheckpointId) {
    let mut parent = image().fork();
    for (name, script) in hooks {
        let script = format!("#!/bin/sh\n{script}\n");
        parent.put_program(&format!("{HOOKS}/{name}"), script);
    }
    parent.put(&format!("{HOOKS}/0-README"), "not a program");
    let id = checkpoint_of(&mut parent, image().store());
    (parent, id)
}

/// How a fork that must not be fails: what, why, and what the console said.
fn destroyed(id: &CheckpointId) -> (Repair, String, String) {
    let store = image().store();
    let checkpoint = store.open_checkpoint(id).unwrap();
    match Guest::fork(store, &checkpoint) {
        Err(error @ GuestError::Identity { .. }) => {
            let message = error.to_string();
            let GuestError::Identity { repair, why, console } = error else {
                unreachable!()
            };
            assert!(
                message.contains(&why) && message.contains(&repair.to_string()),
                "{message}"
            );
            (repair, why, console)
        }
        Err(error) => panic!("{error}"),
        Ok(fork) => panic!("{} was handed out", fork.id()),
    }
}

pub fn hooks_run_in_order_before_anyone_can_talk_to_the_fork() {
    let store = image().store();
    // Without a program of its own: each costs nearly half a second where a guest's kernel is interpreted.
    let say = |name: &str| {
        let read = "read -r id </etc/machine-id; read -r name </proc/sys/kernel/hostname";
        format!("{read}; echo {name} $id $name $GREETING/$GIVEN >>/run/order")
    };
    let (mut parent, id) = with_hooks(&[
        ("9-last", &say("last")),
        (
            "10-first",
            &format!(
                "n=0; while [ $n -lt 50000 ]; do n=$((n+1)); done; {}",
                say("first")
            ),
        ),
        ("2-second", &say("second")),
    ]);
    assert_eq!(parent.get("/run/order"), None, "they are for forks");
    let mut fork = Sandbox::fork_with(store, &id, &[("GIVEN", "given")]);
    let order = text(&mut fork, "/run/order");
    let machine_id = text(&mut fork, "/etc/machine-id");
    let line = |name: &str| format!("{name} {machine_id} {} hello, wörld \"$HOME\"/given", fork.id());
    let lines: Vec<_> = order.lines().map(str::to_owned).collect();
    assert_eq!(lines, ["first", "second", "last"].map(line));
    store.delete_checkpoint(&id).unwrap();
}

pub fn a_hook_that_fails_destroys_the_fork_and_is_named() {
    let (_parent, id) = with_hooks(&[
        ("1-good", "true"),
        ("2-bad", "echo the registry is full >&2; exit 7"),
        ("3-never", "echo not reached"),
    ]);
    let (repair, why, console) = destroyed(&id);
    assert_eq!((repair, why.as_str()), (Repair::Hook, "2-bad exited with 7"));
    assert!(console.contains("the registry is full"), "{console}");
    assert!(console.contains("2-bad exited with 7"), "{console}");
    assert!(!console.contains("not reached"), "{console}");
    image().store().delete_checkpoint(&id).unwrap();
}

pub fn a_hook_that_takes_too_long_destroys_the_fork_and_is_named() {
    let (_parent, id) = with_hooks(&[("1-slow", "sleep 1111 & sleep 1111")]);
    let started = Instant::now();
    let (repair, why, _) = destroyed(&id);
    let took = started.elapsed();
    assert_eq!(repair, Repair::Hook);
    assert_eq!(why, "1-slow was killed: all hooks together may take 10s");
    assert!((10..30).contains(&took.as_secs()), "{took:?}");
    image().store().delete_checkpoint(&id).unwrap();
}

pub fn a_fork_that_cannot_have_its_own_machine_id_is_destroyed() {
    let mut parent = image().fork();
    // As a program might that wants to have one it can write.
    parent.sh("umount /etc/machine-id && echo 0123456789abcdef0123456789abcdef >/etc/machine-id");
    let id = checkpoint_of(&mut parent, image().store());
    let (repair, why, console) = destroyed(&id);
    assert_eq!(repair, Repair::MachineId);
    assert!(why.contains("something else was put in its place"), "{why}");
    assert!(console.contains(&why), "{console}");
    image().store().delete_checkpoint(&id).unwrap();
}
