//! The program of VM processes, and who they are.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use super::client::VmHandle;
use super::error::VmError;
use crate::confine::{Confinement, User};

/// Who VM processes become: named by SPORE_VM_USER as `uid:gid`, or [`User::DEFAULT`]. `None` when they stay who we are:
/// if we are not root, or are and may not look into other users' processes, which writing a checkpoint needs.
pub(super) fn user() -> io::Result<Option<User>> {
    let may = capabilities(None)?
        .effective
        .contains(CapabilitySet::SYS_PTRACE | CapabilitySet::KILL);
    if !geteuid().is_root() || !may {
        return Ok(None);
    }
    let user = match std::env::var("SPORE_VM_USER") {
        Ok(named) => named
            .parse()
            .map_err(|error| io::Error::other(format!("SPORE_VM_USER: {error}")))?,
        Err(_) => User::DEFAULT,
    };
    Ok(Some(user))
}

/// How VM processes that are started by this one are confined: starts one and asks it.
///
/// # Errors
/// [`VmError`].
pub fn confinement() -> Result<Confinement, VmError> {
    VmHandle::spawn(Path::new(""), Path::new(""))?.confinement()
}

/// Where `spore-vm` is: named by SPORE_VM, or beside the running program.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("SPORE_VM") {
        return path.into();
    }
    std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("spore-vm")))
        .unwrap_or_else(|| OsString::from("spore-vm").into())
}
