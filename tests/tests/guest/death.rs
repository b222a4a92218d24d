//! Whatever ends a guest, it is told and nothing of it is left.

use std::path::Path;
use std::time::{Duration, Instant};

use spore_snapshot::store::Store;
use spore_tests::sandbox::{LIMIT, Sandbox, shell};
use spore_tests::{left, role};
use spore_vmm::exit::Ended;
use spore_vmm::guest::GuestError;
use spore_vmm::process::VmError;

use crate::image::{checkpoint_of, image};

/// What the kernel may need to take a killed process apart.
const SOON: Duration = Duration::from_secs(30);

/// Owns a VM until it is killed.
pub fn owner(root: &Path) {
    let store = Store::open(root).unwrap();
    let (id, _) = store.list_checkpoints().unwrap().remove(0);
    let fork = Sandbox::fork(&store, &id);
    println!("{}", fork.pid());
    loop {
        std::thread::park();
    }
}

pub fn a_panic_of_the_guests_kernel_is_told_with_its_last_lines() {
    let mut fork = image().fork();
    let run = fork.run_dir();
    assert!(run.exists());
    let error = fork
        .agent
        .exec_collect(&shell("echo c >/proc/sysrq-trigger"), b"")
        .unwrap_err();
    let error = fork.explain(error);
    match &error {
        GuestError::Vm(VmError::Ended {
            ended: Ended::Panic,
            console,
        }) => assert!(console.contains("Kernel panic - not syncing"), "{console}"),
        other => panic!("{other:?}"),
    }
    let text = error.to_string();
    assert!(text.starts_with("the guest kernel panicked"), "{text}");
    assert!(text.contains("Kernel panic - not syncing: sysrq"), "{text}");
    // Whoever comes later hears the same, and at once.
    let started = Instant::now();
    let again = fork.agent(LIMIT).unwrap_err();
    assert!(
        matches!(
            &again,
            GuestError::Vm(VmError::Ended {
                ended: Ended::Panic,
                ..
            })
        ),
        "{again:?}"
    );
    assert!(started.elapsed() < SOON);
    drop(fork);
    assert!(!run.exists());
}

pub fn a_dropped_guest_leaves_nothing() {
    let copy = image().copy();
    let root = copy.store().root();
    let before = left::in_store(root);
    assert_eq!(before, [""; 0]);
    let mut fork = Sandbox::fork(copy.store(), &image().checkpoint());
    fork.put("/var/file", vec![1; 1 << 20]);
    let id = checkpoint_of(&mut fork, copy.store());
    let pid = fork.pid();
    // So that finding nothing below means something.
    let there = left::in_store(root);
    for what in ["process", "socket", "file"] {
        assert!(
            there.iter().any(|line| line.starts_with(what)),
            "{what}: {there:?}"
        );
    }
    assert_eq!(left::vms_using(root), [pid]);
    drop(fork);
    // Not even a moment later: the process is waited for.
    assert!(!left::exists(pid));
    assert_eq!(left::in_store(root), [""; 0]);
    copy.store().delete_checkpoint(&id).unwrap();
    assert_eq!(left::in_store(root), [""; 0]);
}

pub fn a_killed_vm_is_gone_and_leaves_nothing() {
    let copy = image().copy();
    let mut fork = Sandbox::fork(copy.store(), &image().checkpoint());
    let pid = fork.pid();
    left::kill(pid);
    let gone = |error: GuestError| match &error {
        GuestError::Vm(VmError::Gone { status, .. }) => assert!(status.contains("SIGKILL"), "{status}"),
        other => panic!("{other:?}"),
    };
    let started = Instant::now();
    let error = fork.agent.ping().unwrap_err();
    gone(fork.explain(error));
    gone(fork.vm().stats().unwrap_err().into());
    gone(fork.agent(LIMIT).unwrap_err());
    let checkpoints = copy.store().list_checkpoints().unwrap().len();
    let plan = spore_vmm::guest::CheckpointPlan {
        kind: spore_snapshot::checkpoint::CheckpointKind::Sandbox,
        kernel: copy.store().manifest(&image().checkpoint()).unwrap().kernel,
        annotations: Default::default(),
    };
    gone(fork.checkpoint(copy.store(), plan).unwrap_err());
    assert!(started.elapsed() < SOON);
    assert_eq!(copy.store().list_checkpoints().unwrap().len(), checkpoints);
    drop(fork);
    assert!(!left::exists(pid));
    assert_eq!(left::in_store(copy.store().root()), [""; 0]);
}

pub fn a_vm_ends_with_its_owner_and_the_next_to_open_the_store_sweeps_up() {
    let copy = image().copy();
    let root = copy.store().root();
    let mut owner = role::start("owner", root);
    let vm: u32 = owner.line().parse().unwrap();
    assert_eq!(left::vms_using(root), [vm]);
    // A sweep takes nothing away from an owner that lives.
    Store::open(root).unwrap();
    assert!(left::runs(vm));
    assert_eq!(
        std::fs::read_dir(root.join("run")).unwrap().count(),
        2,
        "a VM's and .verified"
    );

    drop(owner);
    left::soon_nothing(SOON, || Vec::from_iter(left::runs(vm).then_some(vm)));
    left::soon_nothing(SOON, || left::processes_using(root));
    Store::open(root).unwrap();
    // The process's first thread may be gone and others still closing what all of them had open.
    left::soon_nothing(SOON, || left::in_store(root));
}
