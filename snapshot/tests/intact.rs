//! A checkpoint is opened as it was written, or refused with what is wrong and where.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

mod common;

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::*;
use spore_snapshot::checkpoint::CheckpointError;
use spore_snapshot::disk::{Durability, Overlay};
use spore_snapshot::store::{Checkpoint, Store, StoreError, Trust};
use spore_snapshot::{CheckpointId, Digest};

struct Setup {
    _dir: tempfile::TempDir,
    store: Store,
    id: CheckpointId,
    base: Digest,
    layer: Digest,
}

impl Setup {
    fn new() -> Self {
        let (dir, store) = store();
        let base = imported(dir.path(), &store);
        let layer = adopted(dir.path(), &store, 5);
        let id = checkpoint(&store, meta(&[base, layer]));
        Self {
            _dir: dir,
            store,
            id,
            base,
            layer,
        }
    }

    fn open(&self) -> Result<Checkpoint, StoreError> {
        self.store.open_checkpoint(&self.id)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.store
            .root()
            .join("checkpoints")
            .join(self.id.to_string())
            .join(file)
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![
            self.path("manifest.json"),
            self.path("state"),
            self.path("memory"),
            self.store.root().join("layers").join(self.layer.to_string()),
            self.store.root().join("bases").join(self.base.to_string()),
        ]
    }
}

fn writable(path: &Path) -> File {
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn what_was_written_is_what_is_opened() {
    let setup = Setup::new();
    let checkpoint = setup.open().unwrap();
    assert_eq!(checkpoint.id, setup.id);
    assert_eq!(checkpoint.state, b"the state of it all");
    assert_eq!(checkpoint.manifest.annotations["nonce"], "42");
    assert_eq!(checkpoint.memory.metadata().unwrap().len(), SPAN);
    let mut page = [0; 4096];
    checkpoint.memory.read_exact_at(&mut page, 20 << 20).unwrap();
    assert_eq!(page, [9; 4096]);
    let disk = &checkpoint.disks[0];
    let path = setup.store.root().join("tmp/overlay");
    let overlay = Overlay::create(
        &path,
        disk.virtual_size,
        disk.layers.clone(),
        Durability::Ephemeral,
    )
    .unwrap();
    let mut bytes = [0; 8];
    overlay.read_at(&mut bytes[..4], 1080).unwrap();
    overlay.read_at(&mut bytes[4..], 1 << 20).unwrap();
    assert_eq!(&bytes, b"ext4\x05\x05\x05\x05");
    for path in setup.files() {
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o777,
            0o444,
            "{path:?}"
        );
    }
}

/// The heart of it: every file, many places, with stamps given before.
#[test]
fn a_flipped_bit_anywhere_is_caught_by_the_next_open() {
    let setup = Setup::new();
    for path in setup.files() {
        let file = writable(&path);
        let len = file.metadata().unwrap().len();
        let places = [
            0,
            1,
            len / 3,
            len / 2,
            1 << 20,
            (20 << 20) + 77,
            len.saturating_sub(100),
            len - 1,
        ];
        for at in places.into_iter().filter(|at| *at < len) {
            settle();
            setup.open().unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 8], at).unwrap();
            let message = setup.open().unwrap_err().to_string();
            assert!(message.contains(name(&path)), "{at}: {message}");
            assert!(
                message.contains("delete") || message.contains("make"),
                "{at}: {message}"
            );
            file.write_all_at(&byte, at).unwrap();
        }
        setup.open().unwrap();
    }
}

#[test]
fn a_file_that_is_too_short_too_long_or_gone_is_named() {
    for index in 0..5 {
        let setup = Setup::new();
        let path = setup.files().remove(index);
        let away = path.with_extension("away");
        std::fs::rename(&path, &away).unwrap();
        let message = setup.open().unwrap_err().to_string();
        assert!(message.contains(name(&path)), "{message}");
        std::fs::rename(&away, &path).unwrap();
        setup.open().unwrap();
        let file = writable(&path);
        let len = file.metadata().unwrap().len();
        for wrong in [len + 512, len - 1, len / 2, 1, 0] {
            file.set_len(wrong).unwrap();
            let message = setup.open().unwrap_err().to_string();
            assert!(message.contains(name(&path)), "{wrong}: {message}");
        }
    }
}

