//! A data directory for once, in the user's: that of a demonstration, or of the matrix.
//!
//! Its lock is on the directory itself, so that no lock file is left. What a process that was killed left there
//! goes when the next one starts; it is known by a file of our own, so that nothing of somebody else's is ever
//! removed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Says whose directory it is. The last file to go.
const MARK: &str = ".spore-scratch";

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// Another process works in it.
    #[error("another `spore` uses {}; wait for it, or choose another place with --data", .0.display())]
    Busy(PathBuf),
    /// There is something that is not our own.
    #[error("{} is somebody's: remove it, or choose another place with --data", .0.display())]
    NotOurs(PathBuf),
    /// A file of this host's.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The directory, while somebody has it. It is removed when this is dropped.
pub(crate) struct Scratch {
    path: PathBuf,
    /// The user's data directory, if it was not there before us.
    made_data: Option<PathBuf>,
    _lock: File,
}

impl Scratch {
    /// Makes the directory `name` in `data`, or empties the one that was left.
    pub(crate) fn take(data: &Path, name: &str) -> Result<Self, ScratchError> {
        let made_data = (!data.exists()).then(|| data.to_owned());
        fs::create_dir_all(data).map_err(at(data))?;
        let path = data.join(name);
        let lock = lock(&path)?;
        let scratch = Self {
            path,
            made_data,
            _lock: lock,
        };
        scratch.claim()?;
        Ok(scratch)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Empties the directory and marks it as ours.
    fn claim(&self) -> Result<(), ScratchError> {
        let mark = self.path.join(MARK);
        let mut entries = fs::read_dir(&self.path).map_err(at(&self.path))?;
        if entries.next().is_some() && !mark.exists() {
            return Err(ScratchError::NotOurs(self.path.clone()));
        }
        self.empty().map_err(at(&self.path))?;
        fs::write(&mark, "").map_err(at(&mark))
    }

    /// Removes all but the mark.
    fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() == MARK {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn take_away(&self) -> io::Result<()> {
        let mark = self.path.join(MARK);
        // Of somebody else's directory nothing is removed.
        if mark.exists() {
            self.empty()?;
            fs::remove_file(mark)?;
            fs::remove_dir(&self.path)?;
        }
        if let Some(data) = &self.made_data {
            // Somebody may use it by now.
            let _ = fs::remove_dir(data);
        }
        Ok(())
    }

    /// Removes the directory, and says what of it is left.
    pub(crate) fn remove(self) -> Vec<String> {
        let gone = self.take_away();
        match gone {
            Err(error) => vec![format!("file {}: {error}", self.path.display())],
            Ok(()) if self.path.exists() => vec![format!("file {}", self.path.display())],
            Ok(()) => Vec::new(),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Twice does no harm; who wants to hear of a failure calls `remove`.
        let _ = self.take_away();
    }
}

/// The directory at `path`, made if there is none, with its lock.
fn lock(path: &Path) -> Result<File, ScratchError> {
    loop {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(path)(error)),
            _ => {}
        }
        if !path.is_dir() {
            return Err(ScratchError::NotOurs(path.to_owned()));
        }
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(at(path))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(ScratchError::Busy(path.to_owned())),
            locked => locked.map_err(|error| at(path)(error.into()))?,
        }
        // Whoever had it may have removed it before we had the lock: then this is another directory.
        let ours = file.metadata().map_err(at(path))?;
        if fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ScratchError {
    let path = path.to_owned();
    move |source| ScratchError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_leaves_nothing_not_even_the_data_directory_it_made() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        let scratch = Scratch::take(&data, "demo").unwrap();
        fs::create_dir(scratch.path().join("layers")).unwrap();
        assert_eq!(scratch.remove(), [""; 0]);
        assert!(!data.exists());

        fs::create_dir(&data).unwrap();
        drop(Scratch::take(&data, "demo").unwrap());
        assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_demo_left_goes() {
        let data = tempfile::tempdir().unwrap();
        let left = data.path().join("demo/run/vm-1");
        fs::create_dir_all(&left).unwrap();
        fs::write(data.path().join("demo").join(MARK), "").unwrap();
        let scratch = Scratch::take(data.path(), "demo").unwrap();
        assert!(!left.exists());
        assert!(scratch.path().join(MARK).exists());
    }

    #[test]
    fn somebody_elses_directory_is_left_alone() {
        let data = tempfile::tempdir().unwrap();
        let theirs = data.path().join("demo/slides");
        fs::create_dir_all(&theirs).unwrap();
        assert!(matches!(
            Scratch::take(data.path(), "demo"),
            Err(ScratchError::NotOurs(_))
        ));
        assert!(theirs.exists());
        let file = tempfile::tempdir().unwrap();
        fs::write(file.path().join("demo"), "").unwrap();
        assert!(matches!(
            Scratch::take(file.path(), "demo"),
            Err(ScratchError::NotOurs(_))
        ));
    }

    #[test]
    fn two_at_once_are_refused() {
        let data = tempfile::tempdir().unwrap();
        let first = Scratch::take(data.path(), "demo").unwrap();
        assert!(matches!(
            Scratch::take(data.path(), "demo"),
            Err(ScratchError::Busy(_))
        ));
        assert!(first.path().join(MARK).exists());
    }
}
