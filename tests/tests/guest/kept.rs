//! A guest that is kept outlives its owner, and belongs to the next one only if that can show that it is meant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use spore_snapshot::RunId;
use spore_snapshot::store::{RunDir, Store};
use spore_tests::sandbox::{LIMIT, Sandbox};
use spore_tests::{left, role};
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::{AdoptError, Guest, Template, adoptable, discard};
use spore_vmm::machine::Identity;
use spore_vmm::process::{Overlays, RecordError};

use crate::image::{Copy, DISK_MB, FLOOR_MB, checkpoint_of, image};

/// What the kernel may need to take a killed process apart, and init to notice.
const SOON: Duration = Duration::from_secs(30);

/// Counts for as long as the guest runs.
const COUNT: &str =
    "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n >/run/count; sleep 0.05; done' >/dev/null 2>&1 &";

fn count(guest: &mut Sandbox) -> u64 {
    // It may just be being written.
    loop {
        if let Ok(count) = guest.sh("cat /run/count").parse() {
            return count;
        }
    }
}

fn kept(root: &Path) -> Sandbox {
    let store = Store::open(root).unwrap();
    let (id, _) = store.list_checkpoints().unwrap().remove(0);
    let mut guest = Sandbox::fork(&store, &id);
    guest.sh(COUNT);
    guest.put("/var/before", "kept");
    guest.keep().unwrap();
    // Once is enough.
    guest.keep().unwrap();
    assert!(guest.is_kept());
    guest
}

/// Owns a kept guest until it is killed.
pub fn keeper(root: &Path) {
    let guest = kept(root);
    println!("{}", guest.pid());
    loop {
        std::thread::park();
    }
}

/// Is killed after it froze its guest's disk and before it put that into the store, and after it asked the guest to
/// its fork port and before it copied it there.
pub fn interrupted(root: &Path) {
    let mut guest = kept(root);
    let overlays = Overlays {
        present: guest.run_dir().join("disk-0"),
        next: guest.run_dir().join("disk-1"),
    };
    guest.sh("sync");
    let sealed = guest.vm().freeze_disk(&overlays).unwrap();
    assert_eq!(sealed, [0]);
    guest.put("/var/after", "frozen");
    guest.vm().arm_fork_port().unwrap();
    let mut agent = guest.another_agent();
    agent.sleep().unwrap();
    drop(agent);
    // So that it stands there.
    std::thread::sleep(Duration::from_secs(1));
    println!("{}", guest.pid());
    loop {
        std::thread::park();
    }
}

/// Owns a shell that is to be kept when it is a guest, and a guest that was such a shell, until it is killed.
pub fn armed(root: &Path) {
    let store = Store::open(root).unwrap();
    let (id, _) = store.list_checkpoints().unwrap().remove(0);
    let mut template = Template::load(&store, &store.open_checkpoint(&id).unwrap()).unwrap();
    let [shell, mut guest] = [(); 2].map(|()| template.arm(&store).unwrap()).map(|mut shell| {
        shell.keep().unwrap();
        shell
    });
    // Whoever made it keeps it, too.
    guest.keep().unwrap();
    let mut guest = Sandbox::new(guest.claim(Identity::default(), monotonic_ns()).unwrap());
    assert!(guest.is_kept());
    guest.put("/var/before", "kept");
    println!("{} {} {} {}", shell.id(), shell.pid(), guest.id(), guest.pid());
    loop {
        std::thread::park();
    }
}

/// A store with one kept guest whose owner was killed: its id and its process.
fn orphan(role: &str) -> (Copy, RunId, u32) {
    let copy = image().copy();
    let root = copy.store().root().to_owned();
    let mut owner = role::start(role, &root);
    let vm: u32 = owner.line().parse().unwrap();
    drop(owner);
    let store = Store::attach(&root);
    let [id] = &adoptable(&store).unwrap()[..] else {
        panic!("one was kept");
    };
    (copy, id.clone(), vm)
}

fn run_dir(copy: &Copy, id: &RunId) -> PathBuf {
    copy.store().root().join("run").join(id.as_str())
}

/// Nothing is left of a VM in the store, nor the VM.
fn nothing_left(copy: &Copy, vm: u32) {
    let root = copy.store().root();
    left::soon_nothing(SOON, || Vec::from_iter(left::runs(vm).then_some(vm)));
    left::soon_nothing(SOON, || left::in_store(root));
    assert!(adoptable(copy.store()).unwrap().is_empty());
}

/// Kills a VM, and waits until its files are closed: a process that shows as ended may still be about that.
fn killed(copy: &Copy, id: &RunId, vm: u32) {
    left::kill(vm);
    left::soon("its lock is free", SOON, || {
        RunDir::is_dead(copy.store(), id).unwrap()
    });
}

