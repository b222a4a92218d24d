//! Entries of `tmp/`: a directory `<name>`, and beside it `<name>.lock`, locked by its living owner. The lock
//! comes before the directory and goes after it, so a directory without a lock is nobody's.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::StoreError;
use super::lock::{create_locked, lock_if_dead};

/// A directory of our own that goes away with us.
#[derive(Debug)]
pub(crate) struct TmpEntry {
    dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
    owner: u32,
}

impl TmpEntry {
    pub fn create(tmp: &Path) -> Result<Self, StoreError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let owner = std::process::id();
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos();
            let name = format!("{owner}-{}-{time:x}", COUNTER.fetch_add(1, Ordering::Relaxed));
            let lock_path = tmp.join(format!("{name}.lock"));
            let lock = match create_locked(&lock_path) {
                Ok(lock) => lock,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::WouldBlock
                    ) =>
                {
                    continue;
                }
                Err(error) => return Err(StoreError::io("create", &lock_path)(error)),
            };
            let entry = Self {
                dir: tmp.join(name),
                lock_path,
                _lock: lock,
                owner,
            };
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&entry.dir)
                .map_err(StoreError::io("create directory", &entry.dir))?;
            return Ok(entry);
        }
    }

    /// A path in the entry.
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for TmpEntry {
    fn drop(&mut self) {
        // A forked child has a copy of this, and must not take its parent's files away.
        if self.owner == std::process::id() {
            // Looking into it takes a descriptor, of which there may be none left: the empty one goes without.
            let _ = std::fs::remove_dir(&self.dir).or_else(|_| std::fs::remove_dir_all(&self.dir));
            let _ = std::fs::remove_file(&self.lock_path);
        }
    }
}

/// Removes the entries whose owners are gone, and says how many.
pub(crate) fn sweep(tmp: &Path) -> Result<usize, StoreError> {
    let read = || StoreError::io("read directory", tmp);
    let mut removed = 0;
    for entry in std::fs::read_dir(tmp).map_err(read())? {
        let path = entry.map_err(read())?.path();
        let is_lock = path.extension().is_some_and(|extension| extension == "lock");
        let (dir, lock_path) = match is_lock {
            true => (path.with_extension(""), path.clone()),
            false => (path.clone(), path.with_extension("lock")),
        };
        let nobodys =
            !is_lock && path.symlink_metadata().is_ok() && matches!(lock_path.try_exists(), Ok(false));
        let lock = lock_if_dead(&lock_path).map_err(StoreError::io("lock", &lock_path))?;
        if nobodys || lock.is_some() {
            remove(&dir);
            let _ = std::fs::remove_file(&lock_path);
            removed += 1;
        }
    }
    Ok(removed)
}

fn remove(path: &Path) {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    };
    // Another sweep may be at it too; what is left is there the next time.
    drop(gone);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_swept_and_what_is_owned_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let live = TmpEntry::create(tmp.path()).unwrap();
        std::fs::write(live.join("file"), "mine").unwrap();
        // As a killed process leaves it: files there, lock not held.
        std::fs::create_dir(tmp.path().join("1-0-a")).unwrap();
        std::fs::write(tmp.path().join("1-0-a/file"), "gone").unwrap();
        std::fs::write(tmp.path().join("1-0-a.lock"), "").unwrap();
        std::fs::create_dir(tmp.path().join("nobodys")).unwrap();
        std::fs::write(tmp.path().join("2-0-b.lock"), "").unwrap();
        assert_eq!(sweep(tmp.path()).unwrap(), 3);
        assert_eq!(std::fs::read_to_string(live.join("file")).unwrap(), "mine");
        assert_eq!(sweep(tmp.path()).unwrap(), 0);
        drop(live);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn sweeps_and_owners_at_once_do_not_harm_each_other() {
        let tmp = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for i in 0..100 {
                        let entry = TmpEntry::create(tmp.path()).unwrap();
                        std::fs::write(entry.join("file"), i.to_string()).unwrap();
                        std::thread::yield_now();
                        assert_eq!(
                            std::fs::read_to_string(entry.join("file")).unwrap(),
                            i.to_string()
                        );
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..200 {
                    sweep(tmp.path()).unwrap();
                }
            });
        });
        sweep(tmp.path()).unwrap();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
