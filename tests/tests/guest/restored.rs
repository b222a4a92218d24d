//! What a fork gets of the guest it is a fork of: all of it, of one instant.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spore_snapshot::disk::{Durability, Overlay};
use spore_snapshot::store::Store;
use spore_tests::data::Scratch;
use spore_tests::hold;
use spore_tests::sandbox::{LIMIT, Sandbox};

use crate::image::{FLOOR_MB, checkpoint_of, image};

/// How far the guest's wall clock may be from the host's, in nanoseconds.
const CLOCK: u64 = 50_000_000;

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn a_fork_is_restored_and_not_rebooted() {
    let image = image();
    let manifest = image.store().manifest(&image.checkpoint()).unwrap();
    let then: u64 = manifest.annotations["monotonicNs"].parse().unwrap();
    // The guest was asked in its last boot, settled, and rested: a clock that goes on from there has not gone further
    // than all of that took.
    let rested = image.builds.iter().find_map(|built| built.finalize).unwrap();
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap();
    for _ in 0..2 {
        // How long an answer takes is up to who else wants the processors: the guest's clock goes on meanwhile, as the
        // host's does, and not further.
        let asked = Instant::now();
        let mut fork = image.fork();
        let first = fork.agent.status().unwrap();
        let soon = then + nanos(rested + asked.elapsed());
        assert_eq!(hex(&first.boot_nonce), manifest.annotations["bootNonce"]);
        assert!((then..soon).contains(&first.monotonic_ns), "{then}: {first:?}");
        std::thread::sleep(Duration::from_millis(200));
        let second = fork.agent.status().unwrap();
        assert_eq!(first.boot_nonce, second.boot_nonce);
        let passed = second.monotonic_ns - first.monotonic_ns;
        let most = nanos(asked.elapsed());
        assert!((200_000_000..most).contains(&passed), "{passed} of {most}");
        // The other clock is the host's, whenever the checkpoint was made.
        let before = now();
        let asked = fork.agent.ping().unwrap().realtime_ns;
        let (earliest, latest) = (before - CLOCK, now() + CLOCK);
        assert!(
            (earliest..latest).contains(&asked),
            "{asked} is not in {earliest}..{latest}"
        );
    }
}

pub fn memory_and_disk_of_a_fork_are_of_the_instant_of_its_checkpoint() {
    let store = image().store();
    let mut parent = image().fork();
    parent.put("/run/before", "in memory");
    parent.put("/var/before", "on disk");
    // Written and not yet on the disk: the page cache is of that instant too.
    parent.sh("sync && echo dirty >/var/dirty");
    let id = checkpoint_of(&mut parent, store);
    parent.put("/run/after", "in memory");
    parent.put("/var/after", "on disk");
    parent.sh("echo changed >/run/before && echo changed >/var/before && sync");

    for _ in 0..2 {
        let mut fork = Sandbox::fork(store, &id);
        assert_eq!(fork.get("/run/before").unwrap(), b"in memory");
        assert_eq!(fork.get("/var/before").unwrap(), b"on disk");
        assert_eq!(fork.get("/var/dirty").unwrap(), b"dirty\n");
        for path in ["/run/after", "/var/after"] {
            assert_eq!(fork.get(path), None, "{path}");
        }
        // And from the disk itself, past the page cache that was restored with the memory.
        fork.sh("sync && echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(fork.get("/var/before").unwrap(), b"on disk");
        assert_eq!(fork.get("/var/dirty").unwrap(), b"dirty\n");
        assert_eq!(fork.get("/var/after"), None);
    }
    // The parent went on where it was.
    assert_eq!(parent.get("/run/before").unwrap(), b"changed\n");
    assert_eq!(parent.get("/var/after").unwrap(), b"on disk");
}

pub fn three_generations_keep_memory_and_disk_and_a_clean_file_system() {
    let store = image().store();
    let content = |generation: u8| -> Vec<u8> {
        let bytes = (0..40_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]);
        bytes.map(|byte| byte ^ generation).collect()
    };
    let paths = |generation: u8| [format!("/run/{generation}"), format!("/var/{generation}")];
    let nonce = image().fork().agent.status().unwrap().boot_nonce;
    let mut id = image().checkpoint();
    let mut clock = 0;
    for generation in 1..=3 {
        let mut fork = Sandbox::fork(store, &id);
        for earlier in 1..generation {
            for path in paths(earlier) {
                assert_eq!(
                    fork.get(&path).unwrap(),
                    content(earlier),
                    "{path} in {generation}"
                );
            }
        }
        let status = fork.agent.status().unwrap();
        assert_eq!(status.boot_nonce, nonce);
        assert!(status.monotonic_ns > clock);
        for path in paths(generation) {
            fork.put(&path, content(generation));
        }
        // On its disk, and not only in its page cache: each generation has a layer of its own.
        fork.agent.sync().unwrap();
        clock = fork.agent.status().unwrap().monotonic_ns;
        id = checkpoint_of(&mut fork, store);
        // Nothing of this reaches the next generation.
        fork.put("/run/late", "late");
        fork.put("/var/late", "late");
    }
    let layers = store.manifest(&id).unwrap().disks[0].layers.len();
    let image = image().builds[0].image.record.disk_layers.len() + 1;
    assert_eq!(layers, image + 3, "base, steps, image, and one a generation");

    let mut last = Sandbox::fork(store, &id);
    last.agent.sync().unwrap();
    last.sh("echo 3 >/proc/sys/vm/drop_caches");
    for generation in 1..=3 {
        for path in paths(generation) {
            assert_eq!(last.get(&path).unwrap(), content(generation), "{path}");
        }
    }
    assert_eq!(last.get("/run/late"), None);
    assert_eq!(last.get("/var/late"), None);
    let complaints = last.sh("dmesg | grep -iE 'ext4.*(error|warning)|i/o error|corrupt' || true");
    assert_eq!(complaints, "");
    file_system_is_clean(last);
}

