//! Who may do what with a base at the same time, and removing one.
//!
//! Two lock files beside the bases: `.<name>.lock` is held by whoever makes the base, `guest/bases/build.sh`
//! or an import; `.<name>.use` by everyone who reads it. A base can be made anew while an old one is read,
//! because it is another directory; it is removed only while nobody does either.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{BaseError, BaseStore, parse_description, read_bounded};
use crate::manifest::BaseName;

/// Only one at a time makes a base of a name; it is whoever has this.
#[derive(Debug)]
pub struct Building {
    _lock: File,
}

fn open(directory: &Path, name: &BaseName, which: &str) -> io::Result<File> {
    let path = directory.join(format!(".{name}.{which}"));
    File::options().create(true).append(true).open(path)
}

/// Keeps the base from being removed while the file is open. Waits while it is being removed. None where
/// there is no base, or no file can be made; what is missing is found out by whoever reads it.
pub(super) fn reading(directory: &Path, name: &BaseName) -> Option<File> {
    if !directory.join(name.as_str()).exists() {
        return None;
    }
    let file = open(directory, name, "use").ok()?;
    flock(&file, FlockOperation::LockShared).ok()?;
    Some(file)
}

impl BaseStore {
    /// Waits until nobody else makes a base called `name`, and sweeps away what those left who were killed
    /// while they did.
    ///
    /// # Errors
    /// Of the file system.
    pub fn building(&self, name: &BaseName) -> io::Result<Building> {
        fs::create_dir_all(self.directory())?;
        let lock = open(self.directory(), name, "lock")?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let prefix = format!(".{name}.");
        for entry in fs::read_dir(self.directory())?.flatten() {
            let file_name = entry.file_name();
            let is_work = file_name
                .to_str()
                .and_then(|text| text.strip_prefix(&prefix))
                .is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_alphanumeric()));
            if is_work && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Building { _lock: lock })
    }

    /// Removes a base and everything that was ever built under its name. Images built on it stay: they have a
    /// copy of what they need. A damaged base is removed too.
    ///
    /// # Errors
    /// [`BaseError`]: unknown, busy, or it could not be removed.
    pub fn remove(&self, name: &BaseName) -> Result<(), BaseError> {
        let path = self.directory().join(name.as_str());
        if fs::symlink_metadata(&path).is_err() {
            let (known, directory) = (self.names(), self.directory().to_owned());
            return Err(BaseError::Unknown {
                name: name.clone(),
                known,
                directory,
            });
        }
        let stays = |path: &Path| {
            let (name, path) = (name.clone(), path.to_owned());
            move |cause| BaseError::Stays { name, path, cause }
        };
        let mut locks = Vec::new();
        for which in ["lock", "use"] {
            let lock = open(self.directory(), name, which).map_err(stays(&path))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => locks.push(lock),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(BaseError::Busy { name: name.clone() }),
                Err(errno) => return Err(stays(&path)(errno.into())),
            }
        }
        let builds: Vec<_> = fs::read_dir(self.directory())
            .map_err(stays(self.directory()))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_build_of(name, path))
            .collect();
        // The name goes first: nobody is to find half of a base.
        let link = fs::symlink_metadata(&path).map_err(stays(&path))?;
        if link.is_dir() {
            let description = path.join("base.json");
            match fs::remove_file(&description) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(stays(&description)(error));
                }
                _ => fs::remove_dir_all(&path).map_err(stays(&path))?,
            }
        } else {
            fs::remove_file(&path).map_err(stays(&path))?;
        }
        builds
            .iter()
            .try_for_each(|build| fs::remove_dir_all(build).map_err(stays(build)))
    }
}

/// Whether this is a directory `<name>-<hash>` that is a base of this name.
fn is_build_of(name: &BaseName, path: &Path) -> bool {
    let named = path
        .file_name()
        .and_then(|file| file.to_str())
        .is_some_and(|file| {
            file.strip_prefix(name.as_str())
                .is_some_and(|rest| rest.starts_with('-'))
        });
    named
        && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
        && read_bounded(&path.join("base.json")).is_ok_and(|bytes| parse_description(name, &bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn name(text: &str) -> BaseName {
        BaseName::parse(text).unwrap()
    }

    fn put(directory: &Path, at: &str, name: &str) {
        let base = directory.join(at);
        fs::create_dir(&base).unwrap();
        let description = format!(r#"{{"formatVersion":1,"name":"{name}","packageManager":null}}"#);
        fs::write(base.join("base.json"), description).unwrap();
        fs::write(base.join("rootfs.ext4"), [1; 4096]).unwrap();
    }

    #[test]
    fn a_base_goes_with_all_its_builds_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for (at, name) in [("a-1", "a"), ("a-2", "a"), ("a-b", "a-b"), ("ab", "ab")] {
            put(directory.path(), at, name);
        }
        symlink("a-2", directory.path().join("a")).unwrap();
        let store = BaseStore::new(directory.path());
        store.remove(&name("a")).unwrap();
        assert_eq!(store.names(), [name("a-b"), name("ab")]);
        assert!(!directory.path().join("a-1").exists() && !directory.path().join("a-2").exists());
        assert!(matches!(store.remove(&name("a")), Err(BaseError::Unknown { .. })));
        store.remove(&name("ab")).unwrap();
        assert_eq!(store.names(), [name("a-b")]);
    }

    #[test]
    fn a_base_that_is_read_or_made_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path(), "a", "a");
        let store = BaseStore::new(directory.path());
        let base = store.get(&name("a")).unwrap();
        let other = base.clone();
        drop(base);
        assert!(matches!(store.remove(&name("a")), Err(BaseError::Busy { .. })));
        drop(other);
        let building = store.building(&name("a")).unwrap();
        assert!(matches!(store.remove(&name("a")), Err(BaseError::Busy { .. })));
        assert!(store.get(&name("a")).is_ok());
        drop(building);
        store.remove(&name("a")).unwrap();
    }

    #[test]
    fn what_a_killed_build_left_is_swept_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        for work in [".a.x1Y2z3", ".a.b.x1Y2z3", ".a.1234567"] {
            fs::create_dir(directory.path().join(work)).unwrap();
        }
        drop(BaseStore::new(directory.path()).building(&name("a")).unwrap());
        assert!(!directory.path().join(".a.x1Y2z3").exists());
        assert!(
            directory.path().join(".a.b.x1Y2z3").exists() && directory.path().join(".a.1234567").exists()
        );
    }
}