#[test]
fn a_replaced_file_is_read_again() {
    let setup = Setup::new();
    settle();
    setup.open().unwrap();
    let path = setup.path("memory");
    let other = path.with_extension("other");
    std::fs::copy(&path, &other).unwrap();
    writable(&other).write_all_at(&[1], 4096).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let error = setup.open().unwrap_err();
    assert!(error.to_string().contains("chunk 0"), "{error}");
}

#[test]
fn nothing_is_believed_when_nothing_should_be() {
    let setup = Setup::new();
    settle();
    setup.open().unwrap();
    // A stamp that is a lie: as if the medium had changed under a file at rest.
    let stamp = setup
        .store
        .root()
        .join("run/.verified")
        .join(format!("{}.memory", setup.id));
    let file = writable(&setup.path("memory"));
    settle();
    setup.open().unwrap();
    let before = std::fs::read_to_string(&stamp).unwrap();
    file.write_all_at(&[1], 100).unwrap();
    use std::os::unix::fs::MetadataExt;
    let m = file.metadata().unwrap();
    let lie: String = before
        .lines()
        .map(|line| match line.split(' ').next() {
            Some("mtime") => format!("mtime {}.{:09}\n", m.mtime(), m.mtime_nsec()),
            Some("ctime") => format!("ctime {}.{:09}\n", m.ctime(), m.ctime_nsec()),
            _ => format!("{line}\n"),
        })
        .collect();
    std::fs::write(&stamp, lie).unwrap();
    setup.open().unwrap();
    assert!(
        setup
            .store
            .open_checkpoint_with(&setup.id, Trust::Nothing)
            .is_err()
    );
}

#[test]
fn another_format_version_is_refused_with_the_one_that_is_read() {
    let setup = Setup::new();
    let json = std::fs::read_to_string(setup.path("manifest.json")).unwrap();
    let newer = json.replace("\"formatVersion\": 2", "\"formatVersion\": 9");
    assert_ne!(json, newer);
    let id = CheckpointId::of_manifest(newer.as_bytes());
    let dir = setup.store.root().join("checkpoints").join(id.to_string());
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("manifest.json"), newer).unwrap();
    let error = setup.store.open_checkpoint(&id).unwrap_err();
    assert!(matches!(
        error,
        StoreError::Checkpoint(CheckpointError::UnsupportedVersion {
            found: 9,
            supported: 2,
            ..
        })
    ));
    assert!(error.to_string().contains("reads version 2"), "{error}");
    let list = setup.store.list_checkpoints().unwrap();
    assert_eq!(list.iter().filter(|(_, manifest)| manifest.is_ok()).count(), 1);
    assert_eq!(list.len(), 2);
}

#[test]
fn a_checkpoint_that_is_not_there_is_not_found() {
    let setup = Setup::new();
    let error = setup
        .store
        .open_checkpoint(&CheckpointId::of_manifest(b"other"))
        .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::NotFound {
                what: "checkpoint",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_checkpoint_cannot_be_published_over_layers_that_are_not_there_or_do_not_fit() {
    let setup = Setup::new();
    let publish = |meta| {
        let writer = setup.store.begin_checkpoint().unwrap();
        let memory = writer.memory(4096).unwrap().finish().unwrap();
        let state = writer.state(b"").unwrap();
        writer.publish(meta, state, memory)
    };
    let error = publish(meta(&[setup.base, Digest::of(b"elsewhere")])).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Checkpoint(CheckpointError::MissingLayer { .. })
        ),
        "{error}"
    );
    let mut small = meta(&[setup.base]);
    small.disks[0].virtual_size = 512;
    let error = publish(small).unwrap_err().to_string();
    assert!(error.contains("root") && error.contains("only grow"), "{error}");
    assert_eq!(entries(&setup.store, "checkpoints").len(), 1);
    assert_eq!(entries(&setup.store, "tmp"), [""; 0]);
}
