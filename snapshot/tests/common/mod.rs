//! A store with a checkpoint in it, for the tests.

#![allow(dead_code, reason = "not every test uses everything")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod calls;
pub mod power;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use spore_snapshot::checkpoint::{CheckpointKind, DiskRecord, KernelRecord};
use spore_snapshot::disk::{Durability, Overlay};
use spore_snapshot::store::{CheckpointMeta, ImageRecord, Store};
use spore_snapshot::{CheckpointId, Digest, ImageId};

pub const DISK: u64 = 4 << 20;
pub const SPAN: u64 = 64 << 20;

pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("data")).unwrap();
    (dir, store)
}

/// A sealed layer with `byte` in it, not yet in the store.
pub fn sealed(path: &Path, byte: u8) {
    let mut disk = Overlay::create(path, DISK, Vec::new(), Durability::Ephemeral).unwrap();
    disk.write_at(&[byte; 100_000], 1 << 20).unwrap();
    disk.seal().unwrap();
}

pub fn adopted(dir: &Path, store: &Store, byte: u8) -> Digest {
    let path = dir.join(format!("layer-{byte}"));
    sealed(&path, byte);
    store.adopt_layer(&path).unwrap()
}

pub fn imported(dir: &Path, store: &Store) -> Digest {
    let path = dir.join("base.img");
    let file = File::create(&path).unwrap();
    file.set_len(DISK).unwrap();
    file.write_all_at(b"ext4", 1080).unwrap();
    store.import_raw(&path).unwrap()
}

pub fn meta(layers: &[Digest]) -> CheckpointMeta {
    CheckpointMeta {
        kind: CheckpointKind::Image,
        kernel: KernelRecord {
            release: "6.18".into(),
            blake3: Digest::of(b"k"),
            cmdline: "ro".into(),
        },
        vmm_build: "test".into(),
        cpu_features: vec!["avx2".into()],
        vcpus: 1,
        floor_mb: 64,
        disks: vec![DiskRecord {
            name: "root".into(),
            virtual_size: DISK,
            layers: layers.to_vec(),
        }],
        annotations: BTreeMap::from([("nonce".into(), "42".into())]),
    }
}

/// A checkpoint with some memory, some state and one disk on `layers`.
pub fn checkpoint(store: &Store, meta: CheckpointMeta) -> CheckpointId {
    let writer = store.begin_checkpoint().unwrap();
    let mut memory = writer.memory(SPAN).unwrap();
    memory.write(0, &[7; 8192]).unwrap();
    memory.write(20 << 20, &[9; 4096]).unwrap();
    let memory = memory.finish().unwrap();
    let state = writer.state(b"the state of it all").unwrap();
    writer.publish(meta, state, memory).unwrap()
}

pub fn image(id: &str, base: Digest, layers: &[Digest]) -> ImageRecord {
    ImageRecord {
        id: id.parse::<ImageId>().unwrap(),
        content_hash: "sha256:00".into(),
        base_digest: base,
        disk_layers: layers.to_vec(),
        checkpoints: Vec::new(),
        created_unix_seconds: 1,
        size_bytes: 1,
        disk_mb: None,
        builder_memory_mb: 4096,
        annotations: BTreeMap::new(),
    }
}

/// Long enough that a file at rest gets a stamp.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(130));
}

/// The entries of a directory of the store, without dot files.
pub fn entries(store: &Store, dir: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(store.root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

/// An image's entry for `id`.
#[allow(dead_code, reason = "not every test binary uses it")]
pub fn entry(floor_mb: u32, id: spore_snapshot::CheckpointId) -> spore_snapshot::store::ImageCheckpoint {
    spore_snapshot::store::ImageCheckpoint {
        floor_mb,
        vcpus: 1,
        kernel: Digest::of(b"kernel"),
        id,
    }
}
