//! More of a guest that runs.

use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spore_builder::Cancel;
use spore_builder::build::{Variant, variant};
use spore_builder::observe::BuildEvent;
use spore_protocol::ExecOutput;
use spore_tests::sandbox::{LIMIT, Sandbox, shell};
use spore_tests::{hold, left, witness};
use spore_vmm::machine::Identity;

use super::{is_whole, mark, marked, plan};
use crate::image::{FLOOR_MB, On, image};
use crate::restored::file_system_is_clean;

/// Counts in memory and on disk, the disk first, until `/run/stop` is there.
const COUNTING: &str = "i=0; while [ ! -e /run/stop ]; do i=$((i + 1)); echo $i >>/var/count; echo $i >>/run/count; \
    done; echo counted to $i";

/// A program that counts, over a connection of its own.
pub fn counting(sandbox: &mut Sandbox) -> JoinHandle<ExecOutput> {
    let mut agent = sandbox.another_agent();
    let counts = std::thread::spawn(move || agent.exec_collect(&shell(COUNTING), b"").unwrap());
    left::soon("it does not count", LIMIT, || count(sandbox, "/run") > 2);
    counts
}

/// How far it has come. Of a file that only grows the last whole line counts, whenever it is read and whenever its
/// program ended.
pub fn count(sandbox: &mut Sandbox, place: &str) -> u64 {
    let bytes = sandbox.get(&format!("{place}/count")).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().last().map_or(0, |line| line.parse().unwrap())
}

/// Waits until it has ended in a fork: whoever ran it hung up as far as the fork knows.
pub fn counted(fork: &mut Sandbox) {
    left::soon("the program runs on without its caller", LIMIT, || {
        let before = count(fork, "/run");
        std::thread::sleep(Duration::from_millis(500));
        count(fork, "/run") == before
    });
}

/// Ends it, and says how far it came.
pub fn stop_counting(sandbox: &mut Sandbox, counts: JoinHandle<ExecOutput>) -> u64 {
    sandbox.put("/run/stop", "");
    let output = counts.join().unwrap();
    assert!(output.outcome.status.success(), "{:?}", output.outcome);
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().strip_prefix("counted to ").unwrap().parse().unwrap()
}

pub fn the_parent_keeps_its_connections_and_all_is_of_one_instant() {
    let store = image().store();
    let mut parent = image().fork();
    mark(&mut parent, "before");
    parent.sh("echo written and not on the disk yet >/var/dirty");
    let (id, run, pid) = (parent.id().to_owned(), parent.run_dir(), parent.pid());
    let counts = counting(&mut parent);
    let before = count(&mut parent, "/run");
    let mut forks = parent.live_fork(store, 3);
    // The connection from before, and the program's over its own.
    let after = count(&mut parent, "/run");
    mark(&mut parent, "after");
    assert_eq!(
        (parent.id(), parent.run_dir(), parent.pid()),
        (id.as_str(), run, pid)
    );
    assert!(stop_counting(&mut parent, counts) >= after);
    for fork in &mut forks {
        assert_eq!(marked(fork), "before");
        assert_eq!(
            fork.get("/var/dirty").unwrap(),
            b"written and not on the disk yet\n"
        );
        counted(fork);
        let [memory, disk] = ["/run", "/var"].map(|place| count(fork, place));
        assert!(
            disk == memory || disk == memory + 1,
            "{disk} on disk, {memory} in memory"
        );
        assert!(
            memory >= before && memory <= after + 1,
            "{memory} is not in {before}..{after}"
        );
    }
    for (number, fork) in forks.iter_mut().enumerate() {
        mark(fork, &number.to_string());
    }
    for (number, fork) in forks.iter_mut().enumerate() {
        assert_eq!(marked(fork), number.to_string());
        is_whole(fork);
    }
    assert_eq!(marked(&mut parent), "after");
    drop(parent);
    is_whole(&mut forks[0]);
}

