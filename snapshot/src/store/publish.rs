//! From `tmp/` to its place, at once and durably.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::tmp::TmpEntry;
use super::{Store, StoreError};

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
    let names = Names::around(to)?;
    let free = rename_new(from, to)?;
    if free {
        names.sync()?;
    }
    Ok(free)
}

/// Gives a durable file a second name, which must be free, and makes that durable. `false` when the place is taken.
pub(crate) fn link_new(from: &Path, to: &Path) -> Result<bool, StoreError> {
    let names = Names::around(to)?;
    match std::fs::hard_link(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(StoreError::write(to, 0)(error)),
    }
    names.sync()?;
    Ok(true)
}

/// Renames a durable file over what is there, and makes that durable.
pub(crate) fn replace(from: &Path, to: &Path) -> Result<(), StoreError> {
    let names = Names::around(to)?;
    std::fs::rename(from, to).map_err(StoreError::write(to, 0))?;
    names.sync()
}

/// Makes a name durable, or that it is gone.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    Names::around(path)?.sync()
}

/// The directory that a name is in or is going to be: open before anything is done there, so that what is done can be
/// made durable also if descriptors run out meanwhile.
pub(super) struct Names {
    path: PathBuf,
    dir: File,
}

impl Names {
    pub(super) fn around(path: &Path) -> Result<Self, StoreError> {
        let path = path.parent().unwrap_or(Path::new("/")).to_owned();
        let dir = File::open(&path).map_err(StoreError::io("open directory", &path))?;
        Ok(Self { path, dir })
    }

    pub(super) fn sync(self) -> Result<(), StoreError> {
        self.dir.sync_all().map_err(StoreError::io("sync", &self.path))
    }
}

impl Store {
    /// Writes a small file, whole or not at all, over what may be there.
    pub(super) fn put_file(&self, to: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let entry = self.tmp()?;
        let path = entry.join("file");
        let missing = || StoreError::write(to, bytes.len() as u64);
        let file = File::create_new(&path).map_err(missing())?;
        file.write_all_at(bytes, 0).map_err(missing())?;
        file.sync_all().map_err(missing())?;
        replace(&path, to)
    }

    /// Takes a file or directory out of the store: gone from its place at once and durably, then removed. Who
    /// has it open keeps it. `false` when there was nothing.
    pub(super) fn take_away(&self, path: &Path) -> Result<bool, StoreError> {
        let names = Names::around(path)?;
        let gone = self.move_away(path)?;
        if gone.is_some() {
            names.sync()?;
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
