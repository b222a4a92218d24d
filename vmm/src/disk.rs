//! A disk overlay of the `snapshot` crate as a block device's backend.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_devices::virtio::block::BlockBackend;
use spore_snapshot::disk::{DiskError, Durability, Layer, Overlay};

/// The overlay of a running machine, shared between its block device and whoever freezes it.
#[derive(Clone)]
pub struct SharedOverlay(Arc<Mutex<Option<Overlay>>>);

impl SharedOverlay {
    /// Shares `overlay`.
    pub fn new(overlay: Overlay) -> Self {
        Self(Arc::new(Mutex::new(Some(overlay))))
    }

    /// The block device's end.
    pub fn backend(&self) -> Box<dyn BlockBackend> {
        Box::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Overlay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals what was written as a layer and goes on above it in a new overlay at `next`. The
    /// machine must stand still.
    ///
    /// Returns all layers, bottom first; the last is the one just sealed, in the file where the
    /// overlay was.
    ///
    /// # Errors
    /// What the disk reports. When `next` cannot be made nothing has changed.
    pub fn seal(&self, next: &Path) -> Result<Vec<Arc<Layer>>, DiskError> {
        let mut slot = self.lock();
        let Some(overlay) = slot.take() else {
            return Ok(Vec::new());
        };
        let (size, durability) = (overlay.len(), overlay.durability());
        let mut layers = overlay.lower().to_vec();
        let frozen = overlay.freeze();
        layers.push(frozen.clone());
        *slot = Some(Overlay::create(next, size, layers.clone(), durability)?);
        frozen.seal()?;
        Ok(layers)
    }

    /// Seals what was written as a layer, when the machine is over and nothing will be written again.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn seal_for_good(&self) -> Result<(), DiskError> {
        match self.lock().take() {
            Some(overlay) => overlay.seal().map(drop),
            None => Ok(()),
        }
    }
}

impl BlockBackend for SharedOverlay {
    fn len(&self) -> u64 {
        self.lock().as_ref().map_or(0, Overlay::len)
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
    mut slot: MutexGuard<'_, Option<Overlay>>,
    operation: impl FnOnce(&mut Overlay) -> Result<(), DiskError>,
) -> io::Result<()> {
    match slot.as_mut() {
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
    pub overlay: std::path::PathBuf,
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
    pub path: std::path::PathBuf,
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