pub fn each_is_somebody_else_and_no_clock_goes_back() {
    let store = image().store();
    let mut parent = image().fork();
    witness::start(&mut parent);
    let was = witness::ask(&mut parent);
    let named = Identity {
        hostname: "named".into(),
        env: [("GIVEN".to_owned(), "given".to_owned())].into(),
        network: None,
    };
    let identities = [named, Identity::default(), Identity::default()];
    let forked = parent.live_fork_as(store, &identities);
    eprintln!("stood still for {:?}", forked.times.paused);
    let mut forks: Vec<_> = forked
        .forks
        .into_iter()
        .map(|fork| Sandbox::new(fork.unwrap()))
        .collect();
    let asked = Instant::now();
    let clock = parent.agent.status().unwrap().monotonic_ns;
    let is = witness::ask(&mut parent);
    assert_eq!(
        (&is.machine_id, &is.boot_id),
        (&was.machine_id, &was.boot_id),
        "the parent stays who it is"
    );
    assert_eq!(is.back_ns, 0);
    assert!(is.looks > was.looks);
    let mut everybody = vec![is];
    let mut uuids = BTreeSet::from([parent.get("/proc/sys/kernel/random/uuid").unwrap()]);
    for fork in &mut forks {
        let status = fork.agent.status().unwrap();
        // It goes on as the parent's does; how long the answers take is up to who else wants the processors.
        let most = asked.elapsed() + Duration::from_secs(1);
        let apart = status.monotonic_ns.abs_diff(clock);
        assert!(u128::from(apart) < most.as_nanos(), "{apart} ns");
        let seen = witness::ask(fork);
        assert_eq!(seen.back_ns, 0, "{seen:?}");
        assert!(seen.looks > was.looks, "it went on looking");
        uuids.insert(fork.get("/proc/sys/kernel/random/uuid").unwrap());
        everybody.push(seen);
    }
    let differ =
        |of: fn(&witness::Testimony) -> &String| everybody.iter().map(of).collect::<BTreeSet<_>>().len();
    assert_eq!(uuids.len(), 4);
    assert_eq!(differ(|seen| &seen.machine_id), 4);
    assert_eq!(differ(|seen| &seen.boot_id), 4);
    assert_eq!(differ(|seen| &seen.getrandom), 4);
    assert_eq!(differ(|seen| &seen.urandom), 4);
    assert_eq!(forks[0].get("/proc/sys/kernel/hostname").unwrap(), b"named\n");
    assert_eq!(
        forks[1].get("/proc/sys/kernel/hostname").unwrap().trim_ascii(),
        forks[1].id().as_bytes()
    );
    assert_eq!(forks[0].sh("echo $GIVEN"), "given");
    assert_eq!(forks[1].sh("echo $GIVEN"), "");
}

pub fn a_fork_has_nothing_of_its_parents_open() {
    let store = image().store();
    let mut parent = image().fork();
    let _connections = [parent.another_agent(), parent.another_agent()];
    parent.put("/var/written", "by the parent");
    let forks = parent.live_fork(store, 2);
    let run = store.root().join("run");
    let sockets = |pid: u32| -> BTreeSet<_> {
        let all = left::descriptors(pid).into_iter();
        all.filter(|of| of.starts_with("socket:")).collect()
    };
    for fork in &forks {
        let common: Vec<_> = sockets(fork.pid())
            .intersection(&sockets(parent.pid()))
            .cloned()
            .collect();
        assert_eq!(common, [""; 0], "sockets of its parent");
        let open = left::descriptors(fork.pid());
        let foreign: Vec<_> = open
            .iter()
            .filter(|of| of.starts_with(run.to_str().unwrap()) && !of.contains(fork.id()))
            // What was frozen is read by all, and written by nobody.
            .filter(|of| !of.contains("/disk-"))
            .collect();
        assert_eq!(foreign, [""; 0], "files of others");
        for kind in ["anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"] {
            assert_eq!(
                open.iter().filter(|of| of.starts_with(kind)).count(),
                1,
                "{kind} in {open:?}"
            );
        }
    }
    // What one of them writes to is its overlay and its console: neither the parent nor a fork can change what others
    // lie on.
    for guest in forks.iter().chain([&parent]) {
        let written = left::written_files(guest.pid(), store.root());
        let own = guest.run_dir();
        assert_eq!(written.len(), 2, "{written:?}");
        assert!(written.iter().all(|path| path.starts_with(&own)), "{written:?}");
    }
    // As many as any fork has: nothing grows from generation to generation.
    let plain = left::descriptors(image().fork().pid()).len();
    for fork in &forks {
        let more = left::descriptors(fork.pid()).len().saturating_sub(plain);
        assert!(
            more <= 4,
            "{more} more than the {plain} of a fork of a checkpoint"
        );
    }
}

pub fn growth_afterwards_is_each_ones_own() {
    const HELD: u32 = 16;
    let store = image().store();
    let mut parent = image().fork();
    parent.resize(FLOOR_MB + 128);
    parent.sh(&hold::start(HELD, 21, "/run/hold"));
    let expected = hold::expected(HELD, 21);
    assert_eq!(parent.sh(&hold::ask("/run/hold")), expected);
    let mut forks = parent.live_fork(store, 2);
    let total = |sandbox: &mut Sandbox| sandbox.agent.status().unwrap().mem_total_bytes;
    let before = total(&mut parent);
    assert_eq!(forks[0].resize(FLOOR_MB + 256).granted_mb, FLOOR_MB + 256);
    // Its memory may have to be moved together first.
    assert_eq!(forks[1].resize(FLOOR_MB).granted_mb, FLOOR_MB);
    assert_eq!(total(&mut parent), before);
    assert_eq!(total(&mut forks[0]) >> 27, (before >> 27) + 1);
    assert_eq!(total(&mut forks[1]) >> 27, (before >> 27) - 1);
    forks[0].sh(&hold::start(HELD, 22, "/run/more"));
    assert_eq!(forks[0].sh(&hold::ask("/run/more")), hold::expected(HELD, 22));
    assert_eq!(parent.resize(FLOOR_MB + 64).granted_mb, FLOOR_MB + 64);
    for sandbox in forks.iter_mut().chain([&mut parent]) {
        assert_eq!(sandbox.sh(&hold::ask("/run/hold")), expected);
        is_whole(sandbox);
    }
}

