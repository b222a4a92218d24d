//! The state directory: who uses the network, and which index is whose.
//!
//! Everything here rests on flock(2), which the kernel gives up for a process that dies in any way:
//! - the directory itself is locked while anything is changed, by one thread of one process at a time;
//! - `members` is locked shared by every process that has the network open;
//! - `lease-<index>` is locked by whoever uses that index. It holds what the rules say of it, so that the whole
//!   table can be made anew at any time. A lease whose lock can be had belongs to nobody.
//!
//! Names are made and removed only under the directory's lock, so that nobody locks a file that has lost its name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::name::IfName;
use crate::range::Index;
use crate::reach::Reach;

/// More than the longest record: 64 entries of 64 addresses.
const MAX_BYTES: u64 = 1 << 20;

/// What all processes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shared {
    /// In the mark of our table and the alias of our TAPs.
    pub(crate) instance: Instance,
    pub(crate) namespace: Namespace,
    pub(crate) range: Ipv4Net,
    pub(crate) table: String,
    pub(crate) tap_prefix: String,
    /// Where the search for a free index begins, so that one is used again as late as possible.
    pub(crate) next: u32,
    /// Interfaces by which guests leave, and whether they forward only because we told them to.
    pub(crate) uplinks: BTreeMap<String, bool>,
}

/// 16 hexadecimal digits that no other instance has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Instance(String);

impl TryFrom<String> for Instance {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Instance, &'static str> {
        match text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(Instance(text)),
            false => Err("an instance is named by 16 hexadecimal digits"),
        }
    }
}

impl Instance {
    /// The name of the chain that marks our table.
    pub(crate) fn mark(&self) -> String {
        format!("owner-{}", self.0)
    }

    /// What the alias of each of our TAPs begins with.
    pub(crate) fn alias_start(&self) -> String {
        format!("spore-network {}", self.0)
    }

    /// The alias of an index's TAP.
    pub(crate) fn alias(&self, index: Index) -> String {
        format!("{} {:x}", self.alias_start(), index.0)
    }
}

/// A network namespace, by the device and inode number of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace(u64, u64);

impl Namespace {
    /// The calling thread's.
    pub(crate) fn current() -> Result<Namespace, NetworkError> {
        let path = Path::new("/proc/thread-self/ns/net");
        let found = fs::metadata(path).map_err(NetworkError::state(path))?;
        Ok(Namespace(found.dev(), found.ino()))
    }
}

/// The right to an index: whoever holds a descriptor of this file, locked.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) file: File,
}

/// What the rules say of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) index: Index,
    pub(crate) reach: Reach,
}

/// The directory, locked.
#[derive(Debug)]
pub(crate) struct Locked {
    path: PathBuf,
    directory: File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        unlock(&self.directory);
    }
}

/// Gives a lock up at once, whoever else has the descriptor (a child between fork and exec).
pub(crate) fn unlock(file: impl AsFd) {
    if let Err(error) = rustix::fs::flock(file, FlockOperation::Unlock) {
        tracing::warn!("unlocking: {error}");
    }
}

fn wait_for(file: impl AsFd, operation: FlockOperation) -> io::Result<()> {
    loop {
        match rustix::fs::flock(&file, operation) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether the lock could be had.
fn try_lock(file: impl AsFd, operation: FlockOperation) -> io::Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether nobody holds a lock of the file.
fn is_free(file: &File) -> io::Result<bool> {
    let free = try_lock(file, FlockOperation::NonBlockingLockExclusive)?;
    if free {
        unlock(file);
    }
    Ok(free)
}

/// Makes the directory if it is missing, and waits for its lock.
pub(crate) fn lock(path: &Path) -> Result<Locked, NetworkError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(NetworkError::state(path))?;
    let directory = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)
        .map_err(NetworkError::state(path))?;
    wait_for(&directory, FlockOperation::LockExclusive).map_err(NetworkError::state(path))?;
    Ok(Locked {
        path: path.to_owned(),
        directory,
    })
}

fn open(path: &Path, new: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(!new)
        .create_new(new)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn read<T: for<'a> Deserialize<'a>>(file: &File) -> io::Result<T> {
    let mut bytes = Vec::new();
    FromStart(file, 0).take(MAX_BYTES).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}

/// Reads a file whose position belongs to others, too.
struct FromStart<'a>(&'a File, u64);

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read_at(buffer, self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}

impl Locked {
    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn lease_path(&self, index: Index) -> PathBuf {
        self.file(&format!("lease-{:x}", index.0))
    }

    /// What the processes share, if there is any.
    pub(crate) fn shared(&self) -> Result<Option<Shared>, NetworkError> {
        let path = self.file("state.json");
        match File::open(&path).and_then(|file| read(&file)) {
            Ok(shared) => Ok(Some(shared)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NetworkError::state(&path)(error)),
        }
    }

    /// Writes what the processes share, whole or not at all.
    pub(crate) fn set_shared(&self, shared: &Shared) -> Result<(), NetworkError> {
        let (new, path) = (self.file("state.new"), self.file("state.json"));
        serde_json::to_vec(shared)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(NetworkError::state(&path))
    }

    /// Says that this process has the network open, for as long as the file is.
    pub(crate) fn join(&self) -> Result<File, NetworkError> {
        let path = self.file("members");
        let file = open(&path, false).map_err(NetworkError::state(&path))?;
        // Exclusive locks are only tried for, under the directory's lock, and given up at once.
        wait_for(&file, FlockOperation::LockShared).map_err(NetworkError::state(&path))?;
        Ok(file)
    }

