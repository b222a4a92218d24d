//! The files of one running VM: `run/<id>/`, with a `lock` that its owner holds for as long as it lives. A VM that is to
//! outlive its owner is handed the lock ([`RunDir::lock`]), and hands it to the next ([`RunDir::take_over`]).
//!
//! Nothing here is synced: after a crash of the host no VM runs, and making one must not wait for the disk.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::lock::{create_locked, is_at, lock_if_dead};
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
    lock: File,
    /// The process that removes it; `None` when it was let go of.
    owner: Option<u32>,
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
            lock,
            owner: Some(std::process::id()),
        })
    }

    /// Where the directory of a VM is or would be.
    pub fn place(store: &Store, id: &RunId) -> PathBuf {
        store.run_dir().join(id.as_str())
    }

    /// The ids of all VMs that have a directory, living or not.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn all(store: &Store) -> Result<Vec<RunId>, StoreError> {
        let mut ids: Vec<RunId> = run_dirs(store)?.into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Whether nobody holds the lock of a VM's directory: neither an owner nor the VM is there any more.
    ///
    /// # Errors
    /// When the lock can't be looked at.
    pub fn is_dead(store: &Store, id: &RunId) -> Result<bool, StoreError> {
        Ok(Dead::lock(Self::place(store, id))?.is_some())
    }

    /// Removes the directory of a VM if nobody holds its lock, and says whether it did.
    ///
    /// # Errors
    /// As [`RunDir::is_dead`].
    pub fn sweep(store: &Store, id: &RunId) -> Result<bool, StoreError> {
        Ok(Dead::lock(Self::place(store, id))?
            .inspect(|dead| dead.remove(store))
            .is_some())
    }

    /// The lock. Whoever has a copy of this descriptor holds the lock too (flock(2)), and with it the directory.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Becomes the owner of a directory whose VM held the `lock` meanwhile.
    ///
    /// # Errors
    /// [`StoreError::BadRecord`] when that is not the lock of this directory, or is not held.
    pub fn take_over(store: &Store, id: &RunId, lock: OwnedFd) -> Result<Self, StoreError> {
        let (dir, lock) = (Self::place(store, id), File::from(lock));
        let path = dir.join(LOCK);
        let refused = |why: &str| StoreError::BadRecord {
            path: path.clone(),
            why: why.to_owned(),
        };
        if !is_at(&lock, &path).map_err(StoreError::io("look at", &path))? {
            return Err(refused("the VM holds another lock"));
        }
        // Held by the descriptor that came, since it is by somebody: for nobody else it would be granted now.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| refused("the VM does not hold it"))?;
        Ok(Self {
            store: store.clone(),
            id: id.clone(),
            dir,
            lock,
            owner: Some(std::process::id()),
        })
    }

    /// Lets go of it: it stays while anyone else holds its lock.
    pub fn release(mut self) {
        self.owner = None;
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

    /// The layers that were [pinned](RunDir::pin) last.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn pins(&self) -> Result<Vec<Digest>, StoreError> {
        pins_in(&self.dir)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.owner == Some(std::process::id()) {
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

/// The directory of a VM that is gone, with its lock, which nobody else gets meanwhile.
struct Dead {
    dir: PathBuf,
    _lock: Option<File>,
}

impl Dead {
    /// `None` while someone lives whose directory it is.
    fn lock(dir: PathBuf) -> Result<Option<Self>, StoreError> {
        let path = dir.join(LOCK);
        let lockless = dir.exists() && matches!(path.try_exists(), Ok(false));
        let lock = lock_if_dead(&path).map_err(StoreError::io("lock", &path))?;
        Ok((lockless || lock.is_some()).then_some(Self { dir, _lock: lock }))
    }

    fn remove(&self, store: &Store) {
        remove(store, &self.dir);
    }
}

/// Removes the directories of VMs that are gone, and says how many.
pub(super) fn sweep(store: &Store) -> Result<usize, StoreError> {
    let mut removed = 0;
    for (_, dir) in run_dirs(store)? {
        if let Some(dead) = Dead::lock(dir)? {
            dead.remove(store);
            removed += 1;
        }
    }
    Ok(removed)
}

/// The layers that any VM has pinned.
pub(super) fn pinned(store: &Store) -> Result<Vec<Digest>, StoreError> {
    let mut pins = Vec::new();
    for (_, dir) in run_dirs(store)? {
        pins.extend(pins_in(&dir)?);
    }
    Ok(pins)
}

fn pins_in(dir: &Path) -> Result<Vec<Digest>, StoreError> {
    let path = dir.join(PINS);
    match std::fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|error| StoreError::BadRecord {
            path,
            why: error.to_string(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

fn run_dirs(store: &Store) -> Result<Vec<(RunId, PathBuf)>, StoreError> {
    let run = store.run_dir();
    let read = || StoreError::io("read directory", &run);
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(&run).map_err(read())? {
        let entry = entry.map_err(read())?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        dirs.extend(id.map(|id: RunId| (id, entry.path())));
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
        run.owner = Some(1);
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

    #[test]
    fn a_directory_lives_with_whoever_holds_its_lock_and_can_be_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let id: RunId = "vm".parse().unwrap();
        let run = RunDir::create(&store, &id).unwrap();
        run.pin(&[Digest::of(b"a")]).unwrap();
        let path = run.path().to_owned();
        // As the VM's process has it.
        let held = run.lock().try_clone_to_owned().unwrap();
        run.release();
        assert!(!RunDir::is_dead(&store, &id).unwrap() && !RunDir::sweep(&store, &id).unwrap());
        Store::open(dir.path()).unwrap();
        assert_eq!(RunDir::all(&store).unwrap(), std::slice::from_ref(&id));

        let other = std::fs::File::open("/dev/null").unwrap();
        let error = RunDir::take_over(&store, &id, other.into()).unwrap_err();
        assert!(matches!(error, StoreError::BadRecord { .. }), "{error}");
        let not_held = std::fs::File::open(path.join("lock")).unwrap();
        let error = RunDir::take_over(&store, &id, not_held.into()).unwrap_err();
        assert!(matches!(error, StoreError::BadRecord { .. }), "{error}");

        let again = RunDir::take_over(&store, &id, held).unwrap();
        assert_eq!(again.pins().unwrap(), [Digest::of(b"a")]);
        again.release();
        assert!(RunDir::is_dead(&store, &id).unwrap());
        assert!(RunDir::sweep(&store, &id).unwrap());
        assert!(!path.exists() && !RunDir::sweep(&store, &id).unwrap());
    }
}
