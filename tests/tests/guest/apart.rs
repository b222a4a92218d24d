//! Forks of one checkpoint share its bytes and nothing else.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Barrier;
use std::time::Duration;

use spore_snapshot::store::Trust;
use spore_tests::left;
use spore_tests::sandbox::Sandbox;

use crate::image::{FLOOR_MB, checkpoint_of, image};

pub fn sixteen_forks_at_once_do_not_see_each_other() {
    const FORKS: usize = 16;
    let image = image();
    let all = Barrier::new(FORKS);
    let marker = |fork: usize, place: &str| format!("{place} of fork {fork}");
    std::thread::scope(|scope| {
        let forks: Vec<_> = (0..FORKS)
            .map(|number| {
                let all = &all;
                scope.spawn(move || {
                    let mut fork = image.fork();
                    let pid = fork.pid();
                    let nonce = fork.agent.status().unwrap().boot_nonce;
                    let hostname = fork.get("/proc/sys/kernel/hostname").unwrap();
                    assert_eq!(hostname.trim_ascii(), fork.id().as_bytes());
                    let random = fork.get("/proc/sys/kernel/random/uuid").unwrap();
                    for place in ["/run", "/var"] {
                        // One name that all have and one that only this has.
                        fork.put(&format!("{place}/marker"), marker(number, place));
                        fork.put(&format!("{place}/marker-{number}"), "");
                    }
                    fork.agent.sync().unwrap();
                    all.wait();
                    for place in ["/run", "/var"] {
                        let path = format!("{place}/marker");
                        assert_eq!(fork.get(&path).unwrap(), marker(number, place).as_bytes());
                        let markers = fork.agent.list_dir(place).unwrap().into_iter();
                        let markers: BTreeSet<_> = markers
                            .map(|entry| entry.name)
                            .filter(|name| name.starts_with("marker"))
                            .collect();
                        let own = BTreeSet::from(["marker".to_owned(), format!("marker-{number}")]);
                        assert_eq!(markers, own, "{place} of fork {number}");
                    }
                    // Nobody leaves before everybody has looked.
                    all.wait();
                    (pid, nonce, random)
                })
            })
            .collect();
        let forks: Vec<_> = forks.into_iter().map(|fork| fork.join().unwrap()).collect();
        let pids: BTreeSet<_> = forks.iter().map(|(pid, ..)| pid).collect();
        assert_eq!(pids.len(), FORKS);
        assert!(
            forks.iter().all(|(_, nonce, _)| *nonce == forks[0].1),
            "all are restored"
        );
        let random: BTreeSet<_> = forks.iter().map(|(.., random)| random).collect();
        assert_eq!(random.len(), FORKS, "but what they draw differs");
    });
}

pub fn nothing_that_forks_do_changes_a_byte_of_the_checkpoint() {
    let image = image();
    let store = image.store();
    assert_eq!(image.changes(), [""; 0]);
    assert!(image.watched() >= 5, "manifest, state, memory, base and layer");

    // One writes over what it was restored with: memory, files, free space.
    let mut writer = image.fork();
    writer.put("/opt/proof", "overwritten");
    writer.put("/run/new", vec![0xaa; 1 << 20]);
    writer.sh("rm -r /opt/tree && echo 3 >/proc/sys/vm/drop_caches && sync");
    // One grows and shrinks, its memory used in between.
    let mut sizer = image.fork();
    let (guest, agent) = sizer.parts();
    guest.resize(agent, FLOOR_MB + 128).unwrap();
    sizer.put("/run/new", vec![0xbb; 1 << 20]);
    let (guest, agent) = sizer.parts();
    guest.resize(agent, FLOOR_MB).unwrap();
    // One is checkpointed itself, and its fork writes.
    let id = checkpoint_of(&mut writer, store);
    let mut child = Sandbox::fork(store, &id);
    child.put("/opt/proof", "and again");
    child.agent.sync().unwrap();
    // Some are killed in the middle of a write.
    for _ in 0..3 {
        let mut killed = image.fork();
        let mut agent = killed.another_agent();
        let write = std::thread::spawn(move || {
            agent.write_file("/var/much", None, &mut std::io::repeat(0xcc).take(64 << 20))
        });
        std::thread::sleep(Duration::from_millis(300));
        left::kill(killed.pid());
        assert!(write.join().unwrap().is_err());
    }
    drop((writer, sizer, child));
    store.delete_checkpoint(&id).unwrap();
    assert_eq!(image.changes(), [""; 0]);
    // Not only the files: what a fork of it reads now is what it was.
    let mut fork = image.fork();
    assert_eq!(fork.get("/opt/proof").unwrap(), b"a file\n");
    store
        .open_checkpoint_with(&image.checkpoint(), Trust::Nothing)
        .unwrap();
}
