//! Calls of the kernel that somebody watches: before each is made, they are asked, and may let it fail.
//!
//! A thread, and all that it starts, has a seccomp filter that hands these calls to a listener (seccomp_unotify(2)). So
//! none can be forgotten, whatever code makes it, and nothing of this is in the product.

#![allow(clippy::unwrap_used, reason = "for tests, which may panic")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// A call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// The thread that waits for it.
    pub thread: u32,
    /// Its number, as `libc::SYS_fsync`.
    pub number: i64,
    /// What it is called with.
    pub arguments: [u64; 6],
}

/// Who is asked.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// Does `work` in a thread of its own. Each of the calls with these numbers is made when `judge` says `Ok`, and fails
/// with its error else.
///
/// # Panics
/// When the kernel knows no such filters, or `work` does.
pub fn watched<T: Send>(
    numbers: &[i64],
    work: impl FnOnce() -> T + Send,
    mut judge: impl FnMut(&Call) -> Result<(), Errno>,
) -> T {
    let (give, listener) = mpsc::channel();
    std::thread::scope(|scope| {
        let working = scope.spawn(move || {
            give.send(Listener::here(numbers)).unwrap();
            work()
        });
        let listener = listener.recv().unwrap();
        while let Some(call) = listener.next() {
            listener.answer(&call, judge(&call));
        }
        working.join().unwrap()
    })
}

impl Listener {
    /// Puts the filter on this thread, and on whatever it starts from now on. Somebody else has to listen.
    ///
    /// # Panics
    /// When the kernel knows no such filters.
    pub fn here(numbers: &[i64]) -> Self {
        let mut program = program(numbers);
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
        Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
    }

    /// The next call; `None` when nobody is left who could make one.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn next(&self) -> Option<Call> {
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
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
            let got =
                unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
            // It may have been interrupted meanwhile, and will be made again.
            if got == 0 {
                return Some(Call {
                    id: asked.id,
                    thread: asked.pid,
                    number: asked.data.nr.into(),
                    arguments: asked.data.args,
                });
            }
        }
    }

    /// Lets a call be made, or fail.
    ///
    /// # Panics
    /// When the kernel does not take the answer.
    pub fn answer(&self, call: &Call, verdict: Result<(), Errno>) {
        let mut answer = libc::seccomp_notif_resp {
            id: call.id,
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
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
        let error = std::io::Error::last_os_error();
        // It may have been killed, or interrupted, while it waited.
        assert!(sent == 0 || error.raw_os_error() == Some(libc::ENOENT), "{error}");
    }
}

/// Hands calls with these numbers to the listener, and allows all others (bpf(4), seccomp(2)).
fn program(numbers: &[i64]) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jt: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf: 0,
        k,
    };
    // The number of the call is the first field of what a filter sees (`struct seccomp_data`).
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    program.extend(numbers.iter().enumerate().map(|(at, number)| {
        let to_the_last = u8::try_from(numbers.len() - at).unwrap();
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        instruction(equal, to_the_last, u32::try_from(*number).unwrap())
    }));
    let actions = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF];
    program.extend(actions.map(|action| instruction(libc::BPF_RET | libc::BPF_K, 0, action)));
    program
}
