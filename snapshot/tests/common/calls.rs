//! Work whose durable steps are watched: before each call that makes something durable or moves it, somebody is asked.
//!
//! The thread that works has a seccomp filter that hands these calls to a listener (seccomp_unotify(2)), so none can
//! be forgotten, whatever code makes it. Nothing of this is in the product.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sync,
    Rename,
    Remove,
}

const CALLS: [(i64, Kind); 8] = [
    (libc::SYS_fsync, Kind::Sync),
    (libc::SYS_fdatasync, Kind::Sync),
    (libc::SYS_rename, Kind::Rename),
    (libc::SYS_renameat, Kind::Rename),
    (libc::SYS_renameat2, Kind::Rename),
    (libc::SYS_unlink, Kind::Remove),
    (libc::SYS_unlinkat, Kind::Remove),
    (libc::SYS_rmdir, Kind::Remove),
];

/// A call that is about to be made.
#[derive(Debug)]
pub struct Call {
    pub kind: Kind,
    /// What is synced.
    pub path: Option<PathBuf>,
}

/// Does `work` in a thread of its own. Each call is made when `judge` says `Ok`, and fails with its error else.
pub fn watched<T: Send>(
    work: impl FnOnce() -> T + Send,
    mut judge: impl FnMut(&Call) -> Result<(), Errno>,
) -> T {
    let (give, listener) = mpsc::channel();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || {
            give.send(listen()).unwrap();
            work()
        });
        let listener: OwnedFd = listener.recv().unwrap();
        while let Some(asked) = next(&listener) {
            let verdict = judge(&call(&asked));
            answer(&listener, asked.id, verdict);
        }
        working.join().unwrap()
    })
}

/// Puts the filter on this thread.
fn listen() -> OwnedFd {
    let code = |code: u32| u16::try_from(code).unwrap();
    let mut program = vec![libc::sock_filter {
        code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS),
        jt: 0,
        jf: 0,
        // The number of the call is the first field of what a filter sees (seccomp_data).
        k: 0,
    }];
    for (at, (number, _)) in CALLS.iter().enumerate() {
        program.push(libc::sock_filter {
            code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
            // To the last one.
            jt: u8::try_from(CALLS.len() - at).unwrap(),
            jf: 0,
            k: u32::try_from(*number).unwrap(),
        });
    }
    for action in [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF] {
        program.push(libc::sock_filter {
            code: code(libc::BPF_RET | libc::BPF_K),
            jt: 0,
            jf: 0,
            k: action,
        });
    }
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program lives until the call returns, and is as long as it says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel made it for us just now.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

/// The next call; `None` when the thread has ended.
fn next(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => panic!("{errno}"),
        }
        if !fds[0].revents().contains(PollFlags::IN) {
            return None;
        }
        // SAFETY: plain numbers; the kernel wants them to be 0.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one such struct.
        let got = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut asked,
            )
        };
        // It may have been interrupted meanwhile, and will be made again.
        if got == 0 {
            return Some(asked);
        }
    }
}

fn call(asked: &libc::seccomp_notif) -> Call {
    let number = i64::from(asked.data.nr);
    let (_, kind) = CALLS.into_iter().find(|(call, _)| *call == number).unwrap();
    // The thread is of this process, and waits.
    let synced = || std::fs::read_link(format!("/proc/self/fd/{}", asked.data.args[0])).unwrap();
    Call {
        kind,
        path: (kind == Kind::Sync).then(synced),
    }
}

fn answer(listener: &OwnedFd, id: u64, verdict: Result<(), Errno>) {
    let mut answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: 0,
    };
    match verdict {
        Ok(()) => answer.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap(),
        Err(errno) => answer.error = -errno.raw_os_error(),
    }
    // SAFETY: the kernel reads one such struct.
    let sent = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut answer,
        )
    };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}
