//! A disk overlay of the `snapshot` crate as a block device's backend.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_devices::virtio::block::BlockBackend;
use spore_snapshot::disk::{DiskError, Durability, Layer, Overlay};

use crate::process::Descriptors;

/// The overlay of a running machine, shared between its block device and whoever freezes it.
#[derive(Clone)]
pub struct SharedOverlay(Arc<Mutex<Disk>>);

struct Disk {
    overlay: Option<Overlay>,
    /// Layers frozen under the overlay that are not sealed yet: a seal failed half-way.
    unsealed: Vec<Frozen>,
    /// The names of those frozen by this machine, bottom first.
    own: Vec<PathBuf>,
}

/// A layer that was the machine's overlay, and can still be written to.
#[derive(Clone)]
struct Frozen {
    layer: Arc<Layer>,
    /// The same file, open for reading only; absent where nothing runs on it any more.
    reader: Option<Arc<OwnedFd>>,
}

impl Frozen {
    /// Gives up writing to it, for good: others lie on it now.
    fn give_up(&self) -> io::Result<()> {
        let Some(reader) = &self.reader else { return Ok(()) };
        let which = |file: BorrowedFd<'_>| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
        if which(reader.as_fd())? != which(self.layer.as_fd())? {
            return Err(io::Error::other("what came for reading is another file"));
        }
        let (from, to) = (reader.as_raw_fd(), self.layer.as_fd().as_raw_fd());
        // SAFETY: both are live descriptors of one file. Whoever reads through the second meanwhile, by position, reads
        // the same bytes through the old open file or the new one.
        match unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// A disk at rest: what machines put their overlays on.
#[derive(Clone)]
pub struct Stack {
    layers: Vec<Arc<Layer>>,
    size: u64,
}

impl Stack {
    /// Of layers whose files are open, in their order.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn of(spec: &StackSpec, files: &mut Descriptors) -> Result<Self, DiskError> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for LayerFile { path, raw } in &spec.layers {
            let file = next_file(files, path)?;
            let layer = match raw {
                true => Layer::raw_of(file, path)?,
                false => Layer::sealed_of(file, path)?,
            };
            layers.push(Arc::new(layer));
        }
        let size = match (spec.virtual_size, layers.last()) {
            (0, Some(top)) => top.virtual_size(),
            (size, _) => size,
        };
        Ok(Self { layers, size })
    }

    /// A machine's disk on it, with its own overlay in the next file, which is empty and called `path`.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn overlay(
        &self,
        path: &Path,
        files: &mut Descriptors,
        durability: Durability,
    ) -> Result<SharedOverlay, DiskError> {
        let (file, layers) = (next_file(files, path)?, self.layers.clone());
        let overlay = Overlay::create_named(file, path, self.size, layers, durability)?;
        Ok(SharedOverlay::new(overlay))
    }

    /// Size of the disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.size
    }
}

fn next_file(files: &mut Descriptors, path: &Path) -> Result<File, DiskError> {
    let file = files.next("the file").map_err(|source| DiskError::Io {
        action: "use",
        path: path.to_owned(),
        source,
    })?;
    Ok(file.into())
}

fn lost(path: &Path) -> DiskError {
    DiskError::Io {
        action: "go on in",
        path: path.to_owned(),
        source: io::Error::other("the disk was lost when a new overlay could not be made"),
    }
}

