//! The box a VM process puts itself into before it talks to a guest.
//!
//! A guest that breaks out of its machine is in the VM process, and can do what that may do. So the process may do
//! little: it has the descriptors its owner handed it, and of the host nothing else. It opens no file, so it needs none:
//! its root is empty. What is not there, or not allowed here, is left out and told ([`Confinement`]), never silently.
//!
//! Forked processes inherit all of it; it is applied once, when the program starts.

mod landlock;
mod limits;
mod namespaces;
mod privileges;
pub mod seccomp;

use serde::{Deserialize, Serialize};

pub use privileges::User;

/// One part of the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Applied {
    /// It holds.
    Yes,
    /// It does not, since the host lacks something or does not allow it.
    No {
        /// What.
        why: String,
    },
}

impl Applied {
    /// Whether it holds.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    fn of(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::Yes,
            Err(why) => Self::No { why },
        }
    }
}

/// What holds for a VM process on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confinement {
    /// Of what the owner had open, it has nothing but its control stream, the log, and `/dev/kvm`.
    pub descriptors: Applied,
    /// An empty root, in a mount namespace of its own.
    pub root: Applied,
    /// Network, IPC and host name namespaces of its own, with nothing in them.
    pub namespaces: Applied,
    /// A user and group of its own.
    pub user: Applied,
    /// No capabilities, and no way to get any.
    pub capabilities: Applied,
    /// Landlock: no file can be opened, no port bound or connected to, no process outside signalled, as far as the
    /// kernel's version of it goes.
    pub landlock: Applied,
    /// Limits: no core dumps, descriptors, file sizes.
    pub limits: Applied,
    /// System call filters, a list of what is allowed for each kind of thread.
    pub seccomp: Applied,
}

impl Confinement {
    /// The parts by name.
    pub fn parts(&self) -> [(&'static str, &Applied); 8] {
        [
            ("descriptors", &self.descriptors),
            ("root", &self.root),
            ("namespaces", &self.namespaces),
            ("user", &self.user),
            ("capabilities", &self.capabilities),
            ("landlock", &self.landlock),
            ("limits", &self.limits),
            ("seccomp", &self.seccomp),
        ]
    }

    /// Whether all of it holds.
    pub fn is_whole(&self) -> bool {
        self.parts().iter().all(|(_, applied)| applied.is_yes())
    }
}

/// Confines this process, which has one thread, as far as the host lets it. `user` is who it becomes, if it may.
///
/// What it will need and cannot get afterwards must be open before.
pub fn apply(user: Option<User>) -> Confinement {
    let isolated = isolate(user);
    Confinement {
        seccomp: Applied::of(seccomp::control()),
        ..isolated
    }
}

/// All of it but the system call filters, which would end the process before the rest could refuse anything.
pub fn isolate(user: Option<User>) -> Confinement {
    let limits = Applied::of(limits::apply());
    let (root, namespaces) = namespaces::apply();
    // After the namespaces, which need what is given up here.
    let (user, capabilities) = privileges::drop(user);
    let landlock = Applied::of(landlock::apply());
    Confinement {
        descriptors: Applied::Yes,
        root: Applied::of(root),
        namespaces: Applied::of(namespaces),
        user: Applied::of(user),
        capabilities: Applied::of(capabilities),
        landlock,
        limits,
        seccomp: Applied::of(Err("not asked for".to_owned())),
    }
}

/// Closes what the program that started this one left open, but for the standard streams.
///
/// # Safety
/// Nothing in this process owns a descriptor above 2.
///
/// # Errors
/// What `close_range(2)` reports.
pub unsafe fn close_inherited() -> std::io::Result<()> {
    // SAFETY: by this function's contract nobody misses what is closed.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