/// Powers the guest off and has its disk checked, flattened into one file.
pub fn file_system_is_clean(sandbox: Sandbox) {
    file_system_of_is_clean(image().store(), sandbox);
}

/// The same, of a guest of another store.
pub fn file_system_of_is_clean(store: &Store, sandbox: Sandbox) {
    let scratch = Scratch::new();
    let mut guest = sandbox.into_guest();
    guest.power_off(LIMIT).unwrap();
    let layers = guest.seal_disk(store).unwrap();
    let layers: Vec<_> = layers.iter().map(|layer| store.layer(layer).unwrap()).collect();
    let size = layers.last().unwrap().virtual_size();
    let path = scratch.path().join("overlay");
    let disk = Overlay::create(&path, size, layers, Durability::Ephemeral).unwrap();
    let flat = std::fs::File::create(scratch.path().join("flat")).unwrap();
    flat.set_len(size).unwrap();
    let mut piece = vec![0; 4 << 20];
    for at in (0..size).step_by(piece.len()) {
        let length = piece.len().min(usize::try_from(size - at).unwrap());
        disk.read_at(&mut piece[..length], at).unwrap();
        // Holes stay holes.
        for (index, page) in piece[..length].chunks(4096).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                std::os::unix::fs::FileExt::write_all_at(&flat, page, at + index as u64 * 4096).unwrap();
            }
        }
    }
    let check = Command::new("/usr/sbin/e2fsck")
        .args(["-f", "-n"])
        .arg(scratch.path().join("flat"))
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
}

pub fn memory_comes_back_bit_for_bit() {
    const MIB: u32 = 160;
    const GROWN: u32 = 128;
    let store = image().store();
    let mut parent = image().fork();
    let (guest, agent) = parent.parts();
    guest.resize(agent, FLOOR_MB + GROWN).unwrap();
    // More than was plugged, so some of it is in boot RAM.
    parent.sh(&hold::start(MIB, 11, "/run/hold"));
    let expected = hold::expected(MIB, 11);
    assert_eq!(parent.sh(&hold::ask("/run/hold")), expected);
    assert!(parent.resident_bytes() > u64::from(MIB) << 20);
    let total = parent.agent.status().unwrap().mem_total_bytes;
    let id = checkpoint_of(&mut parent, store);
    let manifest = store.manifest(&id).unwrap();
    assert!(manifest.memory.data_bytes > u64::from(MIB) << 20);
    assert_eq!(manifest.floor_mb, FLOOR_MB + GROWN, "what it holds is its floor");
    drop(parent);

    let mut fork = Sandbox::fork(store, &id);
    let read = fork.resident_bytes();
    assert!(
        read < u64::from(MIB) << 19,
        "{read} bytes were read before they were needed"
    );
    assert_eq!(fork.agent.status().unwrap().mem_total_bytes, total);
    assert_eq!(fork.sh(&hold::ask("/run/hold")), expected);
    // The device and its driver still agree: it grows on from where it was.
    let (guest, agent) = fork.parts();
    let granted = guest.resize(agent, FLOOR_MB + 2 * GROWN).unwrap();
    assert_eq!(granted.granted_mb, FLOOR_MB + 2 * GROWN);
    assert_eq!(fork.sh(&hold::ask("/run/hold")), expected);
    drop(fork);
    store.delete_checkpoint(&id).unwrap();
}
