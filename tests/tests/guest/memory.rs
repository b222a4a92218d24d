//! Growing and shrinking, as seen by the guest and by the host.

use spore_tests::hold;
use spore_tests::sandbox::{Sandbox, shell};
use spore_vmm::guest::{GuestError, ResizeError};

use crate::image::{FLOOR_MB, image};

/// How far MemTotal may be from what was granted.
const TOLERANCE: u64 = 2 << 20;

fn total(sandbox: &mut Sandbox) -> u64 {
    sandbox.agent.status().unwrap().mem_total_bytes
}

/// Memory of programs in the zone that growth goes to. What is free there says less: blocks that are being reported to
/// the host do not count meanwhile.
fn movable_used(sandbox: &mut Sandbox) -> u64 {
    let pages = "awk '/^Node/ {zone = $4} zone == \"Movable\" && $1 ~ /^nr_zone_(in)?active_anon/ {n += $2} END {print n}'";
    sandbox
        .sh(&format!("{pages} /proc/zoneinfo"))
        .parse::<u64>()
        .unwrap()
        * 4096
}

/// Bytes of the VM's address space that are mapped from the checkpoint's memory file.
fn mapped_from_file(sandbox: &Sandbox) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", sandbox.pid())).unwrap();
    maps.lines()
        .filter(|line| line.ends_with("/memory"))
        .map(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
        })
        .sum()
}

pub fn growth_is_in_the_guest_and_on_the_host_and_shrinking_gives_it_back() {
    const MORE: u32 = 512;
    const USED: u32 = 128;
    let mut fork = image().fork();
    let floor = fork.agent.status().unwrap();
    let (guest, agent) = fork.parts();
    let granted = guest.resize(agent, FLOOR_MB + MORE).unwrap();
    assert_eq!(granted.floor_mb, FLOOR_MB);
    assert_eq!(granted.requested_mb, FLOOR_MB + MORE);
    assert_eq!(granted.granted_mb, FLOOR_MB + MORE);

    let grown = fork.agent.status().unwrap();
    let more = grown.mem_total_bytes - floor.mem_total_bytes;
    assert!(more.abs_diff(u64::from(MORE) << 20) <= TOLERANCE, "{more}");
    assert_eq!(u64::from(granted.mem_total_mb), grown.mem_total_bytes >> 20);
    let (before, after) = (floor.blocks.unwrap(), grown.blocks.unwrap());
    assert_eq!(after.online, after.present);
    assert_eq!(
        u64::from(after.online - before.online) * after.block_bytes,
        u64::from(MORE) << 20
    );
    let mapped = mapped_from_file(&fork);
    assert!(
        mapped > 0 && mapped <= u64::from(FLOOR_MB) << 20,
        "{mapped}: what was plugged is anonymous"
    );

    let (before, resident) = (movable_used(&mut fork), fork.resident_bytes());
    fork.sh(&hold::start(USED, 5, "/run/hold"));
    assert_eq!(fork.sh(&hold::ask("/run/hold")), hold::expected(USED, 5));
    let used = u64::from(USED) << 20;
    let (taken, full) = (movable_used(&mut fork) - before, fork.resident_bytes());
    assert!(taken > used / 10 * 9, "only {taken} of it is what was plugged");
    assert!(full - resident > used / 10 * 9, "{resident} to {full}");

    fork.sh("kill $(pidof hold); while pidof hold >/dev/null; do sleep 0.1; done");
    let (guest, agent) = fork.parts();
    let granted = guest.resize(agent, FLOOR_MB).unwrap();
    assert_eq!(granted.granted_mb, FLOOR_MB);
    assert!(total(&mut fork).abs_diff(floor.mem_total_bytes) <= TOLERANCE);
    assert_eq!(fork.vm().stats().unwrap().plugged_bytes, 0);
    let left = fork.resident_bytes();
    assert!(full - left > used / 10 * 9, "{full} to {left}");
}

pub fn a_guest_grows_while_it_is_busy() {
    let mut fork = image().fork();
    let mut other = fork.another_agent();
    let work = std::thread::spawn(move || {
        let script =
            "i=0; while [ ! -e /run/stop ]; do i=$((i + 1)); echo $i >/run/tick; done; echo worked $i";
        other.exec_collect(&shell(script), b"").unwrap()
    });
    let tick = |fork: &mut Sandbox| loop {
        let text = String::from_utf8(fork.get("/run/tick").unwrap_or_default()).unwrap();
        // Empty between being truncated and being written.
        if let Ok(tick) = text.trim().parse::<u64>() {
            return tick;
        }
    };
    let before = tick(&mut fork);
    let floor = total(&mut fork);
    let (guest, agent) = fork.parts();
    let granted = guest.resize(agent, FLOOR_MB + 256).unwrap();
    assert_eq!(granted.granted_mb, FLOOR_MB + 256);
    let more = total(&mut fork) - floor;
    assert!(more.abs_diff(256 << 20) <= TOLERANCE, "{more}");
    let after = tick(&mut fork);
    assert!(after > before, "{before} and {after}");
    assert_eq!(fork.sh("echo answers"), "answers");
    fork.put("/run/stop", "");
    let work = work.join().unwrap();
    assert!(work.outcome.status.success());
    let text = String::from_utf8(work.stdout).unwrap();
    let worked: u64 = text.trim().strip_prefix("worked ").unwrap().parse().unwrap();
    assert!(worked >= after);
}

pub fn a_request_outside_the_limits_is_clamped_to_the_floor_or_refused() {
    let mut fork = image().fork();
    let floor = total(&mut fork);
    let (guest, agent) = fork.parts();
    let stats = guest.vm().stats().unwrap();
    let most = u32::try_from((stats.boot_bytes + stats.region_bytes) >> 20).unwrap();
    assert_eq!(most, 16384);
    match guest.resize(agent, most + 1) {
        Err(GuestError::Resize(ResizeError::AboveMaximum { requested_mb, max_mb })) => {
            assert_eq!((requested_mb, max_mb), (most + 1, most));
        }
        other => panic!("{other:?}"),
    }
    // Below the floor is the floor, which it has.
    let granted = guest.resize(agent, 64).unwrap();
    assert_eq!((granted.requested_mb, granted.granted_mb), (64, FLOOR_MB));
    assert_eq!(total(&mut fork), floor);
    // No multiple of the guest's memory blocks of 128 MiB.
    let (guest, agent) = fork.parts();
    let granted = guest.resize(agent, FLOOR_MB + 200).unwrap();
    assert_eq!(granted.granted_mb, FLOOR_MB + 200);
    let more = total(&mut fork) - floor;
    assert!(more.abs_diff(200 << 20) <= TOLERANCE, "{more}");
    // Still refused, and nothing changed.
    let (guest, agent) = fork.parts();
    assert!(guest.resize(agent, u32::MAX).is_err());
    assert_eq!(guest.vm().stats().unwrap().plugged_bytes, 200 << 20);
}

/// What is moved is written, and a fork shares with its siblings what it has not written.
pub fn a_guest_moves_no_memory_by_itself() {
    let mut fork = image().fork();
    let collapse = "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs";
    assert_eq!(fork.sh(&format!("cat {collapse}")), u32::MAX.to_string());
    assert_eq!(fork.sh("cat /proc/sys/vm/compaction_proactiveness"), "0");
}
