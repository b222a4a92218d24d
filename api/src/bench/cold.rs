//! Making a checkpoint cold: its files go out of the page cache.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};
use spore_snapshot::checkpoint::{MEMORY_FILE, STATE_FILE};
use spore_snapshot::store::{Checkpoint, Store};

use super::BenchError;

/// Number of `cachestat(2)`, since Linux 6.5.
const SYS_CACHESTAT: libc::c_long = 451;
const PAGE: u64 = 4096;

/// All files of a checkpoint that a fork of it reads: memory, state, layers.
pub fn files(store: &Store, checkpoint: &Checkpoint) -> Vec<PathBuf> {
    let directory = store.checkpoint_dir(&checkpoint.id);
    let mut files = vec![directory.join(MEMORY_FILE), directory.join(STATE_FILE)];
    let layers = checkpoint.disks.iter().flat_map(|disk| &disk.layers);
    files.extend(layers.map(|layer| layer.path().to_owned()));
    files
}

/// Drops files from the page cache, and says how much of them is there all the same, in bytes: what others have
/// mapped stays. `None` where the kernel does not say.
///
/// # Errors
/// [`BenchError::File`].
pub fn drop_from_cache(files: &[PathBuf]) -> Result<Option<u64>, BenchError> {
    let mut left = Some(0);
    for path in files {
        let failed = |source: std::io::Error| BenchError::File {
            path: path.clone(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        fadvise(&file, 0, None, Advice::DontNeed).map_err(|errno| failed(errno.into()))?;
        left = left
            .zip(cached_bytes(&file))
            .map(|(sum, more): (u64, u64)| sum + more);
    }
    Ok(left)
}

/// How much of a file is in the page cache (`cachestat(2)`).
fn cached_bytes(file: &File) -> Option<u64> {
    /// `struct cachestat_range`; all of the file.
    #[repr(C)]
    struct Range {
        offset: u64,
        length: u64,
    }
    /// `struct cachestat`.
    #[repr(C)]
    #[derive(Default)]
    struct Found {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { offset: 0, length: 0 };
    let mut found = Found::default();
    // SAFETY: both structures are laid out as the kernel's (include/uapi/linux/mman.h) and outlive the call.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut found,
            0,
        )
    };
    (result == 0).then_some(found.cached * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_dropped_is_not_cached() {
        const TMPFS: i64 = 0x0102_1994;
        let directory = tempfile::tempdir_in(env!("OUT_DIR")).unwrap();
        let path = directory.path().join("file");
        if rustix::fs::statfs(directory.path()).unwrap().f_type == TMPFS {
            // It has its files nowhere else.
            return;
        }
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        let Some(before) = cached_bytes(&file) else {
            return;
        };
        assert_eq!(before, 1 << 20);
        assert_eq!(drop_from_cache(&[path]).unwrap(), Some(0));
    }
}
