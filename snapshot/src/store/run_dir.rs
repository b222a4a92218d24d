//! The files of one running VM: `run/<id>/`, with a `lock` that its owner holds for as long as it lives.
//!
//! Nothing here is synced: after a crash of the host no VM runs, and making one must not wait for the disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::lock::{create_locked, lock_if_dead};
use super::publish::rename_new;
use super::{Store, StoreError};
use crate::{Digest, RunId};

const LOCK: &str = "lock";
const PINS: &str = "pins.json";

/// A running VM's directory. It is removed when this is dropped; if the process dies without that, when a store
/// is next opened or swept.
///
/// The owner is the process that created it. A forked child that drops its copy only lets go of it; one that
/// keeps it keeps the directory alive too, so a child drops it and creates its own.
#[derive(Debug)]
pub struct RunDir {
    store: Store,
    id: RunId,
    dir: PathBuf,
    _lock: File,
    owner: u32,
}

impl RunDir {
    /// Makes the directory of a new VM, mode 0700.
    ///
    /// # Errors
    /// When there is one with this id already, or it can't be made.
    pub fn create(store: &Store, id: &RunId) -> Result<Self, StoreError> {
        // Locked before it has its name, so no sweep ever sees it unlocked.
        let entry = store.tmp()?;
        let dir = entry.join("run");
        store.make_dir(&dir)?;
        let path = dir.join(LOCK);
        let lock = create_locked(&path)
            // Out of descriptors, maybe: then nobody else could.
            .inspect_err(|_| drop(std::fs::remove_dir(&dir)))
            .map_err(StoreError::io("create", &path))?;
        let place = store.run_dir().join(id.as_str());
        if !rename_new(&dir, &place)? {
            return Err(StoreError::RunExists(id.clone()));
        }
        Ok(Self {
            store: store.clone(),
            id: id.clone(),
            dir: place,
            _lock: lock,
            owner: std::process::id(),
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The VM's id.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Names the layers that the VM's disks lie on, in place of those named before. They stay in the store
    /// while the VM lives, so that it can be checkpointed even when its image was deleted.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn pin(&self, layers: &[Digest]) -> Result<(), StoreError> {
        let path = self.dir.join(PINS);
        let new = self.dir.join("pins.new");
        let json = serde_json::to_vec(layers).map_err(|error| StoreError::BadRecord {
            path: path.clone(),
            why: error.to_string(),
        })?;
        std::fs::write(&new, &json).map_err(StoreError::write(&new, json.len() as u64))?;
        std::fs::rename(&new, &path).map_err(StoreError::write(&path, 0))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            remove(&self.store, &self.dir);
        }
    }
}

/// Gone from `run/` at once, then removed; if that is not possible, for example because nothing more fits on
/// the disk, removed where it is.
fn remove(store: &Store, dir: &Path) {
    if store.move_away(dir).is_err() {
        let _ = std::fs::remove_dir_all(dir);
    }
}

/// Removes the directories of VMs that are gone, and says how many.
pub(super) fn sweep(store: &Store) -> Result<usize, StoreError> {
    let mut removed = 0;
    for dir in run_dirs(store)? {
        let path = dir.join(LOCK);
        let lockless = matches!(path.try_exists(), Ok(false));
        let lock = lock_if_dead(&path).map_err(StoreError::io("lock", &path))?;
        if lockless || lock.is_some() {
            remove(store, &dir);
            removed += 1;
        }
    }
    Ok(removed)
}

/// The layers that any VM has pinned.
pub(super) fn pinned(store: &Store) -> Result<Vec<Digest>, StoreError> {
    let mut pins = Vec::new();
    for dir in run_dirs(store)? {
        let path = dir.join(PINS);
        match std::fs::read(&path) {
            Ok(json) => pins.extend(serde_json::from_slice::<Vec<Digest>>(&json).map_err(|error| {
                StoreError::BadRecord {
                    path,
                    why: error.to_string(),
                }
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        }
    }
    Ok(pins)
}

fn run_dirs(store: &Store) -> Result<Vec<PathBuf>, StoreError> {
    let run = store.run_dir();
    let read = || StoreError::io("read directory", &run);
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(&run).map_err(read())? {
        let entry = entry.map_err(read())?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<RunId>().is_ok())
        {
            dirs.push(entry.path());
        }
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_vm_keeps_its_directory_and_a_dead_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id: RunId = "vm-1".parse().unwrap();
        let live = RunDir::create(&store, &id).unwrap();
        std::fs::write(live.path().join("overlay"), "bytes").unwrap();
        // As a killed process leaves it: the lock file is there, but not locked.
        let dead = store.run_dir().join("vm-2");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("lock"), "").unwrap();
        std::fs::create_dir(store.run_dir().join("vm-3")).unwrap();

        let again = Store::open(dir.path()).unwrap();
        assert!(!dead.exists() && !store.run_dir().join("vm-3").exists());
        assert!(live.path().join("overlay").exists());
        let error = RunDir::create(&again, &id).unwrap_err();
        assert!(matches!(error, StoreError::RunExists(_)), "{error}");

        let path = live.path().to_owned();
        drop(live);
        assert!(!path.exists());
        assert!(RunDir::create(&again, &id).is_ok());
        assert!(store.verified_dir().exists(), "not a VM's");
        assert_eq!(std::fs::read_dir(store.tmp_dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_forked_childs_copy_takes_nothing_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut run = RunDir::create(&store, &"vm".parse().unwrap()).unwrap();
        run.owner += 1;
        let path = run.path().to_owned();
        drop(run);
        assert!(path.join("lock").exists());
    }

    #[test]
    fn pins_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let run = RunDir::create(&store, &"vm".parse().unwrap()).unwrap();
        assert!(pinned(&store).unwrap().is_empty());
        run.pin(&[Digest::of(b"a")]).unwrap();
        run.pin(&[Digest::of(b"b")]).unwrap();
        assert_eq!(pinned(&store).unwrap(), [Digest::of(b"b")]);
    }
}