impl SharedOverlay {
    /// Shares `overlay`.
    pub fn new(overlay: Overlay) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            overlay: Some(overlay),
            unsealed: Vec::new(),
            own: Vec::new(),
        })))
    }

    /// The block device's end.
    pub fn backend(&self) -> Box<dyn BlockBackend> {
        Box::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.lock().overlay.as_ref().map_or(0, Overlay::len)
    }

    /// The disk as of now, as layers that take no more writes; the machine's goes on above them in a new overlay in
    /// `file`, which is empty and called `next`. `reader` is the file of the overlay that it had until then, open for
    /// reading only: once it is sealed, that is all that is left of it here. To these layers it is as if the power had
    /// failed, unless the machine stands still. A disk nothing was written to goes on as it is.
    ///
    /// # Errors
    /// What the disk reports. The machine can go on.
    pub fn freeze(&self, file: File, next: &Path, reader: OwnedFd) -> Result<Stack, DiskError> {
        let mut disk = self.lock();
        let Some(overlay) = &disk.overlay else {
            return Err(lost(next));
        };
        let (size, durability) = (overlay.len(), overlay.durability());
        let mut layers = overlay.lower().to_vec();
        if overlay.is_pristine() {
            return Ok(Stack { layers, size });
        }
        if let Some(overlay) = disk.overlay.take() {
            let frozen = overlay.freeze();
            layers.push(frozen.clone());
            disk.own.push(frozen.path().to_owned());
            disk.unsealed.push(Frozen {
                layer: frozen,
                reader: Some(Arc::new(reader)),
            });
            let over = layers.clone();
            disk.overlay = Some(Overlay::create_named(file, next, size, over, durability)?);
        }
        Ok(Stack { layers, size })
    }

    /// How many layers the overlay lies on, and which of them it was itself, by their numbers, bottom first.
    pub fn layers(&self) -> (usize, Vec<u32>) {
        let disk = self.lock();
        let layers = disk.overlay.as_ref().map_or(0, |overlay| overlay.lower().len());
        (
            layers,
            disk.own.iter().filter_map(|path| overlay_number(path)).collect(),
        )
    }

    /// Makes the disk `bytes` large. Its block device has to be told.
    ///
    /// # Errors
    /// What the disk reports; it is as large as before then.
    pub fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        match self.lock().overlay.as_mut() {
            Some(overlay) => overlay.grow(bytes),
            None => Err(lost(Path::new("the overlay"))),
        }
    }

    /// Seals what was frozen. Returns the numbers of the overlays that are layers now and were not before, bottom first.
    ///
    /// # Errors
    /// What the disk reports; what is not sealed yet is by the next call.
    pub fn seal_frozen(&self) -> Result<Vec<u32>, DiskError> {
        // Not under the lock: the guest reads and writes meanwhile.
        let frozen = self.lock().unsealed.clone();
        for Frozen { layer, .. } in &frozen {
            layer.seal()?;
        }
        self.give_up_writing(&frozen)?;
        self.lock().unsealed.drain(..frozen.len());
        let numbers = frozen
            .iter()
            .filter_map(|frozen| overlay_number(frozen.layer.path()));
        Ok(numbers.collect())
    }

    fn give_up_writing(&self, frozen: &[Frozen]) -> Result<(), DiskError> {
        for frozen in frozen {
            frozen.give_up().map_err(|source| DiskError::Io {
                action: "give up writing to",
                path: frozen.layer.path().to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// In a forked process, which is another machine's: what was frozen it can read, and its parent seals it.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn only_read(&self) -> Result<(), DiskError> {
        let frozen = self.lock().unsealed.clone();
        self.give_up_writing(&frozen)
    }

    /// Seals what was written as a layer, when the machine is over and nothing will be written again.
    ///
    /// Returns the numbers of the overlays that are layers now and were not before, bottom first.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn seal_for_good(&self) -> Result<Vec<u32>, DiskError> {
        let mut disk = self.lock();
        if let Some(overlay) = disk.overlay.take() {
            let frozen = overlay.freeze();
            disk.own.push(frozen.path().to_owned());
            disk.unsealed.push(Frozen {
                layer: frozen,
                reader: None,
            });
        }
        drop(disk);
        self.seal_frozen()
    }
}

impl BlockBackend for SharedOverlay {
    fn len(&self) -> u64 {
        self.bytes()
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        with(self.lock(), |overlay| overlay.read_at(data, offset))
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        with(self.lock(), |overlay| overlay.write_at(data, offset))
    }

    fn flush(&mut self) -> io::Result<()> {
        with(self.lock(), Overlay::flush)
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        with(self.lock(), |overlay| overlay.discard(offset, length))
    }

    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        with(self.lock(), |overlay| overlay.write_zeroes(offset, length))
    }
}

fn with(
    mut disk: MutexGuard<'_, Disk>,
    operation: impl FnOnce(&mut Overlay) -> Result<(), DiskError>,
) -> io::Result<()> {
    match disk.overlay.as_mut() {
        Some(overlay) => operation(overlay).map_err(io::Error::other),
        None => Err(io::Error::other(lost(Path::new("the overlay")))),
    }
}

/// What a disk at rest is put together from.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StackSpec {
    /// Layer files, bottom first.
    pub layers: Vec<LayerFile>,
    /// Size of the disk in bytes; 0 for that of the topmost layer.
    pub virtual_size: u64,
}

/// What a machine's disk is put together from.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSpec {
    /// What it lies on.
    pub stack: StackSpec,
    /// What the file of the private overlay is called.
    pub overlay: PathBuf,
    /// Whether a guest's flush must reach the host's disk.
    pub durable: bool,
}

/// A layer's file.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerFile {
    /// What it is called.
    pub path: PathBuf,
    /// A raw image rather than a sealed overlay.
    pub raw: bool,
}

/// What the file of a machine's overlay is called.
pub fn overlay_name(number: u32) -> String {
    format!("disk-{number}")
}

/// The number of an overlay by its file's name.
pub fn overlay_number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("disk-")?.parse().ok()
}

/// A disk of layers and an overlay, whose files are open and come in that order.
///
/// # Errors
/// What the disk reports.
pub(crate) fn of(spec: &DiskSpec, files: &mut Descriptors) -> Result<SharedOverlay, DiskError> {
    let durability = if spec.durable {
        Durability::Durable
    } else {
        Durability::Ephemeral
    };
    Stack::of(&spec.stack, files)?.overlay(&spec.overlay, files, durability)
}
