//! What should not be, and guests that do what they should not.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::{MEMORY_FILE, STATE_FILE};
use spore_snapshot::store::{Store, Trust};
use spore_tests::sandbox::Sandbox;
use spore_tests::{data, left, role, stall};
use spore_vmm::exit::Ended;
use spore_vmm::guest::{Guest, GuestError, Template};
use spore_vmm::machine::Identity;
use spore_vmm::process::VmError;

use super::{first, is_whole, mark, marked, nothing_is_left, plan};
use crate::image::{Copy, checkpoint_of, image};

fn fork_of(copy: &Copy, id: &CheckpointId) -> Result<Guest, GuestError> {
    let checkpoint = copy.store().open_checkpoint(id)?;
    Guest::fork(copy.store(), &checkpoint)
}

/// A checkpoint of a guest that has this for a hook: why it cannot be forked, and after how long that is told.
fn with_hook(script: &str) -> (GuestError, Duration) {
    let store = image().store();
    let mut parent = image().fork();
    parent.put_program("/run/stall", stall::PROGRAM);
    parent.put_program("/etc/spore/on-fork.d/1", format!("#!/bin/sh\n{script}\n"));
    let id = checkpoint_of(&mut parent, store);
    let checkpoint = store.open_checkpoint(&id).unwrap();
    let started = Instant::now();
    let error = Guest::fork(store, &checkpoint).err().expect("it was handed out");
    let took = started.elapsed();
    // The guest that it is a checkpoint of has nothing to do with it.
    is_whole(&mut parent);
    store.delete_checkpoint(&id).unwrap();
    (error, took)
}

pub fn a_guest_that_never_says_ready_is_destroyed_after_a_limit() {
    let (error, took) = with_hook("exec /run/stall");
    match error {
        GuestError::Unreachable { limit, .. } => assert_eq!(limit, Duration::from_secs(30)),
        other => panic!("{other:?}"),
    }
    assert!((30..60).contains(&took.as_secs()), "{took:?}");
}

pub fn a_fork_that_ends_before_it_is_ready_is_told_with_how() {
    let (error, took) = with_hook("echo c >/proc/sysrq-trigger");
    match error {
        GuestError::Copy(VmError::Ended { ended, console }) => {
            assert_eq!(ended, Ended::Panic);
            // Its last lines are those of the stack.
            assert!(console.contains("sysrq_handle_crash"), "{console}");
        }
        other => panic!("{other:?}"),
    }
    assert!(took < Duration::from_secs(30), "it is not waited for: {took:?}");
}

pub fn a_guest_that_hammers_its_fork_port_harms_nobody_else() {
    let store = image().store();
    let mut sibling = image().fork();
    let mut hostile = image().fork();
    // The registers of the port, odd ones too, read and written; the mailbox; then the registers of virtio-rng and
    // virtio-balloon, which are reset, pointed nowhere and kicked. Each is a program, so few are tried: at random, and
    // all of them, is the fuzzers' work.
    hostile.sh(
        "for at in 0xD0100004 0xD0100008 0xD010000C 0xD0100FFC; do \
            devmem $at 32 0xFFFFFFFF; devmem $at 32; done; \
         devmem 0xD010000C 32 0; devmem 0xD010000D 8; \
         devmem 0x9E000 64 0xFFFFFFFFFFFFFFFF; devmem 0x9EE00 64 0xFFFFFFFFFFFFFFFF; \
         for page in 0xD0003 0xD0004; do for register in 030 038 080 050 070; do \
            devmem ${page}$register 32 0xFFFFFFFF; done; devmem ${page}070 32 0; devmem ${page}050 32 0; done",
    );
    assert_eq!(hostile.sh("echo it still answers"), "it still answers");
    is_whole(&mut sibling);
    // It can even be forked: what the port said so far is no matter.
    mark(&mut hostile, "forked");
    let mut forks = hostile.live_fork(store, 2);
    for fork in &mut forks {
        assert_eq!(marked(fork), "forked");
        is_whole(fork);
    }
    is_whole(&mut sibling);
}

pub fn no_forks_and_too_many_are_refused_and_the_guest_is_not_touched() {
    let store = image().store();
    let mut parent = image().fork();
    for count in [0, 65] {
        match parent
            .parts()
            .0
            .live_fork(store, &vec![Identity::default(); count])
        {
            Err(GuestError::ForkCount {
                count: asked,
                max: 64,
            }) => assert_eq!(asked, count),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{count} forks"),
        }
    }
    let bad = Identity {
        hostname: "x".repeat(65),
        ..Identity::default()
    };
    // One of three cannot be what was asked; the others are.
    let forked = parent.live_fork_as(store, &[Identity::default(), bad, Identity::default()]);
    let [first, second, third] = <[_; 3]>::try_from(forked.forks).ok().unwrap();
    let refused = second.err().expect("it has such a name").to_string();
    assert!(refused.contains("host name"), "{refused}");
    for fork in [first, third] {
        is_whole(&mut Sandbox::new(fork.unwrap()));
    }
    is_whole(&mut parent);
}

