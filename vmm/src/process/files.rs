//! The files of a machine. Its owner opens them all: the machine's process is handed descriptors and opens nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::error::{VmError, errno_in};
use super::message::{Failure, FailureKind};
use crate::disk::StackSpec;
use crate::socket;

fn refused(kind: FailureKind, path: &Path) -> impl FnOnce(io::Error) -> VmError {
    let path = path.display().to_string();
    move |error| {
        VmError::Failed(Failure {
            kind,
            message: format!("cannot open {path}: {error}"),
            errno: errno_in(&error),
        })
    }
}

/// A file to read.
pub(super) fn to_read(kind: FailureKind, path: &Path) -> Result<OwnedFd, VmError> {
    // Not blocking, or a pipe under this name would hang us. It means nothing for a regular file.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path);
    file.map(OwnedFd::from).map_err(refused(kind, path))
}

/// The layers of a disk, in their order.
pub(super) fn layers(stack: &StackSpec) -> Result<Vec<OwnedFd>, VmError> {
    let paths = stack.layers.iter().map(|layer| &layer.path);
    paths.map(|path| to_read(FailureKind::Disk, path)).collect()
}

/// A file that is not there yet.
pub(super) fn to_make(kind: FailureKind, path: &Path) -> Result<OwnedFd, VmError> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map(OwnedFd::from).map_err(refused(kind, path))
}

/// Where the serial console is logged.
pub(super) fn console(path: &Path) -> Result<OwnedFd, VmError> {
    File::create(path)
        .map(OwnedFd::from)
        .map_err(refused(FailureKind::Host, path))
}

/// Where clients of the guest's vsock ports connect.
pub(super) fn vsock(path: &Path) -> Result<OwnedFd, VmError> {
    socket::bind(path)
        .map(OwnedFd::from)
        .map_err(refused(FailureKind::Host, path))
}

/// The page table of a process. Who may see where pages are in the host's memory passes that on with it (`show_pfn` in
/// fs/proc/task_mmu.c), and a machine's process is none to know: so it is opened by a thread that may not.
pub(super) fn pagemap(pid: u32) -> io::Result<OwnedFd> {
    let open = move || {
        let mut own = capabilities(None)?;
        if own.effective.contains(CapabilitySet::SYS_ADMIN) {
            own.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, own)?;
        }
        File::open(format!("/proc/{pid}/pagemap"))
    };
    let thread = std::thread::Builder::new().spawn(open)?;
    let file = thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(file.into())
}

/// Resident memory of a process, in bytes; 0 when it cannot be read.
pub(super) fn resident_bytes(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0u64).saturating_mul(4096)
}

/// Where a machine's disk is written to, and where it will be.
#[derive(Clone, Debug)]
pub struct Overlays {
    /// The present overlay's file.
    pub present: PathBuf,
    /// The next one's, which must not exist.
    pub next: PathBuf,
}

impl Overlays {
    /// The next, and the present to read.
    pub(super) fn open(&self) -> Result<[OwnedFd; 2], VmError> {
        let present = to_read(FailureKind::Disk, &self.present)?;
        Ok([to_make(FailureKind::Disk, &self.next)?, present])
    }

    /// Removes the next if its process had no use for it: one that is in use has a length. Where the process did not
    /// answer, it may yet come to that.
    pub(super) fn clean_up(&self, next: &OwnedFd, error: Option<&VmError>) {
        let unused = rustix::fs::fstat(next.as_fd()).is_ok_and(|stat| stat.st_size == 0);
        if unused && !matches!(error, Some(VmError::Control(_))) {
            let _ = std::fs::remove_file(&self.next);
        }
    }
}
