//! From a bare kernel to a system that programs feel at home in. Nothing here is fatal: a guest
//! that can still answer the host is better than one that cannot.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, symlink};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::network::Networking;
use crate::views::Views;

/// The most descriptors a process of the guest may ask for; what it has without asking stays
/// small, because some programs close them all one by one.
const MAX_DESCRIPTORS: u64 = 524_288;

/// What the kernel does by itself to tidy memory, and how it is told not to. For a sandbox it is a loss: to collapse
/// pages into a huge one or to move them together is to write them, and a fork shares with its siblings what it has not
/// written. And an idle guest would wake for it, twice a second for the second.
///
/// Huge pages are still had at the first touch of memory, which copies nothing; and whoever needs memory in one piece
/// still has it made.
const TIDYING: [(&str, &str, &str); 2] = [
    // khugepaged: the longest sleep there is between two scans (mm/khugepaged.c).
    (
        "huge pages",
        "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
        "4294967295",
    ),
    // kcompactd: on demand only (mm/compaction.c).
    ("compaction", "/proc/sys/vm/compaction_proactiveness", "0"),
];

struct Mount {
    place: &'static str,
    kind: &'static str,
    options: &'static std::ffi::CStr,
    flags: MountFlags,
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

const MOUNTS: [Mount; 7] = [
    Mount {
        place: "/proc",
        kind: "proc",
        options: c"",
        flags: SAFE,
    },
    Mount {
        place: "/sys",
        kind: "sysfs",
        options: c"",
        flags: SAFE,
    },
    Mount {
        place: "/dev",
        kind: "devtmpfs",
        options: c"mode=0755",
        flags: MountFlags::NOSUID,
    },
    Mount {
        place: "/dev/pts",
        kind: "devpts",
        options: c"gid=5,mode=620,ptmxmode=666",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
    },
    Mount {
        place: "/dev/shm",
        kind: "tmpfs",
        options: c"mode=1777",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
    },
    Mount {
        place: "/run",
        kind: "tmpfs",
        options: c"mode=0755",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
    },
    Mount {
        place: "/sys/fs/cgroup",
        kind: "cgroup2",
        options: c"nsdelegate",
        flags: SAFE,
    },
];

/// Brings the system up. Call once, before any other thread exists.
pub fn boot(network: &Networking) -> Views {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for wanted in &MOUNTS {
        complain(wanted.place, mount_one(wanted));
    }
    use_console();
    // On disk by default: in memory it would count against the guest. The kernel hands unknown
    // `name=value` options of its command line to us as environment.
    if std::env::var_os("spore_tmp").is_some_and(|value| value == "tmpfs") {
        let flags = MountFlags::NOSUID.union(MountFlags::NODEV);
        complain(
            "/tmp",
            mount_one(&Mount {
                place: "/tmp",
                kind: "tmpfs",
                options: c"mode=1777",
                flags,
            }),
        );
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, link);
    }
    complain("remount /", make_root_writable());
    complain("hostname", set_hostname());
    let views = Views::mount(network.has_card());
    complain("machine id", views.machine_id.as_ref());
    complain("boot id", views.boot_id.as_ref());
    if network.has_card() {
        complain("name servers", views.resolv_conf.as_ref());
    }
    complain("loopback", loopback_up());
    let soft = getrlimit(Resource::Nofile).current;
    let limit = Rlimit {
        current: soft,
        maximum: Some(MAX_DESCRIPTORS),
    };
    complain("descriptor limit", setrlimit(Resource::Nofile, limit));
    for (what, file, value) in TIDYING {
        complain(what, set(file, value));
    }
    views
}

fn complain<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) {
    if let Err(error) = result {
        eprintln!("spore-agent: {what}: {error}");
    }
}

fn mount_one(wanted: &Mount) -> io::Result<()> {
    let attempt = || {
        mount(
            wanted.kind,
            wanted.place,
            wanted.kind,
            wanted.flags,
            wanted.options,
        )
    };
    let result = match attempt() {
        Err(Errno::NOENT) => {
            fs::DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(wanted.place)?;
            attempt()
        }
        other => other,
    };
    match result {
        // The kernel, or the initramfs, was here first; or it does not know this file system.
        Ok(()) | Err(Errno::BUSY | Errno::NODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The kernel gives us a console only if it finds one before `/dev` is mounted.
fn use_console() {
    let Ok(console) = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) else {
        return;
    };
    for target in 0..=2 {
        // SAFETY: dup2 takes integers; 0 to 2 are the standard streams, which nobody owns.
        unsafe { libc::dup2(console.as_raw_fd(), target) };
    }
    if console.as_raw_fd() <= 2 {
        // It is a standard stream now.
        std::mem::forget(console);
    }
}

fn make_root_writable() -> io::Result<()> {
    match rustix::fs::access("/", rustix::fs::Access::WRITE_OK) {
        Err(Errno::ROFS) => Ok(mount_remount("/", MountFlags::empty(), "")?),
        other => Ok(other?),
    }
}

/// A kernel without what the file stands for needs no telling.
fn set(file: &str, value: &str) -> io::Result<()> {
    match fs::write(file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn set_hostname() -> io::Result<()> {
    let name = match fs::read("/etc/hostname") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    Ok(rustix::system::sethostname(name.trim_ascii())?)
}

fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, whose name is NUL-terminated and whose flags are set.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
