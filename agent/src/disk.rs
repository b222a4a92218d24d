//! The root file system fills a disk that has grown.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use spore_protocol::{DiskReport, Failure, FailureKind};

/// How long the kernel has to take notice of the disk's new size: an interrupt and a work item
/// (virtblk_config_changed in drivers/block/virtio_blk.c).
const NOTICE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// The unit of `/sys/dev/block/*/size`.
const SECTOR: u64 = 512;

/// Waits until the kernel knows that the root disk has `bytes`, and lets its file system fill it, online
/// (ext4_resize_fs in fs/ext4/resize.c).
///
/// # Errors
/// When the kernel does not see the size in time, or the file system cannot grow; it is as large then as it came.
pub fn grow(bytes: u64) -> Result<DiskReport, Failure> {
    let root = File::open("/").map_err(|error| Failure::from_io("open /", &error))?;
    let device = root
        .metadata()
        .map_err(|error| Failure::from_io("look at /", &error))?
        .dev();
    let seen = await_size(device, bytes)?;
    let before = statfs(&root, seen)?;
    let blocks = bytes / before.block_bytes;
    resize(&root, blocks).map_err(|error| {
        let what = format!(
            "grow the file system to {blocks} blocks of {} bytes (it holds {} MiB)",
            before.block_bytes,
            before.report.total_bytes >> 20
        );
        Failure::from_io(what, &error)
    })?;
    Ok(statfs(&root, seen)?.report)
}

/// The size of a disk once it is `bytes` or more.
fn await_size(device: u64, bytes: u64) -> Result<u64, Failure> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/size");
    let deadline = Instant::now() + NOTICE;
    loop {
        let text = fs::read_to_string(&path).map_err(|error| Failure::from_io(&path, &error))?;
        let sectors: u64 = text
            .trim()
            .parse()
            .map_err(|_| Failure::new(FailureKind::Io, format!("{path} is {text:?}")))?;
        let seen = sectors.saturating_mul(SECTOR);
        if seen >= bytes {
            return Ok(seen);
        }
        if Instant::now() >= deadline {
            let message = format!("the kernel sees a disk of {seen} bytes and not of {bytes}");
            return Err(Failure::new(FailureKind::Io, message));
        }
        std::thread::sleep(LOOK);
    }
}

struct Statfs {
    report: DiskReport,
    block_bytes: u64,
}

fn statfs(root: &File, disk_bytes: u64) -> Result<Statfs, Failure> {
    let found = rustix::fs::fstatvfs(root).map_err(|error| Failure::from_io("statfs /", &error.into()))?;
    Ok(Statfs {
        report: DiskReport {
            disk_bytes,
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free_bytes: found.f_bfree.saturating_mul(found.f_frsize),
        },
        // Not 0: we divide by it.
        block_bytes: found.f_frsize.max(1),
    })
}

/// Makes the file system `blocks` large; one that is so already stays.
fn resize(root: &File, blocks: u64) -> io::Result<()> {
    /// `_IOW('f', 16, __u64)` (fs/ext4/ext4.h).
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
    // SAFETY: this ioctl reads one u64, alive during the call.
    match unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_is_not_ext4_says_that_it_cannot() {
        let proc = File::open("/proc").unwrap();
        let error = resize(&proc, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn statfs_is_in_bytes() {
        let root = File::open("/").unwrap();
        let found = statfs(&root, 7).unwrap();
        assert!(found.report.free_bytes <= found.report.total_bytes);
        assert_eq!(found.report.disk_bytes, 7);
        assert!(found.block_bytes >= 512);
    }
}