pub fn a_deleted_checkpoint_is_refused_and_leaves_nothing() {
    let copy = image().copy();
    let (store, id) = (copy.store(), image().checkpoint());
    let opened = store.open_checkpoint(&id).unwrap();
    // One that was begun: its manifest, which comes last, is not there.
    let digits: String = id.to_string().chars().rev().collect();
    let begun: CheckpointId = digits.parse().unwrap();
    let half = store.checkpoint_dir(&begun);
    std::fs::create_dir(&half).unwrap();
    for name in [MEMORY_FILE, STATE_FILE] {
        data::copy(&store.checkpoint_dir(&id).join(name), &half);
    }
    let error = fork_of(&copy, &begun).err().unwrap().to_string();
    assert!(error.contains(&begun.to_string()), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    std::fs::remove_dir_all(half).unwrap();

    store.delete_checkpoint(&id).unwrap();
    let error = fork_of(&copy, &id).err().unwrap().to_string();
    assert!(error.contains(&id.to_string()), "{error}");
    // Deleted between being opened and being forked.
    let error = Guest::fork(store, &opened).err().unwrap().to_string();
    assert!(
        error.contains(STATE_FILE) || error.contains(MEMORY_FILE),
        "{error}"
    );
    assert!(Template::load(store, &opened).is_err());
    nothing_is_left(store.root());
}

pub fn a_template_whose_files_changed_underneath_says_so() {
    let copy = image().copy();
    let (store, id) = (copy.store(), image().checkpoint());
    let mut template = Template::load(store, &store.open_checkpoint(&id).unwrap()).unwrap();
    let watch = template.watch();
    assert!(watch.is_current());
    // A file of the same name and bytes is another file.
    let path = store.checkpoint_dir(&id).join(STATE_FILE);
    let other = path.with_extension("other");
    data::copy(&path, &other);
    std::fs::rename(&other, &path).unwrap();
    assert!(!watch.is_current());
    std::fs::remove_file(&path).unwrap();
    assert!(!watch.is_current());
    // What it has loaded is its own all the same.
    let shell = template.arm(store).unwrap();
    is_whole(&mut Sandbox::new(
        shell
            .claim(Identity::default(), spore_vmm::clock::monotonic_ns())
            .unwrap(),
    ));
    drop(template);
    nothing_is_left(store.root());
}

pub fn descriptors_that_run_out_in_a_fan_out_cost_the_forks_that_lack_them_only() {
    let copy = image().copy();
    eprint!("{}", role::start("few descriptors", copy.store().root()).finish());
    nothing_is_left(copy.store().root());
}

/// Makes more forks at once than this process may have descriptors for.
pub fn few_descriptors(root: &Path) {
    const FORKS: usize = 24;
    let store = Store::open(root).unwrap();
    let mut parent = Sandbox::fork(&store, &first(&store));
    mark(&mut parent, "forked");
    let most = getrlimit(Resource::Nofile);
    let may_have = |more: Option<usize>| {
        let open = left::descriptors(std::process::id()).len();
        let current = more.map(|more| (open + more) as u64).or(most.current);
        setrlimit(Resource::Nofile, Rlimit { current, ..most }).unwrap();
    };
    let (mut whole, mut failed) = (0, 0);
    for more in [2, 12, 24, 37] {
        may_have(Some(more));
        let forked = parent
            .parts()
            .0
            .live_fork(&store, &vec![Identity::default(); FORKS]);
        may_have(None);
        match forked {
            Err(error) => {
                let error = error.to_string();
                assert!(
                    error.contains("Too many open files") || error.contains("os error 24"),
                    "{error}"
                );
                println!("with {more} more: none: {error}");
            }
            Ok(forked) => {
                assert_eq!(forked.forks.len(), FORKS);
                let mut made: Vec<Sandbox> = Vec::new();
                for fork in forked.forks {
                    match fork {
                        Ok(guest) => made.push(Sandbox::new(guest)),
                        Err(error) => {
                            let error = error.to_string();
                            assert!(
                                error.contains("Too many open files") || error.contains("os error 24"),
                                "{error}"
                            );
                            failed += 1;
                        }
                    }
                }
                println!("with {more} more: {} of {FORKS}", made.len());
                for fork in &mut made {
                    assert_eq!(marked(fork), "forked");
                    whole += 1;
                }
                made.iter_mut().for_each(is_whole);
            }
        }
        // The parent goes on, and nobody is left who was not waited for. To remove a directory takes descriptors too:
        // what could not be removed is nobody's, and goes when the store is next opened.
        is_whole(&mut parent);
        Store::open(root).unwrap();
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        left::soon_nothing(Duration::from_secs(30), || {
            let mut children = left::children();
            children.retain(|pid| *pid != parent.pid());
            children
        });
    }
    assert!(whole > 0 && failed > 0, "{whole} whole, {failed} failed");
    let mut fork = parent.live_fork(&store, 1).remove(0);
    assert_eq!(marked(&mut fork), "forked");
}

pub fn an_owner_killed_in_the_middle_of_a_checkpoint_leaves_no_half_of_one() {
    let copy = image().copy();
    let root = copy.store().root();
    for wait in [150, 500, 900] {
        let mut owner = role::start("checkpoints", root);
        assert_eq!(owner.line(), "begun");
        std::thread::sleep(Duration::from_millis(wait));
        drop(owner);
        left::soon_nothing(Duration::from_secs(30), || left::processes_using(root));
        let store = Store::open(root).unwrap();
        // A socket is listed for a moment longer than its process.
        nothing_is_left(root);
        for (id, manifest) in store.list_checkpoints().unwrap() {
            manifest.unwrap();
            store.open_checkpoint_with(&id, Trust::Nothing).unwrap();
            if id != image().checkpoint() {
                let mut fork = Sandbox::fork(&store, &id);
                assert_eq!(marked(&mut fork), "checkpointed");
                drop(fork);
                store.delete_checkpoint(&id).unwrap();
            }
        }
        is_whole(&mut Sandbox::fork(&store, &image().checkpoint()));
    }
}

/// Makes one checkpoint after the other until it is killed.
pub fn checkpoints(root: &Path) {
    let store = Store::open(root).unwrap();
    let mut parent = Sandbox::fork(&store, &first(&store));
    mark(&mut parent, "checkpointed");
    println!("begun");
    loop {
        parent.checkpoint(&store, plan(&store)).unwrap();
    }
}
