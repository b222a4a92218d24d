//! Many forks, and what they leave on the host.

use std::path::Path;
use std::time::Duration;

use spore_snapshot::store::Store;
use spore_tests::{left, role};
use spore_vmm::pool::{Budget, Pool};

use super::{anybody, first, is_whole, nothing_is_left, sandbox};
use crate::image::image;

const FORKS: usize = 100;
const SHELLS: usize = 2;

/// What may be left of what an allocator or a page table grew by, in bytes.
const SLACK: u64 = 8 << 20;

pub fn a_hundred_forks_and_kills_leave_the_host_where_it_was() {
    let copy = image().copy();
    // In a process of its own: what it has open is what this leaves.
    eprint!("{}", role::start("storm", copy.store().root()).finish());
    nothing_is_left(copy.store().root());
}

/// What a process and its pool are seen to have.
#[derive(Debug)]
struct Seen {
    descriptors: usize,
    children: usize,
    run_directories: usize,
    template_descriptors: usize,
    private: u64,
    template_private: u64,
}

fn look(pool: &Pool, store: &Store) -> Seen {
    pool.settle();
    left::soon("the pool is not full", Duration::from_secs(60), || {
        pool.stats().shells == SHELLS
    });
    let template = pool.template_pid(&first(store)).unwrap();
    let children = left::children();
    assert!(
        children.iter().all(|pid| left::runs(*pid)),
        "somebody was not waited for"
    );
    Seen {
        descriptors: left::descriptors(std::process::id()).len(),
        children: children.len(),
        run_directories: std::fs::read_dir(store.root().join("run")).unwrap().count(),
        template_descriptors: left::descriptors(template).len(),
        private: left::private_bytes(std::process::id()),
        template_private: left::private_bytes(template),
    }
}

/// Forks one checkpoint and ends the forks, in every way there is.
pub fn storm(root: &Path) {
    let store = Store::open(root).unwrap();
    let id = first(&store);
    let budget = Budget {
        templates: 1,
        shells_per_template: SHELLS,
        shells: SHELLS,
    };
    let pool = Pool::new(store.clone(), budget).unwrap();
    let round = |number: usize| {
        let forked = match number % 3 {
            0 => pool.fork_without_shell(&id, anybody()).unwrap(),
            _ => pool.fork(&id, anybody()).unwrap(),
        };
        match number % 4 {
            0 => drop(forked.guest),
            1 => pool.destroy(forked.guest),
            2 => {
                left::kill(forked.guest.pid());
                pool.destroy(forked.guest);
            }
            _ => {
                // Killed while somebody talks to it.
                let mut guest = sandbox(forked);
                left::kill(guest.pid());
                assert!(guest.agent.status().is_err());
            }
        }
    };
    pool.warm(&id, SHELLS).unwrap();
    (0..8).for_each(round);
    let before = look(&pool, &store);
    (0..FORKS).for_each(round);
    let after = look(&pool, &store);
    println!("before: {before:?}\nafter:  {after:?}");
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!((after.children, before.children), (1 + SHELLS, 1 + SHELLS));
    assert_eq!(after.run_directories, before.run_directories);
    assert_eq!(after.template_descriptors, before.template_descriptors);
    assert!(after.private < before.private + SLACK);
    assert!(after.template_private < before.template_private + SLACK);
    is_whole(&mut sandbox(pool.fork(&id, anybody()).unwrap()));
    drop(pool);
    assert_eq!(left::children(), [0; 0]);
}
