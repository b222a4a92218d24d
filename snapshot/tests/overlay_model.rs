//! A disk against what it means: an overlay over any stack behaves as a flat array of bytes.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use spore_snapshot::disk::{CLUSTER, Durability, Layer, Overlay, merge};

const CLUSTER_LEN: usize = CLUSTER as usize;

#[derive(Debug, Clone)]
enum Op {
    Write(usize, usize, u8),
    Read(usize, usize),
    Discard(usize, usize),
    Zero(usize, usize),
    Flush,
    /// Seal and lie on top of it.
    Seal,
    /// Freeze and lie on top of it, sealing it afterwards.
    Freeze,
    /// Flush, drop and open again (durable), or open the sealed layers again (ephemeral).
    Reopen,
    /// Flatten all layers but the lowest `n`, and lie on the result.
    Merge(usize),
    /// Lie on top as a larger disk.
    LieLarger(usize),
    /// Become larger (ephemeral), or be refused (durable).
    Grow(usize),
}

/// Offsets that are often near the edge of a cluster, and lengths from a byte to several clusters.
fn range() -> impl Strategy<Value = (usize, usize)> {
    let edge =
        (0..8usize, 0..9usize).prop_map(|(cluster, near)| (cluster * CLUSTER_LEN + near).saturating_sub(4));
    let offset = prop_oneof![edge, 0..8 * CLUSTER_LEN];
    let whole = (1..4usize).prop_map(|clusters| clusters * CLUSTER_LEN);
    let len = prop_oneof![1..5000usize, whole, 1..3 * CLUSTER_LEN];
    (offset, len)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (range(), any::<u8>()).prop_map(|((at, len), byte)| Op::Write(at, len, byte)),
        4 => range().prop_map(|(at, len)| Op::Read(at, len)),
        2 => range().prop_map(|(at, len)| Op::Discard(at, len)),
        2 => range().prop_map(|(at, len)| Op::Zero(at, len)),
        1 => Just(Op::Flush),
        1 => Just(Op::Seal),
        1 => Just(Op::Freeze),
        1 => Just(Op::Reopen),
        1 => (0..2usize).prop_map(Op::Merge),
        1 => (1..200usize).prop_map(Op::LieLarger),
        1 => (1..200usize).prop_map(Op::Grow),
    ]
}

struct Disk {
    dir: tempfile::TempDir,
    files: usize,
    durability: Durability,
    overlay: Option<Overlay>,
    model: Vec<u8>,
}

impl Disk {
    fn new(size: usize, base: Option<usize>, durability: Durability) -> Self {
        // Syncing to a real disk is what takes time; what is tested is not the file system.
        let memory = Path::new("/dev/shm");
        let durable = durability == Durability::Durable;
        let dir = match durable && memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let mut model = vec![0; size];
        let mut lower = Vec::new();
        if let Some(base) = base {
            let path = dir.path().join("base");
            let file = File::create(&path).unwrap();
            file.set_len(base as u64).unwrap();
            for at in (0..base.saturating_sub(512)).step_by(3 * CLUSTER_LEN / 2) {
                file.write_all_at(&[0xbb; 512], at as u64).unwrap();
                model[at..at + 512].fill(0xbb);
            }
            lower.push(Arc::new(Layer::open_raw(&path).unwrap()));
        }
        let mut disk = Self {
            dir,
            files: 0,
            durability,
            overlay: None,
            model,
        };
        disk.stack(lower);
        disk
    }

    fn path(&mut self) -> PathBuf {
        self.files += 1;
        self.dir.path().join(self.files.to_string())
    }

    fn stack(&mut self, lower: Vec<Arc<Layer>>) {
        let path = self.path();
        let size = self.model.len() as u64;
        self.overlay = Some(Overlay::create(&path, size, lower, self.durability).unwrap());
    }

    fn clip(&self, at: usize, len: usize) -> (usize, usize) {
        let at = at % self.model.len();
        (at, len.min(self.model.len() - at))
    }

