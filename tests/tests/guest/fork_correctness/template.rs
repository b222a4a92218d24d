//! Templates and shells.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spore_tests::left;
use spore_tests::sandbox::Sandbox;
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::{GuestError, Template};
use spore_vmm::machine::Identity;
use spore_vmm::process::VmError;

use super::{anybody, is_whole, mark, marked};
use crate::image::{FLOOR_MB, image};

fn template() -> Template {
    let store = image().store();
    let checkpoint = store.open_checkpoint(&image().checkpoint()).unwrap();
    Template::load(store, &checkpoint).unwrap()
}

pub fn a_template_is_forked_again_and_again_and_never_runs() {
    let store = image().store();
    let mut template = template();
    assert_eq!(template.checkpoint(), image().checkpoint());
    assert_eq!((template.floor_mb(), template.max_mb()), (FLOOR_MB, 16384));
    let threads = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    let mut nonce = None;
    for round in 0..4 {
        let guest = template
            .arm(store)
            .unwrap()
            .claim(anybody(), monotonic_ns())
            .unwrap();
        let mut fork = Sandbox::new(guest);
        // Each begins where the checkpoint was, whatever those before it did.
        assert_eq!(marked(&mut fork), "");
        mark(&mut fork, &format!("round {round}"));
        let status = fork.agent.status().unwrap();
        assert_eq!(
            *nonce.get_or_insert(status.boot_nonce),
            status.boot_nonce,
            "restored, not booted"
        );
        names.insert(fork.get("/proc/sys/kernel/hostname").unwrap());
        ids.insert(fork.get("/etc/machine-id").unwrap());
        assert_eq!(threads(template.pid()), 1, "nothing of it runs");
        assert!(threads(fork.pid()) > 1);
        assert_eq!(marked(&mut fork), format!("round {round}"));
    }
    assert_eq!((names.len(), ids.len()), (4, 4));
    assert!(
        left::descriptors(template.pid())
            .iter()
            .all(|of| of != "anon_inode:kvm-vm")
    );
}

pub fn a_shell_waits_without_aging() {
    let store = image().store();
    let mut template = template();
    let shell = template.arm(store).unwrap();
    let (pid, id) = (shell.pid(), shell.id().to_owned());
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (
            fields[11].parse::<u64>().unwrap(),
            fields[12].parse::<u64>().unwrap(),
        )
    };
    // Its threads may still be on their way to where they wait.
    let mut before = ticks();
    left::soon("it goes on working", Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(200));
        let last = std::mem::replace(&mut before, ticks());
        last == before
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ticks(), before, "it waits without using a processor");
    let someone = Identity {
        hostname: "someone".into(),
        ..Identity::default()
    };
    let asked = monotonic_ns();
    let mut fork = Sandbox::new(shell.claim(&someone, asked).unwrap());
    assert_eq!((fork.pid(), fork.id()), (pid, id.as_str()));
    let times = fork.times();
    assert!(times.released <= times.woke.unwrap() && times.woke <= times.ready);
    let now = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let before = now();
    let said = fork.agent.ping().unwrap().realtime_ns;
    // As of the claim, not of the arming 3 s before it.
    assert!(
        (before - 50_000_000..now() + 50_000_000).contains(&said),
        "{said}, {before}"
    );
    assert_eq!(fork.get("/proc/sys/kernel/hostname").unwrap(), b"someone\n");
    is_whole(&mut fork);
}

pub fn a_fork_outlives_its_template() {
    let store = image().store();
    let mut template = template();
    let mut running = Sandbox::new(
        template
            .arm(store)
            .unwrap()
            .claim(anybody(), monotonic_ns())
            .unwrap(),
    );
    mark(&mut running, "before");
    let shell = template.arm(store).unwrap();
    let unarmed = template.split_off(store).unwrap();
    left::kill(template.pid());
    match template.arm(store) {
        Err(GuestError::Vm(VmError::Gone { status, .. })) => assert!(status.contains("SIGKILL"), "{status}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("forked a process that is gone"),
    }
    drop(template);
    // Whatever was made of it goes on, as far as it had come.
    for guest in [
        shell.claim(anybody(), monotonic_ns()),
        unarmed.arm().unwrap().claim(anybody(), monotonic_ns()),
    ] {
        is_whole(&mut Sandbox::new(guest.unwrap()));
    }
    assert_eq!(marked(&mut running), "before");
    is_whole(&mut running);
    running.resize(FLOOR_MB + 128);
}