pub fn a_kept_guest_runs_on_without_its_owner_and_all_works_with_the_next() {
    let (copy, id, vm) = orphan("keeper");
    let root = copy.store().root();
    assert!(left::runs(vm));
    // Whoever opens the store leaves it alone.
    let store = Store::open(root).unwrap();
    assert_eq!(store.sweep().unwrap(), 0);
    assert_eq!(left::vms_using(root), [vm]);

    let mut guest = Sandbox::new(Guest::adopt(&store, &id).unwrap());
    assert_eq!((guest.id(), guest.pid()), (id.as_str(), vm));
    assert!(guest.is_kept());
    // It is the one it was, and did not stand still.
    assert_eq!(guest.get("/var/before").unwrap(), b"kept");
    let first = count(&mut guest);
    left::soon("it counts on", LIMIT, || count(&mut guest) > first);
    assert!(!guest.vm().stats().unwrap().paused);

    let granted = guest.resize(FLOOR_MB + 128);
    assert_eq!(granted.granted_mb, FLOOR_MB + 128);
    let (inside, agent) = guest.parts();
    let disk = inside.grow_disk(agent, DISK_MB + 256).unwrap();
    assert_eq!(disk.disk_mb, DISK_MB + 256);
    guest.sh("sync");
    let layers = guest.freeze_disk(&store).unwrap();
    for layer in &layers {
        store.layer(layer).unwrap();
    }
    guest.put("/var/between", "two layers");

    let mut fork = guest.live_fork(&store, 1).remove(0);
    assert_eq!(fork.get("/var/between").unwrap(), b"two layers");
    let first = count(&mut fork);
    left::soon("it counts on", LIMIT, || count(&mut fork) > first);
    // A fork of a fork: the same again, one further down.
    let mut grandchild = fork.live_fork(&store, 1).remove(0);
    assert_eq!(grandchild.get("/var/before").unwrap(), b"kept");
    let checkpoint = checkpoint_of(&mut guest, &store);
    let mut restored = Sandbox::fork(&store, &checkpoint);
    assert_eq!(restored.get("/var/between").unwrap(), b"two layers");
    let more = [&fork, &grandchild, &restored].map(|fork| fork.pid());
    drop((fork, grandchild, restored));
    // Not even those that are another's children are still there.
    assert!(!more.into_iter().any(left::runs));

    drop(guest);
    assert!(!left::runs(vm));
    store.delete_checkpoint(&checkpoint).unwrap();
    nothing_left(&copy, vm);
}

pub fn what_an_owner_was_about_when_it_was_killed_is_done_or_undone() {
    let (copy, id, vm) = orphan("interrupted");
    let store = Store::open(copy.store().root()).unwrap();
    let before = store.list_layers().unwrap().len();
    let mut guest = Sandbox::new(Guest::adopt(&store, &id).unwrap());
    // What was frozen is a layer of the store now; the guest does not wait at its fork port.
    assert_eq!(store.list_layers().unwrap().len(), before + 1);
    assert!(!run_dir(&copy, &id).join("disk-0").exists());
    assert_eq!(guest.get("/var/after").unwrap(), b"frozen");
    let first = count(&mut guest);
    left::soon("it counts on", LIMIT, || count(&mut guest) > first);
    let checkpoint = checkpoint_of(&mut guest, &store);
    let mut restored = Sandbox::fork(&store, &checkpoint);
    for file in ["/var/before", "/var/after"] {
        assert_eq!(restored.get(file), guest.get(file));
    }
    drop((guest, restored));
    store.delete_checkpoint(&checkpoint).unwrap();
    nothing_left(&copy, vm);
}

pub fn a_kept_vm_that_was_killed_while_nobody_owned_it_is_told_and_swept() {
    let (copy, id, vm) = orphan("keeper");
    let console = run_dir(&copy, &id).join("console.log");
    std::fs::write(&console, "its last line\n").unwrap();
    killed(&copy, &id, vm);
    let store = Store::attach(copy.store().root());
    assert_eq!(adoptable(&store).unwrap(), std::slice::from_ref(&id));
    let error = Guest::adopt(&store, &id).err().unwrap();
    match &error {
        AdoptError::Ended { console, .. } => assert_eq!(console, "its last line"),
        other => panic!("{other:?}"),
    }
    assert!(error.is_gone());
    nothing_left(&copy, vm);
    let error = Guest::adopt(&store, &id).err().unwrap();
    assert!(matches!(error, AdoptError::NotThere { .. }), "{error}");

    // Whoever opens the store sweeps too.
    let (copy, id, vm) = orphan("keeper");
    killed(&copy, &id, vm);
    Store::open(copy.store().root()).unwrap();
    assert!(!run_dir(&copy, &id).exists());
    nothing_left(&copy, vm);

    // A record that is no good either is told as that.
    let (copy, id, vm) = orphan("keeper");
    killed(&copy, &id, vm);
    std::fs::write(run_dir(&copy, &id).join("keep.json"), "{").unwrap();
    let error = Guest::adopt(&Store::attach(copy.store().root()), &id)
        .err()
        .unwrap();
    assert!(
        matches!(
            &error,
            AdoptError::Record {
                source: RecordError::Unreadable { .. },
                swept: true,
                ..
            }
        ),
        "{error:?}"
    );
    nothing_left(&copy, vm);
}