    fn seal(&mut self) -> Vec<Arc<Layer>> {
        let overlay = self.overlay.take().unwrap();
        let mut lower = overlay.lower().to_vec();
        let layer = overlay.seal().unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&layer.file().metadata().unwrap());
        assert_eq!(mode & 0o777, 0o444);
        lower.push(layer);
        lower
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write(at, len, byte) => {
                let (at, len) = self.clip(at, len);
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i % 251) as u8)).collect();
                self.model[at..at + len].copy_from_slice(&data);
                self.overlay.as_mut().unwrap().write_at(&data, at as u64).unwrap();
            }
            Op::Read(at, len) => {
                let (at, len) = self.clip(at, len);
                self.check(at, len);
            }
            Op::Discard(at, len) => {
                let (at, len) = self.clip(at, len);
                let overlay = self.overlay.as_mut().unwrap();
                overlay.discard(at as u64, len as u64).unwrap();
                let mut after = vec![0; len];
                overlay.read_at(&mut after, at as u64).unwrap();
                for (i, byte) in after.into_iter().enumerate() {
                    let cluster = (at + i) / CLUSTER_LEN * CLUSTER_LEN;
                    let end = (cluster + CLUSTER_LEN).min(self.model.len());
                    let whole = cluster >= at && end <= at + len;
                    assert!(
                        byte == 0 || !whole && byte == self.model[at + i],
                        "byte {}",
                        at + i
                    );
                    self.model[at + i] = byte;
                }
            }
            Op::Zero(at, len) => {
                let (at, len) = self.clip(at, len);
                self.model[at..at + len].fill(0);
                self.overlay
                    .as_mut()
                    .unwrap()
                    .write_zeroes(at as u64, len as u64)
                    .unwrap();
            }
            Op::Flush => self.overlay.as_mut().unwrap().flush().unwrap(),
            Op::Seal => {
                let lower = self.seal();
                self.stack(lower);
            }
            Op::Freeze => {
                let overlay = self.overlay.take().unwrap();
                let mut lower = overlay.lower().to_vec();
                let frozen = overlay.freeze();
                lower.push(frozen.clone());
                self.stack(lower);
                frozen.seal().unwrap();
                let opened = Layer::open_sealed(frozen.path()).unwrap();
                assert_eq!(opened.digest().unwrap(), frozen.digest().unwrap());
            }
            Op::Reopen if self.durability == Durability::Durable => {
                let mut overlay = self.overlay.take().unwrap();
                overlay.flush().unwrap();
                let (path, lower) = (overlay.path().to_owned(), overlay.lower().to_vec());
                drop(overlay);
                self.overlay = Some(Overlay::reopen(&path, lower).unwrap());
            }
            Op::Reopen => {
                let lower = self.seal();
                let open = |layer: &Arc<Layer>| {
                    let raw = layer.path().ends_with("base");
                    let opened = if raw {
                        Layer::open_raw(layer.path())
                    } else {
                        Layer::open_sealed(layer.path())
                    };
                    Arc::new(opened.unwrap())
                };
                let lower = lower.iter().map(open).collect();
                self.stack(lower);
            }
            Op::Merge(keep) => {
                let mut lower = self.seal();
                let upper = lower.split_off(keep.min(lower.len() - 1));
                let path = self.path();
                lower.push(merge(&path, &upper).unwrap());
                self.stack(lower);
            }
            Op::Grow(sectors) => {
                let size = self.model.len() + sectors * 512;
                let overlay = self.overlay.as_mut().unwrap();
                let grown = overlay.grow(size as u64);
                match self.durability {
                    Durability::Ephemeral => {
                        grown.unwrap();
                        self.model.resize(size, 0);
                    }
                    Durability::Durable => assert!(grown.is_err()),
                }
                assert_eq!(overlay.len(), self.model.len() as u64);
            }
            Op::LieLarger(sectors) => {
                let lower = self.seal();
                self.model.resize(self.model.len() + sectors * 512, 0);
                self.stack(lower);
            }
        }
    }

    fn check(&self, at: usize, len: usize) {
        let mut buf = vec![0xee; len];
        self.overlay
            .as_ref()
            .unwrap()
            .read_at(&mut buf, at as u64)
            .unwrap();
        if buf != self.model[at..at + len] {
            let first = (0..len).find(|i| buf[*i] != self.model[at + i]).unwrap();
            panic!(
                "byte {} is {:#x}, not {:#x}",
                at + first,
                buf[first],
                self.model[at + first]
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_disk_is_an_array_of_bytes(
        sectors in 1..1100usize,
        base in proptest::option::of(1..1100usize),
        durable in any::<bool>(),
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        let base = base.map(|base| base.min(sectors) * 512);
        let durability = if durable { Durability::Durable } else { Durability::Ephemeral };
        let mut disk = Disk::new(sectors * 512, base, durability);
        for op in ops {
            disk.apply(op);
        }
        disk.check(0, disk.model.len());
    }
}

fn copy_sparse(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn after_a_crash_a_durable_disk_has_what_was_flushed_and_nothing_comes_back_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut disk = Overlay::create(&path, 1 << 20, Vec::new(), Durability::Durable).unwrap();
    disk.write_at(b"flushed", 10).unwrap();
    disk.flush().unwrap();
    disk.write_at(b"lost", 500_000).unwrap();
    // The file as a crash would leave it: what was not flushed may be there or not, the table is as flushed.
    let crashed = dir.path().join("crashed");
    copy_sparse(&path, &crashed);
    let mut disk = Overlay::reopen(&crashed, Vec::new()).unwrap();
    let mut buf = [1; 7];
    disk.read_at(&mut buf, 10).unwrap();
    assert_eq!(&buf, b"flushed");
    disk.write_at(b"new", 500_100).unwrap();
    let mut buf = [1; 4];
    disk.read_at(&mut buf, 500_000).unwrap();
    assert_eq!(buf, [0; 4]);
}

#[test]
fn siblings_and_layers_never_see_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let size = 10 * CLUSTER;
    let mut disk = Overlay::create(&path("base"), size, Vec::new(), Durability::Ephemeral).unwrap();
    disk.write_at(&vec![1; size as usize], 0).unwrap();
    let base = disk.seal().unwrap();
    let before = base.digest().unwrap();
    let fork =
        |name: &str| Overlay::create(&path(name), size, vec![base.clone()], Durability::Ephemeral).unwrap();
    let (mut one, mut two) = (fork("one"), fork("two"));
    one.write_at(&[2; 100_000], 60_000).unwrap();
    two.discard(0, size).unwrap();
    let read = |disk: &Overlay, at| {
        let mut byte = [9];
        disk.read_at(&mut byte, at).unwrap();
        byte[0]
    };
    assert_eq!(
        [read(&one, 59_999), read(&one, 60_000), read(&one, 160_000)],
        [1, 2, 1]
    );
    assert_eq!([read(&two, 0), read(&two, 60_000)], [0, 0]);
    assert_eq!(base.digest().unwrap(), before);
    assert_eq!(
        two.allocated_bytes().unwrap(),
        0,
        "a discarded disk takes no space"
    );
    // 100,000 bytes touch three clusters.
    assert!((3 * CLUSTER..4 * CLUSTER).contains(&one.allocated_bytes().unwrap()));
}

#[test]
fn what_is_outside_the_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Overlay::create(&dir.path().join("d"), 1024, Vec::new(), Durability::Ephemeral).unwrap();
    assert!(disk.write_at(&[1; 2], 1023).is_err());
    assert!(disk.read_at(&mut [1; 2], u64::MAX).is_err());
    assert!(disk.discard(1, u64::MAX).is_err());
    assert!(disk.write_zeroes(1024, 1).is_err());
    assert!(disk.read_at(&mut [], 1024).is_ok());
    for size in [0, 100, 9 << 40] {
        let path = dir.path().join(size.to_string());
        assert!(Overlay::create(&path, size, Vec::new(), Durability::Ephemeral).is_err());
        assert!(!path.exists());
    }
    assert!(
        disk.grow(512)
            .unwrap_err()
            .to_string()
            .contains("disks only grow")
    );
    assert!(disk.grow(9 << 40).is_err());
    disk.grow(1024).unwrap();
    let lower = disk.seal().unwrap();
    let smaller = Overlay::create(&dir.path().join("s"), 512, vec![lower], Durability::Ephemeral);
    assert!(smaller.unwrap_err().to_string().contains("disks only grow"));
}

