//! The pool: templates and shells kept ready.

use std::collections::BTreeSet;
use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use rustix::fs::SeekFrom;
use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::MEMORY_FILE;
use spore_tests::left;
use spore_tests::sandbox::Sandbox;
use spore_vmm::guest::GuestError;
use spore_vmm::pool::{Budget, Origin, Pool};

use super::{anybody, is_whole, mark, marked, nothing_is_left, plan, sandbox};
use crate::image::{Copy, image};

/// What the filling of a pool may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

fn pool(copy: &Copy, budget: Budget) -> Pool {
    Pool::new(copy.store().clone(), budget).unwrap()
}

/// Ends it, and looks that nothing is left of it.
fn close(pool: Pool, copy: &Copy) {
    drop(pool);
    nothing_is_left(copy.store().root());
}

fn filled(pool: &Pool, shells: usize) {
    left::soon("the pool is not full", SOON, || pool.stats().shells == shells);
}

pub fn a_shell_is_a_hit_and_its_place_is_filled_again() {
    let copy = image().copy();
    let id = image().checkpoint();
    let pool = pool(
        &copy,
        Budget {
            shells_per_template: 2,
            ..Budget::default()
        },
    );
    // Nothing is made ready for what nobody has asked for.
    assert_eq!((pool.stats().templates, pool.stats().shells), (0, 0));
    let first = pool.fork(&id, anybody()).unwrap();
    assert_eq!(first.origin, Origin::Fork);
    let mut guests = vec![sandbox(first)];
    for _ in 0..3 {
        filled(&pool, 2);
        let hit = pool.fork(&id, anybody()).unwrap();
        assert_eq!(hit.origin, Origin::Shell);
        guests.push(sandbox(hit));
    }
    // A miss that is wanted is one, whatever there is.
    filled(&pool, 2);
    let miss = pool.fork_without_shell(&id, anybody()).unwrap();
    assert_eq!((miss.origin, pool.stats().shells), (Origin::Fork, 2));
    guests.push(sandbox(miss));
    for (number, guest) in guests.iter_mut().enumerate() {
        assert_eq!(marked(guest), "");
        mark(guest, &number.to_string());
    }
    for (number, guest) in guests.iter_mut().enumerate() {
        assert_eq!(marked(guest), number.to_string());
    }
    for guest in guests {
        pool.destroy(guest.into_guest());
    }
    pool.settle();
    assert_eq!(
        left::vms_using(copy.store().root()).len(),
        1 + 2,
        "the template and its shells"
    );
    close(pool, &copy);
}

pub fn the_budget_holds_and_the_least_recently_used_goes() {
    let copy = image().copy();
    let store = copy.store();
    let a = image().checkpoint();
    let mut parent = Sandbox::fork(store, &a);
    let mut next = |text: &str| {
        mark(&mut parent, text);
        parent.checkpoint(store, plan(store)).unwrap()
    };
    let (b, c) = (next("b"), next("c"));
    drop(parent);
    let budget = Budget {
        templates: 2,
        shells_per_template: 2,
        shells: 3,
    };
    let pool = pool(&copy, budget);
    let is_of = |id: &CheckpointId, text: &str| {
        assert_eq!(marked(&mut sandbox(pool.fork(id, anybody()).unwrap())), text);
        let stats = pool.stats();
        assert!(
            stats.templates <= budget.templates && stats.shells <= budget.shells,
            "{stats:?}"
        );
    };
    let loaded = || [&a, &b, &c].map(|id| pool.template_pid(id).is_some());
    is_of(&a, "");
    is_of(&b, "b");
    filled(&pool, 3);
    is_of(&a, "");
    assert_eq!(loaded(), [true, true, false]);
    let dropped = pool.template_pid(&b).unwrap();
    is_of(&c, "c");
    assert_eq!(loaded(), [true, false, true], "b was longest unused");
    filled(&pool, 3);
    pool.settle();
    assert!(!left::exists(dropped));
    // It comes back when it is asked for.
    is_of(&b, "b");
    assert_eq!(loaded(), [false, true, true]);
    assert_eq!(
        pool.warm(&b, 99).unwrap(),
        budget.shells_per_template.min(pool.stats().shells)
    );
    close(pool, &copy);
}

pub fn who_comes_at_once_shares_one_template() {
    const AT_ONCE: usize = 6;
    let copy = image().copy();
    let id = image().checkpoint();
    let none = Budget {
        shells_per_template: 0,
        ..Budget::default()
    };
    let pool = pool(&copy, none);
    let all = Barrier::new(AT_ONCE);
    let guests: Vec<_> = std::thread::scope(|scope| {
        let forks: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    all.wait();
                    let forked = pool.fork(&id, anybody()).unwrap();
                    assert_eq!(forked.origin, Origin::Fork);
                    let mut guest = sandbox(forked);
                    (guest.get("/etc/machine-id").unwrap(), guest)
                })
            })
            .collect();
        forks.into_iter().map(|fork| fork.join().unwrap()).collect()
    });
    let ids: BTreeSet<_> = guests.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), AT_ONCE);
    assert_eq!(pool.stats().templates, 1);
    assert_eq!(left::vms_using(copy.store().root()).len(), AT_ONCE + 1);
    drop(guests);
    close(pool, &copy);
}

