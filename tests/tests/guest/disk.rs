//! The root disk: larger in a fork, and no larger on the host than what is in it.

use std::os::unix::fs::MetadataExt;

use spore_tests::sandbox::Sandbox;
use spore_vmm::guest::{DiskError, GuestError};

use crate::image::{DISK_MB, checkpoint_of, image};

const MIB: u64 = 1 << 20;
const LARGER_MB: u64 = 8192;

/// What the root file system can hold, in MiB, in the guest's own words.
fn total_mb(sandbox: &mut Sandbox) -> u64 {
    let words = sandbox.sh("stat -f -c '%b %S' /");
    let (blocks, size) = words.split_once(' ').unwrap();
    blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap() / MIB
}

/// What all overlays of a guest take on the host, in bytes.
fn allocated(sandbox: &Sandbox) -> u64 {
    let files = std::fs::read_dir(sandbox.run_dir()).unwrap().flatten();
    files
        .filter(|file| file.file_name().to_str().unwrap().starts_with("disk-"))
        .map(|file| file.metadata().unwrap().blocks() * 512)
        .sum()
}

/// Writes a pattern right at the end of the guest's disk, through the block device: what lies there is free.
fn write_at_the_end(sandbox: &mut Sandbox, disk_mb: u64, word: &str) {
    sandbox.sh(&format!(
        "echo {word} | dd of=/dev/vda bs=1M seek={} conv=notrunc,fsync 2>/dev/null",
        disk_mb - 1
    ));
}

fn read_at_the_end(sandbox: &mut Sandbox, disk_mb: u64) -> String {
    sandbox.sh(&format!(
        "dd if=/dev/vda bs=1M skip={} 2>/dev/null | head -n 1",
        disk_mb - 1
    ))
}

pub fn a_fork_can_have_a_larger_disk_and_its_forks_and_checkpoints_have_it_too() {
    let store = image().store();
    let mut fork = image().fork();
    let before = total_mb(&mut fork);
    let taken = allocated(&fork);
    let (guest, agent) = fork.parts();
    // What the manifest says, and more than the base has.
    assert_eq!(guest.disk_bytes().unwrap(), DISK_MB * MIB);
    assert!(before > 4096, "{before}");
    let granted = guest.grow_disk(agent, LARGER_MB).unwrap();
    eprintln!("{granted:?}");
    assert_eq!(granted.disk_mb, LARGER_MB);
    let grown = total_mb(&mut fork);
    assert_eq!(grown, granted.total_mb);
    assert!(
        grown - before > (LARGER_MB - DISK_MB) * 9 / 10,
        "{before} to {grown}"
    );
    let took = allocated(&fork) - taken;
    assert!(took < 16 * MIB, "{took} bytes for what nothing was written to");

    // A file larger than what there was free before, without its bytes.
    fork.sh(&format!(
        "fallocate -l {} /big && rm /big",
        (DISK_MB + 1024) * MIB
    ));
    write_at_the_end(&mut fork, LARGER_MB, "parent");

    let [mut child] = <[Sandbox; 1]>::try_from(fork.live_fork(store, 1)).ok().unwrap();
    assert_eq!(total_mb(&mut child), grown);
    assert_eq!(read_at_the_end(&mut child, LARGER_MB), "parent");
    write_at_the_end(&mut child, LARGER_MB, "child");
    assert_eq!(read_at_the_end(&mut fork, LARGER_MB), "parent");
    let (guest, agent) = child.parts();
    let larger = guest.grow_disk(agent, LARGER_MB + 1024).unwrap();
    assert!(larger.total_mb > grown);
    drop(child);

    let checkpoint = checkpoint_of(&mut fork, store);
    drop(fork);
    let disk = store.manifest(&checkpoint).unwrap().disks.remove(0);
    assert_eq!(disk.virtual_size, LARGER_MB * MIB);
    let mut restored = Sandbox::fork(store, &checkpoint);
    assert_eq!(total_mb(&mut restored), grown);
    assert_eq!(read_at_the_end(&mut restored, LARGER_MB), "parent");
    drop(restored);
    store.delete_checkpoint(&checkpoint).unwrap();
}

pub fn a_smaller_disk_is_refused_and_one_of_the_same_size_is_there() {
    let mut fork = image().fork();
    let (guest, agent) = fork.parts();
    match guest.grow_disk(agent, DISK_MB - 1) {
        Err(GuestError::Disk(DiskError::Smaller {
            requested_mb,
            disk_mb,
        })) => assert_eq!((requested_mb, disk_mb), (DISK_MB - 1, DISK_MB)),
        other => panic!("{other:?}"),
    }
    assert_eq!(guest.grow_disk(agent, DISK_MB).unwrap().disk_mb, DISK_MB);
    assert_eq!(guest.disk_bytes().unwrap(), DISK_MB * MIB);
}

pub fn what_is_deleted_in_a_guest_is_given_back_on_the_host() {
    const FILE: u64 = 8 * MIB;
    let mut fork = image().fork();
    let before = allocated(&fork);
    // Not zeroes: those may take no space anyhow.
    let bytes: Vec<u8> = (0..FILE).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
    fork.put("/big", &bytes);
    fork.agent.sync().unwrap();
    let full = allocated(&fork);
    assert!(full >= before + FILE, "{before} to {full}");
    fork.sh("rm /big");
    fork.agent.sync().unwrap();
    let after = allocated(&fork);
    eprintln!("{before} bytes, with the file {full}, without it {after}");
    assert!(after <= before + 2 * MIB, "{before} to {full} to {after}");
}
