//! A process whose host runs out of something when a test says so.
//!
//! The process [watches itself](watch) ([`spore_calls`]): of its calls that could fail for want of something, those from
//! a certain one on do. The test [says](Shortages) from which one.

use std::fmt::{Display, Formatter};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use spore_calls::{Call, Listener};

/// What there is none of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Places in the process's table of open files.
    Descriptors,
    /// Memory of the kernel.
    Memory,
    /// Processes, threads among them.
    Processes,
    /// Room on the disk.
    Disk,
}

/// All of them.
pub const SHORTAGES: [Shortage; 4] = [
    Shortage::Descriptors,
    Shortage::Memory,
    Shortage::Processes,
    Shortage::Disk,
];

/// Calls that make a descriptor.
const OPENING: [i64; 8] = [
    libc::SYS_openat,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
];

/// Calls that make a process or a thread.
const STARTING: [i64; 3] = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_vfork];

/// Calls that take room in a directory.
const NAMING: [i64; 7] = [
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
];

/// Calls that take room for what is in a file, whose descriptor comes first.
const WRITING: [i64; 7] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
];

impl Display for Shortage {
    /// As the daemon has it.
    fn fmt(&self, to: &mut Formatter<'_>) -> std::fmt::Result {
        to.write_str(match self {
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Disk => "disk",
        })
    }
}

impl Shortage {
    /// How a call fails for want of it, if it can.
    fn error(self, call: &Call) -> Option<Errno> {
        let is = |calls: &[i64]| calls.contains(&call.number);
        match self {
            Self::Descriptors => is(&OPENING).then_some(Errno::MFILE),
            Self::Memory => (is(&OPENING) || is(&STARTING) || is(&NAMING)).then_some(Errno::NOMEM),
            Self::Processes => is(&STARTING).then_some(Errno::AGAIN),
            Self::Disk => {
                let creates = call.number == libc::SYS_openat
                    && call.arguments[2] & u64::from(libc::O_CREAT.unsigned_abs()) != 0;
                // Of a socket or a counter this is never heard.
                let in_a_file = || {
                    let file = format!("/proc/self/fd/{}", call.arguments[0]);
                    std::fs::metadata(file).is_ok_and(|file| file.is_file())
                };
                (creates || is(&NAMING) || is(&WRITING) && in_a_file()).then_some(Errno::NOSPC)
            }
        }
    }
}

#[derive(Default)]
struct State {
    /// What there is none of, from which such call on.
    now: Option<(Shortage, u64)>,
    seen: u64,
    failed: u64,
}

impl State {
    fn judge(&mut self, call: &Call) -> Result<(), Errno> {
        let Some((shortage, from)) = self.now else {
            return Ok(());
        };
        // What it has started is watched too: that has calls of its own, and answers for them.
        if !Path::new(&format!("/proc/self/task/{}", call.thread)).exists() {
            return Ok(());
        }
        let Some(errno) = shortage.error(call) else {
            return Ok(());
        };
        self.seen += 1;
        if self.seen <= from {
            return Ok(());
        }
        self.failed += 1;
        Err(errno)
    }
}

fn socket(root: &Path) -> PathBuf {
    root.join("shortage.sock")
}

/// Has this process watched from here on, before it has other threads. It listens in `root` for what it is to lack.
///
/// # Panics
/// When it cannot be.
pub fn watch(root: &Path) {
    let state = Arc::new(Mutex::new(State::default()));
    let told = state.clone();
    let listener = UnixListener::bind(socket(root)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let mut words = line.split_whitespace();
            let now = words.next().and_then(|word| {
                let shortage = SHORTAGES.into_iter().find(|one| one.to_string() == word)?;
                Some((shortage, words.next()?.parse().ok()?))
            });
            let before = std::mem::replace(
                &mut *lock(&told),
                State {
                    now,
                    ..State::default()
                },
            );
            writeln!(stream, "{}", before.failed).unwrap();
        }
    });
    let (give, take) = std::sync::mpsc::channel::<Listener>();
    std::thread::spawn(move || {
        let listener = take.recv().unwrap();
        while let Some(call) = listener.next() {
            let verdict = lock(&state).judge(&call);
            listener.answer(&call, verdict);
        }
    });
    let all: Vec<i64> = [&OPENING[..], &STARTING, &NAMING, &WRITING].concat();
    give.send(Listener::here(&all)).unwrap();
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a process lacks that [watches itself](watch) in a directory.
pub struct Shortages(PathBuf);

impl Shortages {
    /// Of the process there.
    pub fn of(root: &Path) -> Self {
        Self(socket(root))
    }

    /// Lets all of its calls fail that need this, but the next `but`.
    ///
    /// # Panics
    /// When it does not listen.
    pub fn begin(&self, shortage: Shortage, but: u64) {
        self.say(&format!("{shortage} {but}"));
    }

    /// Ends the shortage, and says how many calls failed.
    ///
    /// # Panics
    /// When it does not listen.
    pub fn end(&self) -> u64 {
        self.say("none")
    }

    fn say(&self, what: &str) -> u64 {
        let mut stream = UnixStream::connect(&self.0).unwrap();
        writeln!(stream, "{what}").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}