pub fn three_generations_keep_memory_and_disk_and_a_clean_file_system() {
    let store = image().store();
    let content = |generation: u32| -> Vec<u8> {
        let words = (0..20_000u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(generation));
        words.flat_map(u32::to_le_bytes).collect()
    };
    let mut lineage = vec![image().fork()];
    for generation in 1..=3 {
        let parent = lineage.last_mut().unwrap();
        for place in ["/run", "/var"] {
            parent.put(&format!("{place}/{generation}"), content(generation));
        }
        let mut fork = parent.live_fork(store, 1).remove(0);
        // Nothing of this reaches the next generation.
        mark(parent, "late");
        for earlier in 1..=generation {
            for place in ["/run", "/var"] {
                assert!(
                    fork.get(&format!("{place}/{earlier}")).unwrap() == content(earlier),
                    "{place}/{earlier}"
                );
            }
        }
        assert_eq!(marked(&mut fork), "");
        lineage.push(fork);
    }
    // A checkpoint of the last, and a live fork of a fork of that.
    let last = lineage.last_mut().unwrap();
    let id = last.checkpoint(store, plan(store)).unwrap();
    let mut again = Sandbox::fork(store, &id).live_fork(store, 1).remove(0);
    again.sh("sync && echo 3 >/proc/sys/vm/drop_caches");
    for generation in 1..=3 {
        assert!(again.get(&format!("/var/{generation}")).unwrap() == content(generation));
    }
    assert_eq!(
        again.sh("dmesg | grep -iE 'ext4.*(error|warning)|i/o error|corrupt' || true"),
        ""
    );
    drop(lineage);
    file_system_is_clean(again);
    store.delete_checkpoint(&id).unwrap();
}

pub fn sixteen_at_once_are_all_ready() {
    let store = image().store();
    let mut parent = image().fork();
    mark(&mut parent, "all have this");
    let mut forks = parent.live_fork(store, 16);
    let mut ids = BTreeSet::new();
    for (number, fork) in forks.iter_mut().enumerate() {
        assert_eq!(marked(fork), "all have this");
        mark(fork, &number.to_string());
        ids.insert(fork.get("/etc/machine-id").unwrap());
    }
    assert_eq!(ids.len(), 16);
    for (number, fork) in forks.iter_mut().enumerate() {
        assert_eq!(marked(fork), number.to_string());
    }
    assert_eq!(marked(&mut parent), "all have this");
    is_whole(&mut parent);
}

pub fn two_processors_run_on_in_parent_and_forks() {
    let copy = image().copy();
    let store = copy.store();
    let two = Variant {
        floor_mb: FLOOR_MB,
        vcpus: 2,
    };
    let made = &image().builds[0].image;
    let id = variant(
        &copy.host,
        &made.record,
        two,
        &Cancel::default(),
        &mut On(|_: BuildEvent<'_>| {}),
    )
    .unwrap();
    let mut parent = Sandbox::fork(store, &id);
    assert_eq!(parent.sh("nproc"), "2");
    let spin = "setsid taskset 1 sh -c 'while :; do echo x >/run/cpu-0; i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; done' & \
                setsid taskset 2 sh -c 'while :; do echo x >/run/cpu-1; i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; done' & ";
    parent.sh(&format!("({spin}) >/dev/null 2>&1"));
    let both_run = |sandbox: &mut Sandbox| {
        for cpu in 0..2 {
            let path = format!("/run/cpu-{cpu}");
            left::soon("a processor stands still", LIMIT, || sandbox.get(&path).is_some());
            sandbox.agent.remove(&path, false).unwrap();
            left::soon("a processor stands still", LIMIT, || sandbox.get(&path).is_some());
        }
    };
    both_run(&mut parent);
    let mut forks = parent.live_fork(store, 2);
    both_run(&mut parent);
    for fork in &mut forks {
        both_run(fork);
    }
    let id = forks[0].checkpoint(store, plan(store)).unwrap();
    drop(parent);
    let mut third = Sandbox::fork(store, &id);
    both_run(&mut third);
    both_run(&mut forks[0]);
    third.resize(FLOOR_MB + 128);
    both_run(&mut third);
}

/// How often somebody does not come.
const LEFT: u32 = 40;

pub fn a_guest_that_nobody_comes_for_at_its_fork_port_goes_on() {
    let mut guest = image().fork();
    for _ in 0..LEFT {
        guest.vm().arm_fork_port().unwrap();
        // It answers, so it did not come there for the one before.
        let mut agent = guest.another_agent();
        agent.sleep().unwrap();
        drop(agent);
        guest.vm().leave_fork_port(LIMIT).unwrap();
    }
    assert_eq!(guest.live_fork(image().store(), 1)[0].sh("echo here"), "here");
}
