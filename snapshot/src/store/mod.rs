//! The store: where layers, checkpoints and images lie, and how they come and go.
//!
//! | in the data directory | |
//! |---|---|
//! | `bases/<digest>` | raw disk images to start from |
//! | `layers/<digest>` | sealed layers |
//! | `checkpoints/<id>/` | [checkpoints](crate::checkpoint) |
//! | `images/<id>.json`, `images/names/<name>` | images, and which of them a name means |
//! | `steps/<key>` | which layers the disk has after a step of a build |
//! | `run/<id>/` | one running VM's files; it holds a lock in it for as long as it lives |
//! | `run/.verified/` | which files were read and found intact, and what they looked like then |
//! | `tmp/` | what isn't finished, or is going away |
//! | `version` | the form of all this |
//!
//! A thing is written in `tmp/`, made durable, and renamed to its place: whatever moment the host crashes at,
//! it is there whole or not at all. What is published is never written again. To delete is to rename into
//! `tmp/` and remove there; who has the files open keeps them.
//!
//! Any number of processes may use one store at once. [`Store`] has no state besides the directory; clone it
//! freely.

mod checkpoints;
mod error;
mod gc;
mod images;
mod layers;
mod lock;
mod publish;
mod run_dir;
mod stamp;
mod steps;
mod tmp;
mod version;

use std::path::{Path, PathBuf};

pub use checkpoints::{Checkpoint, CheckpointDisk, CheckpointMeta, CheckpointWriter};
pub use error::StoreError;
pub use gc::{GcReport, Keep};
pub use images::{Image, ImageCheckpoint, ImageRecord};
pub use lock::Hold;
pub use run_dir::RunDir;
pub use steps::{CachedStep, PruneSteps, StepEntry};

/// How much of what lies on the disk is believed without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// A file that was read and found intact since the host booted, and has the inode, size and times it had
    /// then, is not read again.
    #[default]
    Stamps,
    /// Nothing: every byte is read and compared with its digest.
    Nothing,
}

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

const DIRS: [&str; 9] = [
    "",
    "bases",
    "layers",
    "checkpoints",
    "images",
    "images/names",
    "steps",
    "run",
    "run/.verified",
];

impl Store {
    /// Opens the store in `data_dir`, making what is missing of it (mode 0700), and removes what processes that
    /// are gone left in `tmp/` and `run/`. What belongs to a living process is left alone.
    ///
    /// # Errors
    /// When a directory can't be made or read, or is of a later build.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let store = Self::attach(data_dir);
        let version = store.version()?;
        for dir in DIRS.iter().chain(&["tmp"]) {
            store.make_dir(&store.root.join(dir))?;
        }
        // What will be durable in them is so only if they are; whoever made them may not have come to this.
        let images = store.images_dir();
        for dir in [&store.root, &images, &images.join("names")] {
            publish::sync_parent(dir)?;
        }
        if version.is_none() {
            store.say_version()?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// Uses the store in `data_dir` as it is: nothing is made or swept. For processes that
    /// [open](Store::open)ing would cost time.
    pub fn attach(data_dir: &Path) -> Self {
        Self {
            root: data_dir.to_owned(),
        }
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes what processes that are gone left in `tmp/` and `run/`, and says how many entries that were.
    ///
    /// # Errors
    /// When a directory can't be read. An entry that can't be removed is left for the next time.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        Ok(run_dir::sweep(self)? + tmp::sweep(&self.tmp_dir())?)
    }

    fn make_dir(&self, path: &Path) -> Result<(), StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(StoreError::io("create directory", path))
    }

    fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn bases_dir(&self) -> PathBuf {
        self.root.join("bases")
    }

    /// Where a checkpoint's files are, for a VM process that maps them. Open the checkpoint first:
    /// that is what checks them.
    pub fn checkpoint_dir(&self, id: &crate::CheckpointId) -> PathBuf {
        self.checkpoints_dir().join(id.to_string())
    }

    fn checkpoints_dir(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    fn verified_dir(&self) -> PathBuf {
        self.root.join("run/.verified")
    }

    fn tmp(&self) -> Result<tmp::TmpEntry, StoreError> {
        tmp::TmpEntry::create(&self.tmp_dir())
    }
}
