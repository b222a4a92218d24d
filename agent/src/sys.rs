//! The system calls that neither `std` nor `rustix` has.

use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Locks, also after a thread panicked with the lock held: every critical section here leaves
/// its data whole at each step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints panics where somebody can see them: the console is the guest's only log.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(io::stderr(), "spore-agent: BUG: {panic}");
    }));
}

/// Makes the heap one arena that is never given back, and keeps touched pages in memory: a
/// fresh page is dear in the guest, and the agent must answer when memory is short.
pub fn tune_memory() {
    const KEEP_BYTES: i32 = 16 * 1024 * 1024;
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, KEEP_BYTES),
        (libc::M_TRIM_THRESHOLD, KEEP_BYTES),
    ] {
        // SAFETY: mallopt takes two integers and is called before any other thread exists.
        unsafe { libc::mallopt(parameter, value) };
    }
    // SAFETY: mlockall takes flags only. ONFAULT: nothing is populated, what was touched stays.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
}

/// Gives every signal its default action and an empty mask, as PID 1 has them from the kernel;
/// children then need not be told. SIGPIPE stays ignored, as `std` set it.
pub fn forget_inherited_signals() {
    // SAFETY: signal() takes integers; an empty set made by sigemptyset is a valid argument; no
    // handler of ours is replaced but those of `std` for stack overflow, which are spared.
    unsafe {
        for signal in 1..=64 {
            if ![libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS].contains(&signal) {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Keeps descriptors that somebody left open for us from our children.
pub fn keep_inherited_descriptors() {
    // SAFETY: close_range takes integers, and with this flag it closes nothing now.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
}

/// Makes orphans of our descendants our children, as they are PID 1's.
pub fn adopt_orphans() {
    // SAFETY: this prctl takes one integer.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// Lets this thread go before every ordinary one, or not any more; what it starts is ordinary.
pub fn go_first(first: bool) {
    let (policy, priority) = match first {
        true => (libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1),
        false => (libc::SCHED_OTHER, 0),
    };
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // Only a matter of time: who may not do it does without.
    // SAFETY: the parameter is read during the call; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
}

/// Waits until what was written to a terminal has left it.
pub fn drain(terminal: BorrowedFd<'_>) {
    // SAFETY: this call takes a descriptor, which is open.
    unsafe { libc::tcdrain(terminal.as_raw_fd()) };
}

/// Listens on a vsock port; if that fails, says so once and tries again every second.
pub fn listen_vsock_until_it_works(port: u32) -> OwnedFd {
    let mut said = false;
    loop {
        match listen_vsock(port) {
            Ok(listener) => return listener,
            Err(error) if !said => {
                eprintln!("spore-agent: vsock port {port}: {error}; trying on");
                said = true;
            }
            Err(_) => {}
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: sockaddr_vm is plain integers, for which zero is a value.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(mem::size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the address is a sockaddr_vm of that length, alive during the call, and the socket
    // is of the same family.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}
