//! Memory of forks: what it costs, whose it is, and when it is there.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use spore_tests::sandbox::{LIMIT, Sandbox};
use spore_tests::{hold, left};
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::{GuestError, Template};
use spore_vmm::process::VmError;

use super::{anybody, is_whole};
use crate::image::{FLOOR_MB, image};

pub fn what_a_fork_touches_is_counted_as_its_own() {
    const TOUCHED: u32 = 64;
    let store = image().store();
    let mut fork = image().fork();
    let mut sibling = fork.live_fork(store, 1).remove(0);
    // A guest at rest costs little of its own.
    for (what, pid) in [
        ("a fork of a checkpoint", fork.pid()),
        ("a live fork", sibling.pid()),
    ] {
        let idle = left::private_bytes(pid) >> 20;
        eprintln!("{what}: {idle} MiB of its own at rest");
        assert!(idle < 64, "{what}: {idle} MiB");
    }
    for sandbox in [&mut fork, &mut sibling] {
        let before = left::private_bytes(sandbox.pid());
        sandbox.sh(&hold::start(TOUCHED, 61, "/run/hold"));
        assert_eq!(sandbox.sh(&hold::ask("/run/hold")), hold::expected(TOUCHED, 61));
        let more = left::private_bytes(sandbox.pid()) - before;
        assert!(
            more >= 32 << 20,
            "{more} bytes more after {TOUCHED} MiB were touched"
        );
    }
}

pub fn a_sibling_is_not_touched_by_a_resize_or_by_the_end_of_the_template() {
    const HELD: u32 = 16;
    let store = image().store();
    let checkpoint = store.open_checkpoint(&image().checkpoint()).unwrap();
    let mut template = Template::load(store, &checkpoint).unwrap();
    let mut make = || {
        Sandbox::new(
            template
                .arm(store)
                .unwrap()
                .claim(anybody(), monotonic_ns())
                .unwrap(),
        )
    };
    let (mut still, mut sized) = (make(), make());
    still.sh(&hold::start(HELD, 71, "/run/hold"));
    let expected = hold::expected(HELD, 71);
    assert_eq!(still.sh(&hold::ask("/run/hold")), expected);
    sized.resize(FLOOR_MB + 128);
    sized.sh(&hold::start(HELD, 72, "/run/hold"));
    assert_eq!(sized.sh(&hold::ask("/run/hold")), hold::expected(HELD, 72));
    assert_eq!(still.sh(&hold::ask("/run/hold")), expected);
    drop(template);
    sized.sh("kill $(pidof hold)");
    sized.resize(FLOOR_MB);
    assert_eq!(still.sh(&hold::ask("/run/hold")), expected);
    drop(sized);
    assert_eq!(still.sh(&hold::ask("/run/hold")), expected);
    is_whole(&mut still);
}

/// What a guest's kernel takes off its free lists while it reports it to the host, and puts back afterwards: as many
/// blocks as fit one report, of the largest size (`PAGE_REPORTING_CAPACITY` and mm/page_reporting.c).
const REPORTED_AT_ONCE: u64 = 32 * (4 << 20);

pub fn memory_is_there_as_soon_as_growth_has_been_told() {
    const USED: u32 = 32;
    let mut fork = image().fork();
    let before = fork.agent.memory(true).unwrap();
    let mut other = fork.another_agent();
    other.handshake().unwrap();
    fork.resize(FLOOR_MB + 256);
    // Over another connection, at once.
    let after = other.memory(true).unwrap();
    assert_eq!(after.total_bytes - before.total_bytes, 256 << 20);
    let free = before.free_bytes + (240 << 20);
    assert!(after.free_bytes > free - REPORTED_AT_ONCE, "{after:?}");
    left::soon("not all of it is free", LIMIT, || {
        other.memory(true).unwrap().free_bytes > free
    });
    let blocks = after.blocks.unwrap();
    assert_eq!(blocks.online, blocks.present);
    // And it is used by whoever asks for some at once.
    let anonymous = "awk '/^AnonPages/ {print $2}' /proc/meminfo";
    let idle = fork.sh(anonymous).parse::<u64>().unwrap() << 10;
    fork.sh(&hold::start(USED, 63, "/run/hold"));
    assert_eq!(fork.sh(&hold::ask("/run/hold")), hold::expected(USED, 63));
    let used = fork.sh(anonymous).parse::<u64>().unwrap() << 10;
    assert!(used - idle > (u64::from(USED) << 20) / 10 * 9, "{idle} to {used}");
    is_whole(&mut fork);
}

pub fn resizes_asked_for_at_once_come_one_after_the_other() {
    let fork = Mutex::new(image().fork());
    let last = Mutex::new(0);
    std::thread::scope(|scope| {
        for more in [128, 2, 256, 0, 64] {
            let (fork, last) = (&fork, &last);
            scope.spawn(move || {
                let mut fork = fork.lock().unwrap();
                let granted = fork.resize(FLOOR_MB + more);
                assert_eq!(
                    (granted.requested_mb, granted.granted_mb),
                    (FLOOR_MB + more, FLOOR_MB + more)
                );
                *last.lock().unwrap() = more;
            });
        }
    });
    let (mut fork, last) = (fork.into_inner().unwrap(), last.into_inner().unwrap());
    let stats = fork.vm().stats().unwrap();
    assert_eq!(stats.plugged_bytes, u64::from(last) << 20);
    assert_eq!(stats.requested_bytes, stats.plugged_bytes);
    is_whole(&mut fork);
}

pub fn a_guest_killed_while_it_grows_is_told_to_be_gone() {
    for wait in [0, 300] {
        let mut fork = image().fork();
        let pid = fork.pid();
        let (killed, error) = std::thread::scope(|scope| {
            let killer = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(wait));
                left::kill(pid);
                Instant::now()
            });
            let (guest, agent) = fork.parts();
            let mut error = guest.resize(agent, FLOOR_MB + 1024).unwrap_err();
            // The connection may break first: then the guest says why.
            if let GuestError::Agent(broken) = error {
                error = guest.explain(broken);
            }
            (killer.join().unwrap(), error)
        });
        assert!(
            killed.elapsed() < Duration::from_secs(5),
            "told after {:?}",
            killed.elapsed()
        );
        match error {
            GuestError::Vm(VmError::Gone { status, .. }) => assert!(status.contains("SIGKILL"), "{status}"),
            other => panic!("after {wait} ms: {other:?}"),
        }
    }
}

pub fn free_memory_comes_back_unasked() {
    const USED: u32 = 96;
    let mut fork = image().fork();
    fork.sh(&hold::start(USED, 81, "/run/hold"));
    assert_eq!(fork.sh(&hold::ask("/run/hold")), hold::expected(USED, 81));
    let full = fork.resident_bytes();
    fork.sh("kill $(pidof hold)");
    left::soon("the memory is not given back", Duration::from_secs(60), || {
        full.saturating_sub(fork.resident_bytes()) > (u64::from(USED) << 20) / 10 * 8
    });
    is_whole(&mut fork);
}
