//! Making the guest still: for a checkpoint, or for good.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use spore_protocol::Failure;

use crate::reaper::Reaper;

/// How long processes have to end after SIGTERM, and then after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(2);

/// How the machine goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Power off.
    Poweroff,
    /// Start again.
    Reboot,
}

/// Writes back what is dirty, and tells the disk which of its blocks hold nothing, so that a layer made of it does not
/// hold them either.
pub fn sync() {
    rustix::fs::sync();
    trim();
    // What trimming changed on the disk.
    rustix::fs::sync();
}

/// Discards the free blocks of the root file system (fstrim(8)). A disk or a file system that knows no discard costs
/// nothing but space.
fn trim() {
    /// `struct fstrim_range` and `FITRIM` (include/uapi/linux/fs.h).
    #[repr(C)]
    struct Range {
        start: u64,
        len: u64,
        minlen: u64,
    }
    const FITRIM: libc::c_ulong = 0xC018_5879;
    /// The cluster of an overlay: less frees nothing there.
    const CLUSTER: u64 = 64 * 1024;
    let Ok(root) = fs::File::open("/") else { return };
    let mut range = Range {
        start: 0,
        len: u64::MAX,
        minlen: CLUSTER,
    };
    // SAFETY: the structure is what this ioctl reads and writes, alive during the call.
    unsafe { libc::ioctl(root.as_raw_fd(), FITRIM, &raw mut range) };
}

/// Writes back what is dirty, drops what can be read again and makes free memory whole, so that a
/// checkpoint has little in it. Only dropping caches must succeed. Elsewhere than in our own
/// guest it only syncs.
pub fn settle(is_init: bool) -> Result<(), Failure> {
    drop_caches(is_init)?;
    if is_init {
        // Absent in kernels without compaction.
        let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    }
    Ok(())
}

/// Writes back what is dirty and drops what can be read again. Elsewhere than in our own guest it only syncs.
pub fn drop_caches(is_init: bool) -> Result<(), Failure> {
    if !is_init {
        rustix::fs::sync();
        return Ok(());
    }
    sync();
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(|error| Failure::from_io("drop caches", &error))
}

/// Ends every process, then the machine. Only for PID 1.
pub fn end(reaper: &Reaper, ending: Ending) -> ! {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        if reaper.wait_until_idle(Duration::ZERO) {
            break;
        }
        // SAFETY: kill takes integers; -1 is everybody but us, since we are PID 1.
        unsafe { libc::kill(-1, signal) };
        if signal == libc::SIGTERM {
            // A stopped process hears nothing else.
            // SAFETY: as above.
            unsafe { libc::kill(-1, libc::SIGCONT) };
        }
        reaper.wait_until_idle(PATIENCE);
    }
    rustix::fs::sync();
    unmount_disks();
    let command = match ending {
        Ending::Poweroff => libc::RB_POWER_OFF,
        Ending::Reboot => libc::RB_AUTOBOOT,
    };
    loop {
        // SAFETY: reboot takes an integer and does not return if it succeeds; the disks are synced.
        unsafe { libc::reboot(command) };
        eprintln!("spore-agent: {ending:?}: {}", std::io::Error::last_os_error());
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Unmounts every disk, innermost first, and makes the root read-only. All is synced already:
/// what does not come off only costs a journal replay at the next boot.
fn unmount_disks() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        if let (Some(source), Some(place)) = (fields.next(), fields.next())
            && source.starts_with("/dev/")
            && place != "/"
        {
            // Spaces and the like are escaped in this file; such a mount point stays.
            let _ = unmount(place, UnmountFlags::empty());
        }
    }
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, "") {
        eprintln!("spore-agent: remount / read-only: {error}");
    }
}