    /// Whether a process has the network open. (This one's own membership counts.)
    pub(crate) fn has_members(&self) -> Result<bool, NetworkError> {
        let path = self.file("members");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => {
                let file = other.map_err(NetworkError::state(&path))?;
                Ok(!is_free(&file).map_err(NetworkError::state(&path))?)
            }
        }
    }

    /// A lease of this index, unless it has one.
    pub(crate) fn lease(&self, record: &Record) -> Result<Option<Lease>, NetworkError> {
        let path = self.lease_path(record.index);
        let file = match open(&path, true) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            other => other.map_err(NetworkError::state(&path))?,
        };
        let written = try_lock(&file, FlockOperation::NonBlockingLockExclusive).and_then(|_| {
            let bytes = serde_json::to_vec(record)?;
            file.write_all_at(&bytes, 0)
        });
        if let Err(error) = written {
            self.end_lease(record.index);
            return Err(NetworkError::state(&path)(error));
        }
        Ok(Some(Lease { file }))
    }

    /// Removes the file of an index.
    pub(crate) fn end_lease(&self, index: Index) {
        let path = self.lease_path(index);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!("{}: {error}", path.display());
        }
    }

    /// The records of the leases that somebody holds, and the indexes of those that nobody does.
    pub(crate) fn leases(&self) -> Result<(Vec<Record>, Vec<Index>), NetworkError> {
        let (mut living, mut dead) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path).map_err(NetworkError::state(&self.path))? {
            let name = entry.map_err(NetworkError::state(&self.path))?.file_name();
            let index = name.to_str().and_then(|name| name.strip_prefix("lease-"));
            let Some(index) = index.and_then(|digits| u32::from_str_radix(digits, 16).ok()) else {
                continue;
            };
            let path = self.lease_path(Index(index));
            let file = File::open(&path).map_err(NetworkError::state(&path))?;
            match is_free(&file).map_err(NetworkError::state(&path))? {
                true => dead.push(Index(index)),
                false => living.push(read(&file).map_err(NetworkError::state(&path))?),
            }
        }
        living.sort_by_key(|record: &Record| record.index);
        dead.sort();
        Ok((living, dead))
    }

    /// What a lease says.
    pub(crate) fn record(&self, lease: &Lease) -> Result<Record, NetworkError> {
        read(&lease.file).map_err(NetworkError::state(&self.path))
    }

    /// Whether `lease` is the file of the index that it says, and locked; if it is, what it says.
    pub(crate) fn recognise(&self, lease: OwnedFd) -> Result<(Lease, Record), NetworkError> {
        let file = File::from(lease);
        let record: Record = read(&file).map_err(NetworkError::state(&self.path))?;
        let path = self.lease_path(record.index);
        let same = || -> io::Result<bool> {
            let (ours, named) = (file.metadata()?, fs::metadata(&path)?);
            Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino())
                && try_lock(&file, FlockOperation::NonBlockingLockExclusive)?)
        };
        match same().map_err(NetworkError::state(&path))? {
            true => Ok((Lease { file }, record)),
            false => Err(NetworkError::state(&path)(io::Error::other(
                "the descriptor is no lease of this network",
            ))),
        }
    }

    /// Removes everything, after the last one.
    pub(crate) fn clear(&self) {
        for name in ["state.json", "state.new", "members"] {
            let path = self.file(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("{}: {error}", path.display());
                }
                _ => {}
            }
        }
    }
}

impl Shared {
    /// The uplinks, and of these the ones that forward only for us.
    pub(crate) fn uplink_names(&self) -> Result<Vec<(IfName, bool)>, NetworkError> {
        self.uplinks
            .iter()
            .map(|(name, ours)| {
                Ok((
                    IfName::try_from(name.clone()).map_err(NetworkError::Config)?,
                    *ours,
                ))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u32) -> Record {
        Record {
            index: Index(index),
            reach: Reach::Everything,
        }
    }

    #[test]
    fn a_lease_belongs_to_whoever_holds_it_and_to_nobody_after() {
        let dir = tempfile::tempdir().unwrap();
        let lease = lock(dir.path()).unwrap().lease(&record(0xab)).unwrap().unwrap();
        let locked = lock(dir.path()).unwrap();
        assert!(locked.lease(&record(0xab)).unwrap().is_none());
        assert_eq!(locked.leases().unwrap(), (vec![record(0xab)], vec![]));
        let copy = lease.file.try_clone().unwrap();
        drop(lease);
        assert_eq!(locked.leases().unwrap().0.len(), 1, "the copy holds it");
        drop(copy);
        assert_eq!(locked.leases().unwrap(), (vec![], vec![Index(0xab)]));
        locked.end_lease(Index(0xab));
        assert_eq!(locked.leases().unwrap(), (vec![], vec![]));
    }

    #[test]
    fn only_a_lease_of_this_directory_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let lease = lock(dir.path()).unwrap().lease(&record(3)).unwrap().unwrap();
        let theirs = lock(other.path()).unwrap().lease(&record(3)).unwrap().unwrap();
        let locked = lock(dir.path()).unwrap();
        assert!(locked.recognise(theirs.file.into()).is_err());
        let (_, record) = locked.recognise(lease.file.into()).unwrap();
        assert_eq!(record.index, Index(3));
    }

    #[test]
    fn members_are_seen_until_the_last_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let locked = lock(dir.path()).unwrap();
        assert!(!locked.has_members().unwrap());
        let (one, two) = (locked.join().unwrap(), locked.join().unwrap());
        drop(one);
        assert!(locked.has_members().unwrap());
        drop(two);
        assert!(!locked.has_members().unwrap());
    }

    #[test]
    fn state_that_says_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let locked = lock(dir.path()).unwrap();
        for text in ["", "{", r#"{"instance":"x; drop"}"#] {
            fs::write(dir.path().join("state.json"), text).unwrap();
            assert!(locked.shared().is_err(), "{text}");
        }
    }
}
