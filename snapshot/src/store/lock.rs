//! Locks that end with their owner: `flock(2)` on a file. The kernel drops one when the last process that holds
//! the open file is gone, so a crash leaves none behind.
//!
//! A forked child shares its parent's locks. It doesn't keep what they guard: dropped in another process than
//! it was made in, an owner only closes its copy.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Store, StoreError};

/// Makes and locks a new file at `path`.
///
/// # Errors
/// `AlreadyExists` when there is one, `WouldBlock` when a sweep took it from us before it was locked: try
/// another name.
pub(crate) fn create_locked(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    match is_at(&file, path)? {
        true => Ok(file),
        false => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Locks the file at `path` if its owner is gone. `None` when it lives, or the file went away.
pub(crate) fn lock_if_dead(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_at(&file, path)? => Ok(Some(file)),
        Ok(()) | Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether `path` still names the open file.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// While this lives, no garbage is collected: what was just put into the store stays until something refers to
/// it. Any number of them may be held at once.
#[derive(Debug)]
pub struct Hold(#[allow(dead_code, reason = "held for its lock")] Lock);

/// A lock that its owner gives up when it is dropped, whoever has a copy of the descriptor by then: a child of this
/// process has one of every descriptor until it executes its program, and a lock that went only with the last copy
/// would be held a while longer, by nobody.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    owner: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            // It fails for a descriptor that isn't open, and this one is.
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

impl Store {
    /// Keeps garbage from being collected. Hold it from adopting a layer until a checkpoint, an image or a
    /// run directory refers to it. Waits while a collection is under way.
    ///
    /// # Errors
    /// When the lock file can't be opened.
    pub fn hold(&self) -> Result<Hold, StoreError> {
        self.gc_lock(FlockOperation::LockShared).map(Hold)
    }

    /// The collector's side: fails with [`StoreError::Busy`] while anyone holds.
    pub(super) fn exclude_holders(&self) -> Result<Lock, StoreError> {
        self.gc_lock(FlockOperation::NonBlockingLockExclusive)
    }

    /// For changes of image records that read before they write.
    pub(super) fn lock_images(&self) -> Result<Lock, StoreError> {
        lock(&self.images_dir().join(".lock"), FlockOperation::LockExclusive)
    }

    fn gc_lock(&self, operation: FlockOperation) -> Result<Lock, StoreError> {
        lock(&self.root.join(".hold"), operation)
    }
}

fn lock(path: &Path, operation: FlockOperation) -> Result<Lock, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io("open", path))?;
    loop {
        match flock(&file, operation) {
            Ok(()) => {
                return Ok(Lock {
                    file,
                    owner: std::process::id(),
                });
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Busy),
            Err(errno) => return Err(StoreError::io("lock", path)(errno.into())),
        }
    }
}
