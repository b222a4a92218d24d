//! Where everything of a test run lies: one directory, removed at its end.
//!
//! It is named after the process, `spore-tests-<pid>`. A run that is killed cannot remove its directory; the
//! next one does, before it makes its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "spore-tests-";

/// The directory of this process.
pub fn root() -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()))
}

/// Makes the directory, and removes those of processes that are gone.
pub fn begin() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    // Of a process that had our number.
    let _ = std::fs::remove_dir_all(root());
    std::fs::create_dir(root()).unwrap();
}

/// Removes the directory.
pub fn end() {
    std::fs::remove_dir_all(root()).unwrap();
}

/// Copies a file or a directory with all it holds. Holes stay holes.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .args(["--archive", "--dereference", "--sparse=always"])
        .args([from, to])
        .status();
    assert!(
        status.unwrap().success(),
        "{} to {}",
        from.display(),
        to.display()
    );
}

/// A new data directory that no other test uses. It is removed when dropped, unless the test panics: then
/// [`end`] does it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    #[allow(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = root().join(format!("scratch-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }
}
