//! Namespaces of its own (namespaces(7)), and in the mount namespace nothing but an empty directory.

use std::io;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, getegid, geteuid, pivot_root};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, unshare_unsafe};

type Part = Result<(), String>;

fn because(what: &str) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// Of the root and of the other namespaces.
pub(super) fn apply() -> (Part, Part) {
    let may = capabilities(None).is_ok_and(|own| own.effective.contains(CapabilitySet::SYS_ADMIN));
    if !may && let Err(why) = own_users() {
        return (Err(why.clone()), Err(why));
    }
    let others = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    let others = unshare(others).map_err(because("network, IPC and host name namespaces"));
    (empty_root(), others)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of the flags makes threads share less than they should: this process has one, and `FILES` is not
    // among them.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// A user namespace, in which an unprivileged process may do the rest. It stays who it was (user_namespaces(7)).
fn own_users() -> Part {
    let (user, group) = (geteuid(), getegid());
    unshare(UnshareFlags::NEWUSER).map_err(because("a user namespace"))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{user} {user} 1", user = user.as_raw())),
        ("gid_map", format!("{group} {group} 1", group = group.as_raw())),
    ] {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(because(file))?;
    }
    Ok(())
}

fn empty_root() -> Part {
    unshare(UnshareFlags::NEWNS).map_err(because("a mount namespace"))?;
    let make = || {
        // What happens here stays here.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        // Any directory will do: it is gone in a moment.
        mount(
            "none",
            "/proc",
            "tmpfs",
            flags,
            Some(c"size=4096,nr_inodes=1,mode=0555"),
        )?;
        chdir("/proc")?;
        // The old root comes to lie on top of the new one, and goes (pivot_root(2)).
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        chdir("/")?;
        mount_remount("/", flags | MountFlags::RDONLY, c"")
    };
    make().map_err(|error: rustix::io::Errno| format!("an empty root: {error}"))?;
    match rustix::fs::openat(
        CWD,
        "/proc/self",
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    ) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        other => Err(format!("an empty root: it is not empty: {other:?}")),
    }
}
