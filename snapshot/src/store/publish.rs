//! From `tmp/` to its place, at once and durably.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::tmp::TmpEntry;
use super::{Store, StoreError};
use crate::files::sync_dir;

/// Renames a file or directory to a place that must be free. `false` when the place is taken.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool, StoreError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(StoreError::write(to, 0)(errno.into())),
    }
}

/// Renames a durable file or directory to a place that must be free, and makes the name durable. `false` when
/// the place is taken.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<bool, StoreError> {
    let free = rename_new(from, to)?;
    if free {
        sync_parent(to)?;
    }
    Ok(free)
}

/// Renames a durable file over what is there, and makes that durable.
pub(crate) fn replace(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(StoreError::write(to, 0))?;
    sync_parent(to)
}

/// Makes a name durable, or that it is gone.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    sync_dir(parent).map_err(StoreError::io("sync", parent))
}

impl Store {
    /// Writes a small file, whole or not at all, over what may be there.
    pub(super) fn put_file(&self, to: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let entry = self.tmp()?;
        let path = entry.join("file");
        let missing = || StoreError::write(to, bytes.len() as u64);
        let file = std::fs::File::create_new(&path).map_err(missing())?;
        file.write_all_at(bytes, 0).map_err(missing())?;
        file.sync_all().map_err(missing())?;
        replace(&path, to)
    }

    /// Takes a file or directory out of the store: gone from its place at once and durably, then removed. Who
    /// has it open keeps it. `false` when there was nothing.
    pub(super) fn take_away(&self, path: &Path) -> Result<bool, StoreError> {
        let gone = self.move_away(path)?;
        if gone.is_some() {
            sync_parent(path)?;
        }
        Ok(gone.is_some())
    }

    /// As [`Store::take_away`], for what no crash of the host needs to be told of. It is removed when the entry
    /// is dropped.
    pub(super) fn move_away(&self, path: &Path) -> Result<Option<TmpEntry>, StoreError> {
        let entry = self.tmp()?;
        match std::fs::rename(path, entry.join("gone")) {
            Ok(()) => Ok(Some(entry)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("delete", path)(error)),
        }
    }
}
