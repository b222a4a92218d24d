//! `fork(2)`, with the child a sibling: its parent is our parent, who owns it and waits for it.
//!
//! Only the calling thread goes on in the child. So no other thread may hold a lock at that moment: callers fork
//! when they are the only thread, which a paused machine and a template are ([`Running::pause`] joins all others).
//! [`Running::pause`]: crate::machine::Running::pause

use std::io;

use rustix::process::Pid;

/// Which of the two goes on here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that forked; the child's number.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Where the C library keeps this thread's id, which must be the child's own after the fork (prctl(2),
/// `PR_GET_TID_ADDRESS`); null if the kernel does not say.
fn thread_id_address() -> *mut libc::c_int {
    let mut address: *mut libc::c_int = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer to where it is told to.
    let result = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
    if result == 0 {
        address
    } else {
        std::ptr::null_mut()
    }
}

/// How [`sibling`] forks (clone(2)).
pub const FORK_PLAIN: libc::c_int = libc::CLONE_PARENT | libc::SIGCHLD;
/// The same, and what fork(3) of the C library does for its own record of the thread.
pub const FORK: libc::c_int = FORK_PLAIN | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;

/// Forks. The child's parent is the caller's parent (`CLONE_PARENT`, clone(2)).
///
/// # Safety
/// The caller is the process's only thread.
///
/// # Errors
/// What `clone(2)` reports: the host is out of processes or memory.
pub unsafe fn sibling() -> io::Result<Side> {
    let thread_id = thread_id_address();
    let flags = if thread_id.is_null() { FORK_PLAIN } else { FORK };
    // SAFETY: without CLONE_VM and without a stack this is fork(2): the child goes on here, on its own copy of
    // everything. Nobody else holds a lock, by this function's contract. The thread id is written to where the
    // C library keeps it, in the child's copy.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            std::ptr::null_mut::<libc::c_void>(),
            std::ptr::null_mut::<libc::c_int>(),
            thread_id,
            std::ptr::null_mut::<libc::c_void>(),
        )
    };
    match i32::try_from(result) {
        Ok(0) => Ok(Side::Child),
        Ok(pid) if pid > 0 => Pid::from_raw(pid)
            .map(Side::Parent)
            .ok_or_else(|| io::ErrorKind::NotFound.into()),
        _ => Err(io::Error::last_os_error()),
    }
}
