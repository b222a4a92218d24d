//! What is on a disk after the power failed.
//!
//! A file system promises what was synced and little else: a file's bytes by fsync of the file, a name by fsync of the
//! directory it is in (fsync(2)). Between "only what was promised" and "everything" it may do as it likes; three states
//! are made of a crash, among them the two ends:
//!
//! | | names | bytes |
//! |---|---|---|
//! | [`After::Promised`] | as last synced | as last synced |
//! | [`After::NamesFirst`] | all | as last synced: renames went ahead of data |
//! | [`After::All`] | all | all: the process was killed, the host was not |

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Promised,
    NamesFirst,
    All,
}

impl After {
    pub const EACH: [Self; 3] = [Self::Promised, Self::NamesFirst, Self::All];
}

/// A file or directory through all its names; numbers are given again, times are not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    inode: u64,
    created: SystemTime,
    is_dir: bool,
}

fn node(metadata: &Metadata) -> Node {
    Node {
        inode: metadata.ino(),
        created: metadata.created().unwrap(),
        is_dir: metadata.is_dir(),
    }
}

#[derive(Clone)]
struct Bytes {
    mode: u32,
    all: Arc<[u8]>,
}

/// What of a directory tree was synced so far.
#[derive(Default)]
pub struct Synced {
    files: HashMap<Node, Bytes>,
    names: HashMap<Node, BTreeMap<OsString, Node>>,
}

impl Synced {
    /// All that is there now.
    pub fn everything(root: &Path) -> Self {
        let mut synced = Self::default();
        synced.take_all(root);
        synced
    }

    fn take_all(&mut self, path: &Path) {
        self.sync(path);
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                self.take_all(&entry.unwrap().path());
            }
        }
    }

    /// A file or directory is synced.
    pub fn sync(&mut self, path: &Path) {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            let entries = std::fs::read_dir(path).unwrap().map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name(), node(&entry.metadata().unwrap()))
            });
            self.names.insert(node(&metadata), entries.collect());
        } else {
            self.files.insert(node(&metadata), bytes(path));
        }
    }

    /// Makes in `to` what would be found of `live`.
    pub fn restore(&self, live: &Path, to: &Path, after: After) {
        match after {
            After::Promised => self.promised(node(&live.metadata().unwrap()), to),
            After::NamesFirst | After::All => self.by_name(live, to, after),
        }
    }

    /// A directory that no sync has reached is empty, and so is such a file.
    fn promised(&self, directory: Node, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for (name, node) in self.names.get(&directory).into_iter().flatten() {
            let to = to.join(name);
            match node.is_dir {
                true => self.promised(*node, &to),
                false => self.synced_bytes(node, &to),
            }
        }
    }

    fn by_name(&self, live: &Path, to: &Path, after: After) {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(live).unwrap() {
            let entry = entry.unwrap();
            let (metadata, to) = (entry.metadata().unwrap(), to.join(entry.file_name()));
            if metadata.is_dir() {
                self.by_name(&entry.path(), &to, after);
            } else if after == After::All {
                write(&to, &bytes(&entry.path()));
            } else {
                self.synced_bytes(&node(&metadata), &to);
            }
        }
    }

    fn synced_bytes(&self, file: &Node, to: &Path) {
        match self.files.get(file) {
            Some(bytes) => write(to, bytes),
            None => drop(File::create_new(to).unwrap()),
        }
    }
}

fn bytes(path: &Path) -> Bytes {
    Bytes {
        mode: path.metadata().unwrap().mode(),
        all: std::fs::read(path).unwrap().into(),
    }
}

/// Holes stay holes.
fn write(to: &Path, bytes: &Bytes) {
    let file = File::create_new(to).unwrap();
    file.set_len(bytes.all.len() as u64).unwrap();
    for (at, piece) in bytes.all.chunks(4096).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, at as u64 * 4096).unwrap();
        }
    }
    file.set_permissions(Permissions::from_mode(bytes.mode & 0o7777))
        .unwrap();
}