pub fn who_warms_at_once_makes_no_shell_too_many() {
    const AT_ONCE: usize = 6;
    let copy = image().copy();
    let id = image().checkpoint();
    let budget = Budget {
        shells_per_template: 2,
        ..Budget::default()
    };
    let pool = pool(&copy, budget);
    let all = Barrier::new(AT_ONCE);
    // Beside them the pool makes its own.
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                all.wait();
                assert_eq!(pool.warm(&id, 99).unwrap(), 2);
            });
        }
    });
    assert_eq!(pool.stats().shells, 2);
    // Whoever is frugal keeps none, nor what was being made.
    std::thread::scope(|scope| {
        let warming = scope.spawn(|| pool.warm(&id, 2).unwrap());
        pool.set_frugal(true);
        warming.join().unwrap();
    });
    assert_eq!(pool.warm(&id, 2).unwrap(), 0);
    assert_eq!(pool.stats().shells, 0);
    pool.set_frugal(false);
    filled(&pool, 2);
    pool.settle();
    left::soon_nothing(SOON, || {
        let vms = left::vms_using(copy.store().root());
        Vec::from_iter(vms.into_iter().skip(1 + 2))
    });
    close(pool, &copy);
}

pub fn a_deleted_checkpoint_is_forgotten() {
    let copy = image().copy();
    let (store, id) = (copy.store(), image().checkpoint());
    let pool = pool(&copy, Budget::default());
    assert_eq!(pool.warm(&id, 2).unwrap().min(2), 2);
    let mut running = sandbox(pool.fork(&id, anybody()).unwrap());
    // None is being made any more, which would be there for a moment after the others have gone.
    filled(&pool, Budget::default().shells_per_template);
    store.delete_checkpoint(&id).unwrap();
    match pool.fork(&id, anybody()) {
        Err(GuestError::Store(error)) => assert!(error.to_string().contains(&id.to_string()), "{error}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("forked what was deleted"),
    }
    assert_eq!((pool.stats().templates, pool.stats().shells), (0, 0));
    pool.settle();
    // What runs has its files open and goes on.
    assert_eq!(left::vms_using(store.root()), [running.pid()]);
    is_whole(&mut running);
    drop(running);
    close(pool, &copy);
}

pub fn a_checkpoint_that_was_touched_is_looked_at_again() {
    let copy = image().copy();
    let (store, id) = (copy.store(), image().checkpoint());
    let pool = pool(&copy, Budget::default());
    pool.warm(&id, 1).unwrap();
    let before = pool.template_pid(&id).unwrap();
    let path = store.checkpoint_dir(&id).join(MEMORY_FILE);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let touch = || {
        let times = FileTimes::new().set_modified(SystemTime::now());
        file.set_times(times).unwrap();
    };
    touch();
    // Every byte is as it was: another template, and no shell of the old one.
    let forked = pool.fork(&id, anybody()).unwrap();
    assert_eq!(forked.origin, Origin::Fork);
    is_whole(&mut sandbox(forked));
    assert_ne!(pool.template_pid(&id), Some(before));
    pool.settle();
    assert!(!left::exists(before));

    let at = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    touch();
    let error = pool.fork(&id, anybody()).err().unwrap().to_string();
    assert!(error.contains(MEMORY_FILE), "{error}");
    assert_eq!(pool.stats().templates, 0);
    // It is not remembered against it.
    file.write_all_at(&byte, at).unwrap();
    is_whole(&mut sandbox(pool.fork(&id, anybody()).unwrap()));
    close(pool, &copy);
}

pub fn a_template_that_dies_is_loaded_again() {
    let copy = image().copy();
    let id = image().checkpoint();
    let pool = pool(&copy, Budget::default());
    let mut running = sandbox(pool.fork(&id, anybody()).unwrap());
    let dead = pool.template_pid(&id).unwrap();
    left::kill(dead);
    let forked = pool.fork_without_shell(&id, anybody()).unwrap();
    assert_eq!(forked.origin, Origin::Fork);
    is_whole(&mut sandbox(forked));
    assert_ne!(pool.template_pid(&id), Some(dead));
    is_whole(&mut running);
    drop(running);
    // And it is filled up again.
    filled(&pool, Budget::default().shells_per_template);
    assert!(!left::exists(dead), "it was waited for");
    close(pool, &copy);
}

pub fn shells_that_die_cost_nobody_a_fork() {
    let copy = image().copy();
    let id = image().checkpoint();
    let budget = Budget {
        shells_per_template: 3,
        ..Budget::default()
    };
    let pool = pool(&copy, budget);
    pool.warm(&id, 3).unwrap();
    filled(&pool, 3);
    let template = pool.template_pid(&id).unwrap();
    let shells = left::vms_using(copy.store().root());
    for pid in shells.iter().filter(|pid| **pid != template) {
        left::kill(*pid);
    }
    for _ in 0..3 {
        is_whole(&mut sandbox(pool.fork(&id, anybody()).unwrap()));
    }
    // Both at once: nothing is left of what the pool had.
    for pid in left::vms_using(copy.store().root()) {
        left::kill(pid);
    }
    is_whole(&mut sandbox(pool.fork(&id, anybody()).unwrap()));
    filled(&pool, 3);
    left::soon_nothing(SOON, || {
        let vms = left::vms_using(copy.store().root());
        Vec::from_iter(vms.into_iter().filter(|pid| !left::runs(*pid)))
    });
    close(pool, &copy);
}
