//! A disk overlay of the `snapshot` crate as a block device's backend.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_devices::virtio::block::BlockBackend;
use spore_snapshot::disk::{DiskError, Durability, Layer, Overlay};

/// The overlay of a running machine, shared between its block device and whoever freezes it.
#[derive(Clone)]
pub struct SharedOverlay(Arc<Mutex<Disk>>);

struct Disk {
    overlay: Option<Overlay>,
    /// Layers frozen under the overlay that are not sealed yet: a seal failed half-way.
    unsealed: Vec<Arc<Layer>>,
}

impl Disk {
    fn seal_frozen(&mut self) -> Result<Vec<PathBuf>, DiskError> {
        for layer in &self.unsealed {
            layer.seal()?;
        }
        Ok(self
            .unsealed
            .drain(..)
            .map(|layer| layer.path().to_owned())
            .collect())
    }
}

impl SharedOverlay {
    /// Shares `overlay`.
    pub fn new(overlay: Overlay) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            overlay: Some(overlay),
            unsealed: Vec::new(),
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

    /// Seals what was written as a layer and goes on above it in a new overlay at `next`. The
    /// machine must stand still. A disk nothing was written to needs no layer and goes on as it is.
    ///
    /// Returns the files that are layers now and were not before, bottom first.
    ///
    /// # Errors
    /// What the disk reports. The machine can go on; what is not sealed yet is by the next call.
    pub fn seal(&self, next: &Path) -> Result<Vec<PathBuf>, DiskError> {
        let mut disk = self.lock();
        if disk
            .overlay
            .as_ref()
            .is_some_and(|overlay| !overlay.is_pristine())
        {
            // What can fail is found out before the old overlay is given up.
            std::fs::File::create_new(next)
                .and_then(|_| std::fs::remove_file(next))
                .map_err(|source| DiskError::Io {
                    action: "create",
                    path: next.to_owned(),
                    source,
                })?;
            if let Some(overlay) = disk.overlay.take() {
                let (size, durability) = (overlay.len(), overlay.durability());
                let mut layers = overlay.lower().to_vec();
                let frozen = overlay.freeze();
                layers.push(frozen.clone());
                disk.unsealed.push(frozen);
                disk.overlay = Some(Overlay::create(next, size, layers, durability)?);
            }
        }
        disk.seal_frozen()
    }

    /// Seals what was written as a layer, when the machine is over and nothing will be written again.
    ///
    /// Returns the files that are layers now and were not before, bottom first.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn seal_for_good(&self) -> Result<Vec<PathBuf>, DiskError> {
        let mut disk = self.lock();
        if let Some(overlay) = disk.overlay.take() {
            disk.unsealed.push(overlay.freeze());
        }
        disk.seal_frozen()
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
        None => Err(io::Error::other(
            "the disk was lost when a new overlay could not be made",
        )),
    }
}

/// What a disk is put together from.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSpec {
    /// Layer files, bottom first.
    pub layers: Vec<LayerFile>,
    /// Where the private overlay is made; the file must not exist.
    pub overlay: PathBuf,
    /// Size of the disk in bytes; 0 for that of the topmost layer.
    pub virtual_size: u64,
    /// Whether a guest's flush must reach the host's disk.
    pub durable: bool,
}

/// A layer's file.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerFile {
    /// Where.
    pub path: PathBuf,
    /// A raw image rather than a sealed overlay.
    pub raw: bool,
}

/// Opens the layers and makes the overlay.
///
/// # Errors
/// What the disk reports.
pub fn open(spec: &DiskSpec) -> Result<SharedOverlay, DiskError> {
    let mut layers = Vec::with_capacity(spec.layers.len());
    for file in &spec.layers {
        let layer = if file.raw {
            Layer::open_raw(&file.path)?
        } else {
            Layer::open_sealed(&file.path)?
        };
        layers.push(Arc::new(layer));
    }
    let size = match (spec.virtual_size, layers.last()) {
        (0, Some(top)) => top.virtual_size(),
        (size, _) => size,
    };
    let durability = if spec.durable {
        Durability::Durable
    } else {
        Durability::Ephemeral
    };
    Ok(SharedOverlay::new(Overlay::create(
        &spec.overlay,
        size,
        layers,
        durability,
    )?))
}
