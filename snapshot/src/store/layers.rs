//! Layers and bases: files named by the digest of what they hold.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::publish::{link_new, replace, sync_parent};
use super::{Store, StoreError, Trust};
use crate::Digest;
use crate::disk::{DiskError, Layer};
use crate::files::copy_sparse;

impl Store {
    /// Moves a sealed layer into the store, and says what it is called there. The file at `path` is gone
    /// afterwards; that it may be open does no harm. If the store has this layer, it keeps the one it has,
    /// unless that is damaged.
    ///
    /// Without anything that refers to it, the layer is garbage: see [`Store::hold`].
    ///
    /// # Errors
    /// When the file is not an intact sealed layer, or can't be read or moved.
    pub fn adopt_layer(&self, path: &Path) -> Result<Digest, StoreError> {
        let _hold = self.hold()?;
        let layer = Layer::open_sealed(path)?;
        let digest = layer.digest()?;
        make_durable(layer.file(), path)?;
        let to = self.layers_dir().join(digest.to_string());
        match self.place(path, &to, digest) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::CrossesDevices => {
                let entry = self.tmp()?;
                let copy = entry.join("layer");
                self.copy(path, &copy)?;
                // What was copied is hashed again: what lies in the store is what its name says.
                let found = Layer::open_sealed(&copy)?.digest()?;
                if found != digest {
                    return Err(StoreError::LayerDigest {
                        path: copy,
                        expected: digest,
                        found,
                    });
                }
                self.place(&copy, &to, digest)?;
                std::fs::remove_file(path).map_err(StoreError::io("remove", path))?;
            }
            other => other?,
        }
        Ok(digest)
    }

    /// Copies a raw disk image into the store as a base, and says what it is called there. Holes stay holes,
    /// and blocks are shared where the file system can. The file at `path` stays as it is.
    ///
    /// # Errors
    /// When the file can't be read, its size is no disk's, or the copy can't be written.
    pub fn import_raw(&self, path: &Path) -> Result<Digest, StoreError> {
        let _hold = self.hold()?;
        // Refuses what cannot be a disk before it is copied.
        drop(Layer::open_raw(path)?);
        let entry = self.tmp()?;
        let copy = entry.join("base");
        self.copy(path, &copy)?;
        let digest = Layer::open_raw(&copy)?.digest()?;
        self.place(&copy, &self.bases_dir().join(digest.to_string()), digest)?;
        Ok(digest)
    }

    /// The layer or base with this digest, checked against it ([`Trust::Stamps`]).
    ///
    /// # Errors
    /// When there is none, it can't be read, or it is damaged.
    pub fn layer(&self, digest: &Digest) -> Result<Arc<Layer>, StoreError> {
        self.layer_with(digest, Trust::Stamps)
    }

    /// As [`Store::layer`], believing as much as `trust` says.
    ///
    /// # Errors
    /// As [`Store::layer`].
    pub fn layer_with(&self, digest: &Digest, trust: Trust) -> Result<Arc<Layer>, StoreError> {
        let name = digest.to_string();
        let layer = self.open_layer(digest)?;
        self.check_once(trust, &name, &name, layer.file(), || {
            let found = layer.digest()?;
            match found == *digest {
                true => Ok(()),
                false => Err(StoreError::LayerDigest {
                    path: layer.path().to_owned(),
                    expected: *digest,
                    found,
                }),
            }
        })?;
        Ok(Arc::new(layer))
    }

    /// The digests of all layers.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn list_layers(&self) -> Result<Vec<Digest>, StoreError> {
        names(&self.layers_dir())
    }

    /// The digests of all bases.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn list_bases(&self) -> Result<Vec<Digest>, StoreError> {
        names(&self.bases_dir())
    }

    /// The layer or base with this digest. Its data is not read.
    pub(super) fn open_layer(&self, digest: &Digest) -> Result<Layer, StoreError> {
        let name = digest.to_string();
        let is_missing = |error: &DiskError| matches!(error, DiskError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
        match Layer::open_sealed(&self.layers_dir().join(&name)) {
            Err(error) if is_missing(&error) => {}
            other => return Ok(other?),
        }
        match Layer::open_raw(&self.bases_dir().join(&name)) {
            Err(error) if is_missing(&error) => Err(StoreError::not_found("layer", name)),
            other => Ok(other?),
        }
    }

    /// Moves a durable file to its place, which may be taken by the same thing. It can be done again if it failed:
    /// `from` is there until all is.
    fn place(&self, from: &Path, to: &Path, digest: Digest) -> Result<(), StoreError> {
        if !link_new(from, to)? {
            match self.layer(&digest) {
                // Whoever put it there may not have come to make that durable.
                Ok(_) => sync_parent(to)?,
                // What is there is damaged, and here is an intact one.
                Err(_) => return replace(from, to),
            }
        }
        std::fs::remove_file(from).map_err(StoreError::io("remove", from))
    }

    /// A durable, read-only copy.
    fn copy(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        let source = File::open(from).map_err(StoreError::io("open", from))?;
        let metadata = source.metadata().map_err(StoreError::io("look at", from))?;
        let len = metadata.len();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(StoreError::io("create", to))?;
        // Holes take no space: what the source takes is what is needed.
        let needed = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        copy_sparse(&source, &file, len).map_err(StoreError::write(to, needed))?;
        make_durable(&file, to)
    }
}

fn make_durable(file: &File, path: &Path) -> Result<(), StoreError> {
    file.set_permissions(Permissions::from_mode(0o444))
        .map_err(StoreError::io("make read-only", path))?;
    file.sync_all().map_err(StoreError::write(path, 0))
}

/// The names in a directory that are ids of one kind; others are not ours.
pub(super) fn names<Id: std::str::FromStr + Ord>(dir: &Path) -> Result<Vec<Id>, StoreError> {
    let read = || StoreError::io("read directory", dir);
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read())? {
        let name = entry.map_err(read())?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<Id>().ok()));
    }
    ids.sort_unstable();
    Ok(ids)
}
