//! Checkpoints of guests that run, and of which the writing fails.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use spore_snapshot::store::Store;
use spore_tests::sandbox::{LIMIT, Sandbox};
use spore_tests::{hold, left, role};
use spore_vmm::cancel::Cancel;
use spore_vmm::guest::GuestError;
use spore_vmm::process::VmError;

use super::live_fork::{count, counted, counting, stop_counting};
use super::{first, is_whole, mark, marked, nothing_is_left, plan};
use crate::image::image;

pub fn a_busy_guest_stands_still_for_a_moment_only() {
    const HELD: u32 = 128;
    let store = image().store();
    let mut parent = image().fork();
    parent.sh(&hold::start(HELD, 31, "/run/hold"));
    let expected = hold::expected(HELD, 31);
    assert_eq!(parent.sh(&hold::ask("/run/hold")), expected);
    let counts = counting(&mut parent);
    let before = count(&mut parent, "/run");
    let started = Instant::now();
    let (id, times) = parent
        .checkpoint_timed(store, plan(store), &Cancel::default())
        .unwrap();
    let took = started.elapsed();
    eprintln!("stood still for {:?} of {took:?}", times.paused);
    // Of all it takes, most is writing, and the guest runs meanwhile.
    assert!(times.paused < Duration::from_secs(1), "{times:?}");
    assert!(times.paused < took / 2, "{:?} of {took:?}", times.paused);
    let after = stop_counting(&mut parent, counts);
    assert!(after > before);
    assert_eq!(parent.sh(&hold::ask("/run/hold")), expected);
    drop(parent);

    let mut fork = Sandbox::fork(store, &id);
    counted(&mut fork);
    let [memory, disk] = ["/run", "/var"].map(|place| count(&mut fork, place));
    assert!(
        disk == memory || disk == memory + 1,
        "{disk} on disk, {memory} in memory"
    );
    assert!((before..=after).contains(&memory));
    assert_eq!(fork.sh(&hold::ask("/run/hold")), expected);
    drop(fork);
    store.delete_checkpoint(&id).unwrap();
}

/// What is to be as it was after a checkpoint that came to nothing: the store has none more and nothing unfinished,
/// the guest goes on, and the next checkpoint of it has all that it wrote, also before the first.
fn harmed_nothing(parent: &mut Sandbox, store: &Store, checkpoints: usize) {
    assert_eq!(store.list_checkpoints().unwrap().len(), checkpoints);
    let unfinished: Vec<_> = std::fs::read_dir(store.root().join("tmp"))
        .unwrap()
        .flatten()
        .collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
    assert_eq!(marked(parent), "before");
    parent.put("/var/after", "after");
    is_whole(parent);
}

fn can_be_checkpointed(parent: &mut Sandbox, store: &Store) {
    let id = parent.checkpoint(store, plan(store)).unwrap();
    let mut fork = Sandbox::fork(store, &id);
    fork.sh("sync && echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(marked(&mut fork), "before");
    assert_eq!(fork.get("/var/after").unwrap(), b"after");
    is_whole(&mut fork);
    is_whole(parent);
}

pub fn a_writer_that_is_killed_or_not_wanted_any_more_harms_nothing() {
    let copy = image().copy();
    let store = copy.store();
    let mut parent = Sandbox::fork(store, &first(store));
    // Enough for the writing to take a while.
    parent.sh(&hold::start(96, 41, "/run/hold"));
    assert_eq!(parent.sh(&hold::ask("/run/hold")), hold::expected(96, 41));
    mark(&mut parent, "before");
    let pid = parent.pid();
    let tmp = store.root().join("tmp");
    let mut fails_when_it_is_written = |end: &(dyn Fn(u32, &Cancel) + Sync)| {
        let cancel = Cancel::default();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                left::soon("nobody writes", LIMIT, || {
                    let writers = left::vms_using(&tmp).into_iter().filter(|writer| *writer != pid);
                    writers.map(|writer| end(writer, &cancel)).count() > 0
                });
            });
            parent.checkpoint_timed(store, plan(store), &cancel).unwrap_err()
        });
        harmed_nothing(&mut parent, store, 1);
        error
    };
    match fails_when_it_is_written(&|writer, _| left::kill(writer)) {
        GuestError::Copy(VmError::Gone { status, .. }) => assert!(status.contains("SIGKILL"), "{status}"),
        other => panic!("{other:?}"),
    }
    let error = fails_when_it_is_written(&|_, cancel| cancel.cancel());
    assert!(matches!(error, GuestError::Cancelled(_)), "{error:?}");
    can_be_checkpointed(&mut parent, store);
    drop(parent);
    nothing_is_left(store.root());
}

/// Most of a file system of [`full_disk`].
const ROOM: &str = "size=24m";

pub fn a_full_disk_harms_nothing() {
    let copy = image().copy();
    let root = copy.store().root();
    // In a mount namespace of its own, which ends with it.
    let mut unshare = vec!["unshare", "--mount"];
    if !rustix::process::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    role::start_through(&unshare, "full disk", root).finish();
    nothing_is_left(root);
}

/// Checkpoints go to a file system that is too small for one.
pub fn full_disk(root: &Path) {
    let store = Store::open(root).unwrap();
    let mut parent = Sandbox::fork(&store, &first(&store));
    parent.sh(&hold::start(48, 51, "/run/hold"));
    assert_eq!(parent.sh(&hold::ask("/run/hold")), hold::expected(48, 51));
    mark(&mut parent, "before");
    let tmp = root.join("tmp");
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", ROOM, "spore-tests"])
        .arg(&tmp));
    for _ in 0..2 {
        let error = parent.checkpoint(&store, plan(&store)).unwrap_err().to_string();
        assert!(error.contains("no space"), "{error}");
        assert!(error.contains("try again"), "it says what to do: {error}");
        harmed_nothing(&mut parent, &store, 1);
    }
    assert_eq!(parent.sh(&hold::ask("/run/hold")), hold::expected(48, 51));
    run(Command::new("umount").arg(&tmp));
    can_be_checkpointed(&mut parent, &store);
}
