//! Starting a process with as few system calls as it takes.
//!
//! `fork` would copy the agent's page tables, and glibc's `posix_spawn` makes some seventy system
//! calls in the child (it asks for the action of every signal), about 15 ms in a guest with an
//! interpreted kernel. So the child is a `clone(CLONE_VM | CLONE_VFORK)`: it runs on a small
//! stack of its own in our memory, while the calling thread stands still, until it executes the
//! command or gives up.
//!
//! The agent is PID 1, which the kernel never chooses when memory is short (`oom_unkillable_task`),
//! so its `oom_score_adj` stays 0 and children need not reset what they would inherit.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::prepare::Prepared;
use super::user::User;

/// The child's stack, in units of the alignment the ABI wants: 16 KiB, for a few system calls.
const STACK_UNITS: usize = 1024;

/// The child's standard streams.
#[derive(Debug)]
pub enum Stdio {
    /// Each of its own.
    Apart {
        /// Descriptor 0.
        stdin: OwnedFd,
        /// Descriptor 1.
        stdout: OwnedFd,
        /// Descriptor 2.
        stderr: OwnedFd,
    },
    /// A terminal is all three, and controls the new session. No session has it yet.
    Terminal(OwnedFd),
}

impl Stdio {
    fn descriptors(&self) -> [RawFd; 3] {
        match self {
            Self::Apart {
                stdin,
                stdout,
                stderr,
            } => [stdin, stdout, stderr].map(AsRawFd::as_raw_fd),
            Self::Terminal(terminal) => [terminal.as_raw_fd(); 3],
        }
    }
}

/// At which step a process could not be started.
#[derive(Debug)]
pub enum SpawnError {
    /// There is no new process.
    Clone(io::Error),
    /// It cannot have its terminal.
    Terminal(io::Error),
    /// It cannot become its user.
    User(io::Error),
    /// It cannot enter its working directory.
    Chdir(io::Error),
    /// No candidate can be executed; the error is of the one that came closest.
    Exec(io::Error),
}

impl SpawnError {
    /// The cause.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Clone(error)
            | Self::Terminal(error)
            | Self::User(error)
            | Self::Chdir(error)
            | Self::Exec(error) => error,
        }
    }
}

/// What the child reads, and where it leaves word of failure.
struct Plan<'a> {
    candidates: &'a [CString],
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    user: Option<&'a User>,
    cwd: Option<&'a CStr>,
    stdio: [RawFd; 3],
    /// The standard streams are a terminal, to control the session.
    terminal: bool,
    failure: Option<(Step, i32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Terminal,
    User,
    Chdir,
    Exec,
}

/// Starts a process in a new session and process group, and returns its pid once it has executed
/// the command.
pub fn spawn(prepared: &Prepared, stdio: &Stdio) -> Result<i32, SpawnError> {
    let mut plan = Plan {
        candidates: &prepared.candidates,
        argv: pointers(&prepared.argv),
        envp: pointers(&prepared.envp),
        user: prepared.user.as_ref(),
        cwd: prepared.cwd.as_deref(),
        stdio: stdio.descriptors(),
        terminal: matches!(stdio, Stdio::Terminal(_)),
        failure: None,
    };
    let mut stack = Vec::<u128>::with_capacity(STACK_UNITS);
    // SAFETY: one past the end of the allocation: the stack grows down from there.
    let top = unsafe { stack.as_mut_ptr().add(STACK_UNITS) };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK: this thread stands still until the child has executed or exited, so
    // `stack` and `plan` outlive its use of them and nobody else touches them meanwhile. `top` is
    // 16-aligned and has the whole allocation below it. The child shares this thread's TLS, which is as
    // still as the thread; it makes system calls only, takes no lock and allocates nothing.
    let pid = unsafe { libc::clone(run_child, top.cast(), flags, (&raw mut plan).cast()) };
    if pid < 0 {
        return Err(SpawnError::Clone(io::Error::last_os_error()));
    }
    let Some((step, errno)) = plan.failure else {
        return Ok(pid);
    };
    let error = io::Error::from_raw_os_error(errno);
    Err(match step {
        Step::Terminal => SpawnError::Terminal(error),
        Step::User => SpawnError::User(error),
        Step::Chdir => SpawnError::Chdir(error),
        Step::Exec => SpawnError::Exec(error),
    })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

extern "C" fn run_child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its plan, which nobody else uses until we are gone.
    let plan = unsafe { &mut *plan.cast::<Plan<'_>>() };
    // SAFETY: we are the child of the clone above.
    plan.failure = Some(unsafe { become_command(plan) });
    // SAFETY: _exit does not return and runs nothing of ours.
    unsafe { libc::_exit(127) }
}

/// Returns only if the command cannot be executed.
///
/// # Safety
/// Only in the child of [`spawn`]: it rearranges the process it runs in.
unsafe fn become_command(plan: &Plan<'_>) -> (Step, i32) {
    // SAFETY: system calls on integers. A new process is never a group leader, so setsid succeeds; the agent's own
    // descriptors are all above 2 and close-on-exec.
    unsafe {
        libc::setsid();
        for (target, source) in (0..).zip(plan.stdio) {
            libc::dup2(source, target);
        }
        // The only signal action of ours that an exec would keep.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    // SAFETY: this call takes a descriptor, which is the command's terminal, and an integer.
    if plan.terminal && unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } != 0 {
        return (Step::Terminal, errno());
    }
    // Before the directory: one that only root may enter is not for it to be in.
    if let Some(user) = plan.user {
        // SAFETY: we are the child that this may be called in.
        if let Some(errno) = unsafe { become_user(user) } {
            return (Step::User, errno);
        }
    }
    if let Some(cwd) = plan.cwd {
        // SAFETY: the string is NUL-terminated and the plan keeps it alive.
        if unsafe { libc::chdir(cwd.as_ptr()) } != 0 {
            return (Step::Chdir, errno());
        }
    }
    let mut failure = libc::ENOENT;
    for candidate in plan.candidates {
        // SAFETY: NUL-terminated strings and NULL-terminated arrays of them, which the plan keeps alive.
        unsafe {
            // A failing execve builds and drops an address space; looking first is far cheaper.
            if plan.candidates.len() == 1 || libc::access(candidate.as_ptr(), libc::X_OK) == 0 {
                libc::execve(candidate.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr());
            }
        }
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => failure = libc::EACCES,
            other => return (Step::Exec, other),
        }
    }
    (Step::Exec, failure)
}

/// Drops to a user, for good; the error number if that fails. The last of the three can only be done once.
///
/// glibc's setuid and its kin would have every thread of this process do the same (nptl/nptl_setxid.c), and its threads
/// are the agent's. The kernel's calls are for the calling one alone.
///
/// # Safety
/// Only in the child of [`spawn`].
unsafe fn become_user(user: &User) -> Option<i32> {
    let (uid, gid) = (libc::c_long::from(user.uid), libc::c_long::from(user.gid));
    // SAFETY: the array has that many ids and outlives the call; the others take integers.
    unsafe {
        let failed = libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) != 0
            || libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
            || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0;
        failed.then(errno)
    }
}

fn errno() -> i32 {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}