#[test]
fn a_layer_that_is_cut_off_flipped_or_unsealed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let mut disk = Overlay::create(&path, 3 * CLUSTER, Vec::new(), Durability::Durable).unwrap();
    disk.write_at(b"data", 70_000).unwrap();
    disk.flush().unwrap();
    assert!(
        Layer::open_sealed(&path)
            .unwrap_err()
            .to_string()
            .contains("never sealed")
    );
    let digest = disk.seal().unwrap().digest().unwrap();
    assert!(
        Overlay::reopen(&path, Vec::new())
            .unwrap_err()
            .to_string()
            .contains("sealed")
    );

    let good = std::fs::read(&path).unwrap();
    let bad = dir.path().join("bad");
    let open = |bytes: &[u8]| {
        std::fs::write(&bad, bytes).unwrap();
        Layer::open_sealed(&bad).and_then(|layer| layer.digest())
    };
    for len in [0, 1, 127, 128, 70_000, good.len() - 128, good.len() - 1] {
        let error = open(&good[..len]).unwrap_err().to_string();
        assert!(error.contains("bad") && error.contains("offset"), "{error}");
    }
    for at in (0..good.len()).step_by(1777).chain(good.len() - 130..good.len()) {
        let mut flipped = good.clone();
        flipped[at] ^= 4;
        assert!(open(&flipped).map_or(true, |found| found != digest), "byte {at}");
    }
    assert!(Layer::open_raw(dir.path()).is_err(), "a directory is no disk");
}