pub fn whoever_cannot_show_that_it_is_the_vm_that_is_meant_is_refused() {
    let (copy, id, vm) = orphan("keeper");
    let store = Store::attach(copy.store().root());
    let path = run_dir(&copy, &id).join("keep.json");
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let refused = |field: &str, value: serde_json::Value| {
        let mut record = good.clone();
        record[field] = value;
        std::fs::write(&path, record.to_string()).unwrap();
        let error = Guest::adopt(&store, &id).err().unwrap();
        assert!(left::runs(vm) && !error.is_gone(), "{error}");
        error
    };
    let error = refused("token", "0".repeat(64).into());
    assert!(matches!(error, AdoptError::WrongToken { .. }), "{error:?}");
    let other_process = |error: AdoptError| match error {
        AdoptError::Record {
            source: RecordError::OtherProcess { why, .. },
            swept: false,
            ..
        } => why,
        other => panic!("{other:?}"),
    };
    // The number was given to another process since.
    let started = good["startTime"].as_u64().unwrap();
    let why = other_process(refused("startTime", (started - 1).into()));
    assert!(why.contains("was started at tick"), "{why}");
    let why = other_process(refused("pid", std::process::id().into()));
    assert!(why.contains("was started at tick"), "{why}");
    let error = refused("version", 9.into());
    assert!(error.to_string().contains("version 9"), "{error}");
    std::fs::write(&path, &good.to_string()[..40]).unwrap();
    let error = Guest::adopt(&store, &id).err().unwrap();
    assert!(
        matches!(error, AdoptError::Record { swept: false, .. }),
        "{error:?}"
    );

    // None of that did it any harm.
    std::fs::write(&path, good.to_string()).unwrap();
    let mut guest = Sandbox::new(Guest::adopt(&store, &id).unwrap());
    let first = count(&mut guest);
    left::soon("it counts on", LIMIT, || count(&mut guest) > first);
    guest.into_guest().release();

    // Without a record nobody can adopt it; it can still be ended.
    std::fs::write(&path, "{").unwrap();
    assert!(Guest::adopt(&store, &id).is_err());
    assert!(left::runs(vm));
    assert!(discard(&store, &id).unwrap());
    nothing_left(&copy, vm);
}

pub fn a_guest_that_was_let_go_of_is_adopted_and_has_one_owner_at_a_time() {
    let copy = image().copy();
    let store = copy.store();
    let guest = kept(store.root());
    let (id, vm) = (guest.id().parse::<RunId>().unwrap(), guest.pid());
    let error = Guest::adopt(store, &id).err().unwrap();
    assert!(matches!(error, AdoptError::Owned { .. }), "{error:?}");
    guest.into_guest().release();
    assert!(left::runs(vm));
    let mut guest = Sandbox::new(Guest::adopt(store, &id).unwrap());
    // It stands still if it was told to, whoever owns it.
    guest.vm().pause().unwrap();
    guest.into_guest().release();
    let mut guest = Guest::adopt(store, &id).unwrap();
    assert!(guest.vm().stats().unwrap().paused);
    guest.vm().resume().unwrap();
    let mut guest = Sandbox::new(guest);
    let first = count(&mut guest);
    left::soon("it counts on", LIMIT, || count(&mut guest) > first);
    // How a guest ended that ended by itself is known to the next owner too.
    let mut agent = guest.another_agent();
    guest.into_guest().release();
    agent.poweroff().unwrap();
    let mut guest = Guest::adopt(store, &id).unwrap();
    let ended = guest.vm().wait_end(LIMIT).unwrap();
    assert_eq!(ended, Some(spore_vmm::exit::Ended::PowerOff));
    drop(guest);
    nothing_left(&copy, vm);

    // One that was not kept ends when it is let go of.
    let guest = Sandbox::fork(store, &image().checkpoint());
    let vm = guest.pid();
    guest.into_guest().release();
    nothing_left(&copy, vm);
}

pub fn a_guest_that_was_kept_as_a_shell_outlives_its_owner_and_a_shell_does_not() {
    let copy = image().copy();
    let store = copy.store();
    let mut owner = role::start("armed", store.root());
    let line = owner.line();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [shell, shell_pid, guest, guest_pid] = words[..] else {
        panic!("{line}");
    };
    let ([shell, id], [shell_pid, vm]) = (
        [shell, guest].map(|id| id.parse::<RunId>().unwrap()),
        [shell_pid, guest_pid].map(|pid| pid.parse::<u32>().unwrap()),
    );
    let error = Guest::adopt(store, &shell).err().unwrap();
    assert!(matches!(error, AdoptError::Owned { .. }), "{error:?}");
    drop(owner);
    left::soon("the shell is gone", SOON, || !left::runs(shell_pid));
    let error = Guest::adopt(store, &shell).err().unwrap();
    assert!(matches!(error, AdoptError::Ended { .. }), "{error:?}");
    assert!(!run_dir(&copy, &shell).exists());

    let mut guest = Sandbox::new(Guest::adopt(store, &id).unwrap());
    assert_eq!(
        (guest.get("/var/before").unwrap(), guest.pid()),
        (b"kept".to_vec(), vm)
    );
    drop(guest);
    nothing_left(&copy, vm);
}
