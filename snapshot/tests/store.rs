//! The store: things come whole or not at all, stay while they are needed, and go.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::*;
use spore_snapshot::checkpoint::{CheckpointError, CheckpointKind};
use spore_snapshot::disk::{Durability, Overlay};
use spore_snapshot::store::{ImageRecord, Keep, RunDir, Store, StoreError};
use spore_snapshot::{Digest, ImageName};

/// Set in a process that a test starts from itself: the store to work in.
const CHILD: &str = "SPORE_SNAPSHOT_TEST_CHILD";

fn child(test: &str, store: &Store, shell: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{shell} exec \"$0\" --exact {test} --nocapture");
    command
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap());
    command
        .env(CHILD, store.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

#[test]
fn layers_adopted_at_once_are_one_layer() {
    let (dir, store) = store();
    let digests: BTreeSet<Digest> = std::thread::scope(|scope| {
        let adopt = |i: usize| {
            let path = dir.path().join(i.to_string());
            let store = &store;
            scope.spawn(move || {
                sealed(&path, 3);
                let digest = store.adopt_layer(&path).unwrap();
                assert!(!path.exists());
                assert_eq!(store.layer(&digest).unwrap().digest().unwrap(), digest);
                digest
            })
        };
        let threads: Vec<_> = (0..6).map(adopt).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(digests.len(), 1);
    assert_eq!(store.list_layers().unwrap().len(), 1);
    assert_eq!(entries(&store, "tmp"), [""; 0]);
}

#[test]
fn adopting_a_layer_again_leaves_the_file_that_is_there() {
    let (dir, store) = store();
    let inode = |digest: &Digest| {
        let layer = store.layer(digest).unwrap();
        std::os::unix::fs::MetadataExt::ino(&layer.file().metadata().unwrap())
    };
    let digest = adopted(dir.path(), &store, 3);
    let before = inode(&digest);
    assert_eq!(adopted(dir.path(), &store, 3), digest);
    assert_eq!(inode(&digest), before);
}

#[test]
fn adopting_a_layer_again_mends_one_that_was_damaged() {
    let (dir, store) = store();
    let digest = adopted(dir.path(), &store, 3);
    let path = store.root().join("layers").join(digest.to_string());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", (1 << 20) + 5).unwrap();
    assert!(matches!(
        store.layer(&digest).unwrap_err(),
        StoreError::LayerDigest { .. }
    ));
    assert_eq!(adopted(dir.path(), &store, 3), digest);
    assert!(store.layer(&digest).is_ok());
}

#[test]
fn a_layer_from_another_file_system_is_adopted_too() {
    let memory = std::path::Path::new("/dev/shm");
    if !memory.is_dir() {
        return;
    }
    let (_dir, store) = store();
    let elsewhere = tempfile::tempdir_in(memory).unwrap();
    let digest = adopted(elsewhere.path(), &store, 3);
    assert!(store.layer(&digest).is_ok());
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn an_open_overlay_is_not_adopted() {
    let (dir, store) = store();
    let path = dir.path().join("open");
    let _disk = Overlay::create(&path, DISK, Vec::new(), Durability::Durable).unwrap();
    assert!(
        store
            .adopt_layer(&path)
            .unwrap_err()
            .to_string()
            .contains("never sealed")
    );
    assert!(path.exists());
}

#[test]
fn importing_the_same_image_twice_keeps_one_and_the_original() {
    let (dir, store) = store();
    let digest = imported(dir.path(), &store);
    assert_eq!(imported(dir.path(), &store), digest);
    assert!(dir.path().join("base.img").exists());
    assert_eq!(store.list_bases().unwrap(), [digest]);
    assert!(
        store.layer(&digest).unwrap().allocated_bytes().unwrap() < 1 << 20,
        "holes stay holes"
    );
    std::fs::write(dir.path().join("odd"), [1; 100]).unwrap();
    assert!(store.import_raw(&dir.path().join("odd")).is_err());
}

#[test]
fn a_deleted_checkpoint_stays_with_those_who_have_it_open() {
    let (dir, store) = store();
    let layer = adopted(dir.path(), &store, 1);
    let id = checkpoint(&store, meta(&[layer]));
    let open = store.open_checkpoint(&id).unwrap();
    store.delete_checkpoint(&id).unwrap();
    assert!(matches!(
        store.open_checkpoint(&id).unwrap_err(),
        StoreError::NotFound { .. }
    ));
    assert!(matches!(
        store.delete_checkpoint(&id).unwrap_err(),
        StoreError::NotFound { .. }
    ));
    assert_eq!(store.gc(&Keep::default()).unwrap().layers, [layer]);
    let mut page = [0; 4096];
    open.memory.read_exact_at(&mut page, 0).unwrap();
    assert_eq!(page, [7; 4096]);
    assert_eq!(open.disks[0].layers[0].digest().unwrap(), layer);
    assert_eq!(entries(&store, "tmp"), [""; 0]);
}

#[test]
fn a_checkpoint_not_published_leaves_nothing() {
    let (_dir, store) = store();
    let writer = store.begin_checkpoint().unwrap();
    let mut memory = writer.memory(SPAN).unwrap();
    memory.write(0, &[1; 4096]).unwrap();
    writer.state(b"state").unwrap();
    assert_eq!(entries(&store, "tmp").len(), 2);
    drop(writer);
    assert_eq!(entries(&store, "tmp"), [""; 0]);
    assert_eq!(entries(&store, "checkpoints"), [""; 0]);
}

#[test]
fn garbage_is_what_nothing_refers_to() {
    let (dir, store) = store();
    let base = imported(dir.path(), &store);
    let [of_image, of_sandbox, pinned, cached, unused] =
        [1, 2, 3, 4, 5].map(|byte| adopted(dir.path(), &store, byte));
    let named = checkpoint(&store, meta(&[base, of_image]));
    let orphan = checkpoint(&store, meta(&[unused]));
    let mut sandbox = meta(&[of_sandbox]);
    sandbox.kind = CheckpointKind::Sandbox;
    let sandbox = checkpoint(&store, sandbox);
    let mut record = image("deadbeef01", base, &[of_image]);
    record.checkpoints.push(entry(64, named));
    store.put_image(&record, None).unwrap();
    let run = RunDir::create(&store, &"vm".parse().unwrap()).unwrap();
    run.pin(&[pinned]).unwrap();
    let keep = Keep {
        layers: BTreeSet::from([cached]),
        ..Keep::default()
    };

    let hold = store.hold().unwrap();
    assert!(matches!(store.gc(&keep).unwrap_err(), StoreError::Busy));
    drop(hold);

    let report = store.gc(&keep).unwrap();
    assert_eq!(report.checkpoints, [orphan]);
    assert_eq!(report.layers, [unused]);
    assert!(report.layer_bytes > 100_000);
    assert!(store.open_checkpoint(&named).is_ok() && store.open_checkpoint(&sandbox).is_ok());
    assert_eq!(store.gc(&keep).unwrap(), Default::default());

    drop(run);
    store.delete_image(&record.id).unwrap();
    let report = store
        .gc(&Keep {
            drop_bases: true,
            ..Keep::default()
        })
        .unwrap();
    assert_eq!(report.checkpoints, [named]);
    assert_eq!(
        BTreeSet::from_iter(report.layers),
        BTreeSet::from([of_image, pinned, cached, base])
    );
    assert!(store.open_checkpoint(&sandbox).is_ok());
}

#[test]
fn nothing_is_collected_when_a_record_cannot_be_read() {
    let (dir, store) = store();
    let layer = adopted(dir.path(), &store, 1);
    std::fs::write(store.root().join("images/deadbeef.json"), "{").unwrap();
    assert!(matches!(
        store.gc(&Keep::default()).unwrap_err(),
        StoreError::BadRecord { .. }
    ));
    assert!(store.layer(&layer).is_ok());
}

/// It has copies of its parent's descriptors until it executes its program.
#[test]
fn a_child_just_forked_does_not_hold_what_its_parent_let_go() {
    let (_dir, store) = store();
    let hold = store.hold().unwrap();
    let (mut arrived, arrive) = std::io::pipe().unwrap();
    let (wait, mut release) = std::io::pipe().unwrap();
    let mut command = Command::new("true");
    let stop = move || {
        (&arrive).write_all(b"!")?;
        (&wait).read_exact(&mut [0])
    };
    // SAFETY: between fork(2) and execve(2) it only reads and writes pipes, and allocates nothing.
    unsafe { command.pre_exec(stop) };
    let collected = std::thread::scope(|scope| {
        scope.spawn(|| command.status().unwrap());
        arrived.read_exact(&mut [0]).unwrap();
        let while_held = store.gc(&Keep::default());
        drop(hold);
        let after = store.gc(&Keep::default());
        release.write_all(b"!").unwrap();
        (while_held, after)
    });
    assert!(matches!(collected.0, Err(StoreError::Busy)), "{:?}", collected.0);
    assert!(collected.1.is_ok(), "{:?}", collected.1);
}

#[test]
fn an_image_is_found_by_id_by_its_start_and_by_name() {
    let (_dir, store) = store();
    let base = Digest::of(b"base");
    let name: ImageName = "python".parse().unwrap();
    let (old, new) = (image("aaaa1111", base, &[]), image("aaaa2222", base, &[]));
    store.put_image(&old, Some(&name)).unwrap();
    assert_eq!(store.find_image("python").unwrap().record, old);
    store.put_image(&new, Some(&name)).unwrap();
    assert_eq!(store.find_image("python").unwrap().record, new);
    assert_eq!(
        store.find_image("python").unwrap().names,
        std::slice::from_ref(&name)
    );
    assert!(store.find_image("aaaa1111").unwrap().names.is_empty());
    assert_eq!(store.find_image("aaaa1").unwrap().record, old);
    let error = store.find_image("aaaa").unwrap_err().to_string();
    assert!(error.contains("aaaa1111, aaaa2222"), "{error}");
    for missing in ["", "aaa", "bbbb", "ruby", "../python", "aaaa1111.json"] {
        assert!(
            matches!(
                store.find_image(missing).unwrap_err(),
                StoreError::NotFound { .. }
            ),
            "{missing}"
        );
    }
    // The same content built again takes the name back.
    store.put_image(&old, Some(&name)).unwrap();
    assert_eq!(store.find_image("python").unwrap().record, old);
    store.delete_image(&old.id).unwrap();
    assert!(store.find_image("python").is_err());
    assert_eq!(store.list_images().unwrap().len(), 1);
}

#[test]
fn changes_of_one_image_at_once_are_all_kept() {
    let (_dir, store) = store();
    let record = image("aaaa1111", Digest::of(b"base"), &[]);
    store.put_image(&record, None).unwrap();
    std::thread::scope(|scope| {
        for floor in 0..8 {
            let (store, id) = (&store, &record.id);
            scope.spawn(move || {
                let checkpoint = spore_snapshot::CheckpointId::of_manifest(&[0]);
                let add = |record: &mut ImageRecord| {
                    record.checkpoints.push(entry(floor, checkpoint));
                };
                store.update_image(id, add).unwrap();
            });
        }
    });
    assert_eq!(store.find_image("aaaa1111").unwrap().record.checkpoints.len(), 8);
}

#[test]
fn what_a_killed_process_leaves_is_swept_and_not_before() {
    if let Ok(root) = std::env::var(CHILD) {
        let store = Store::attach(root.as_ref());
        let _run = RunDir::create(&store, &"vm".parse().unwrap()).unwrap();
        let writer = store.begin_checkpoint().unwrap();
        writer.state(b"half").unwrap();
        println!("\nready");
        std::io::stdout().flush().unwrap();
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let (_dir, store) = store();
    let mut process = child("what_a_killed_process_leaves_is_swept_and_not_before", &store, "")
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == "ready"));
    Store::open(store.root()).unwrap();
    assert_eq!(entries(&store, "run"), ["vm"]);
    assert_eq!(entries(&store, "tmp").len(), 2);
    assert!(matches!(
        store.gc(&Keep::default()).unwrap_err(),
        StoreError::Busy
    ));
    process.kill().unwrap();
    process.wait().unwrap();
    Store::open(store.root()).unwrap();
    assert_eq!(entries(&store, "run"), [""; 0]);
    assert_eq!(entries(&store, "tmp"), [""; 0]);
    assert!(store.gc(&Keep::default()).is_ok());
}

/// A limit on the size of files stands for a full disk: the same path through the code, and needs no root.
#[test]
fn no_space_says_what_is_missing_and_leaves_nothing() {
    if let Ok(root) = std::env::var(CHILD) {
        let store = Store::attach(root.as_ref());
        let writer = store.begin_checkpoint().unwrap();
        let mut memory = writer.memory(SPAN).unwrap();
        memory.expect_bytes(6 << 20);
        let mebibyte = vec![1; 1 << 20];
        let error = (0..6)
            .find_map(|i| memory.write(i << 20, &mebibyte).err())
            .unwrap();
        assert!(error.to_string().contains("free that much"), "{error}");
        let CheckpointError::NoSpace {
            path,
            written,
            missing,
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert!(path.ends_with("memory"));
        assert_eq!((written, missing), (2 << 20, 4 << 20));
        drop(writer);
        let path = store.root().join("overlay");
        let mut disk = Overlay::create(&path, 1 << 20, Vec::new(), Durability::Ephemeral).unwrap();
        disk.write_at(&[1; 100], 0).unwrap();
        let error = Overlay::create(
            &store.root().join("big"),
            8 << 20,
            Vec::new(),
            Durability::Ephemeral,
        )
        .unwrap_err();
        assert!(error.to_string().contains("no space"), "{error}");
        println!("\nrefused");
        return;
    }
    let (_dir, store) = store();
    // Shells count in 512 or 1024 bytes; `ulimit -f` of dash is 512.
    let limit = "trap '' XFSZ; ulimit -f 4096;";
    let output = child("no_space_says_what_is_missing_and_leaves_nothing", &store, limit)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("refused"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(entries(&store, "tmp"), [""; 0]);
    assert_eq!(entries(&store, "checkpoints"), [""; 0]);
}
