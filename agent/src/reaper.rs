//! The one place that waits for processes.
//!
//! PID 1 inherits every orphan of the system and must wait for all of them, so it cannot also
//! let others wait for their own children: one would take the other's status. Here a single
//! thread waits for everything, and keeps the status of those that [`Reaper::spawn`] started
//! until their [`Child`] is asked. Nothing else in this program may call a wait function, so
//! nothing uses `std::process`.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::fd::OwnedFd;

use crate::sys::lock;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As `wait(2)` gives it.
    pub wait_status: i32,
    /// Largest resident set of it and the children it waited for.
    pub max_rss_bytes: u64,
}

/// The registry of our children, and the thread that reaps them and everybody else's.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
    /// Told when `State::spawned` or `State::idle` changes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    children: Vec<Entry>,
    /// How many [`Reaper::spawn`] are between starting a process and entering it here.
    starting: usize,
    /// Processes that ended while some spawn was in progress: perhaps its own.
    early: Vec<(i32, Exit)>,
    /// How many were ever started: without one the system has no process but us.
    spawned: u64,
    /// Whether the last wait found no process at all.
    idle: bool,
}

#[derive(Debug)]
struct Entry {
    pid: i32,
    exit: Option<Exit>,
    wake: Arc<OwnedFd>,
}

/// A process we started. Dropping it forgets it; it is reaped all the same.
#[derive(Debug)]
pub struct Child<'a> {
    pid: i32,
    reaper: &'a Reaper,
}

impl Reaper {
    /// Starts a process with `start`, which returns its pid. When it ends, `wake` (an eventfd)
    /// is written and [`Child::exit`] has its status.
    pub fn spawn<E>(
        &self,
        wake: &Arc<OwnedFd>,
        start: impl FnOnce() -> Result<i32, E>,
    ) -> Result<Child<'_>, E> {
        lock(&self.state).starting += 1;
        let started = start();
        let mut state = lock(&self.state);
        state.starting -= 1;
        // Also when it failed: the process may have existed.
        state.spawned += 1;
        state.idle = false;
        let result = started.map(|pid| {
            state.enter(pid, Arc::clone(wake));
            Child { pid, reaper: self }
        });
        if state.starting == 0 {
            state.early.clear();
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Reaps, for ever. One thread only.
    pub fn run(&self) -> ! {
        loop {
            let spawned = lock(&self.state).spawned;
            match peek() {
                Ok(pid) => {
                    // Reaped under the lock, so that whoever holds it knows that the pid of a
                    // child without an exit is still its own, and may send it signals.
                    let mut state = lock(&self.state);
                    if let Some(exit) = reap(pid) {
                        state.ended(pid, exit);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => self.wait_for_spawn(spawned),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    eprintln!("spore-agent: waitid: {error}");
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }

    /// Waits until no process is left, or this long. Whether none was.
    pub fn wait_until_idle(&self, at_most: Duration) -> bool {
        let state = lock(&self.state);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, at_most, |state| !state.idle && state.spawned > 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.idle || state.spawned == 0
    }

    /// There is no process but us, and only a spawn can change that.
    fn wait_for_spawn(&self, spawned_before: u64) {
        let mut state = lock(&self.state);
        if state.spawned == spawned_before {
            state.idle = true;
            self.changed.notify_all();
        }
        while state.spawned == spawned_before {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn enter(&mut self, pid: i32, wake: Arc<OwnedFd>) {
        // Pids are handed out in a circle: a process that ended during this spawn cannot have had
        // the same one by chance.
        let early = self.early.iter().position(|(ended, _)| *ended == pid);
        let exit = early.map(|index| self.early.swap_remove(index).1);
        if exit.is_some() {
            notify(&wake);
        }
        self.children.push(Entry { pid, exit, wake });
    }

    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(entry) = self
            .children
            .iter_mut()
            .find(|entry| entry.pid == pid && entry.exit.is_none())
        {
            entry.exit = Some(exit);
            notify(&entry.wake);
        } else if self.starting > 0 {
            self.early.push((pid, exit));
        }
    }
}

impl Child<'_> {
    /// Its process number, which is also that of its session and process group.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        lock(&self.reaper.state)
            .children
            .iter()
            .find(|entry| entry.pid == self.pid)?
            .exit
    }

    /// Sends a signal to its process group, if it still runs.
    pub fn signal_group(&self, signal: i32) {
        let state = lock(&self.reaper.state);
        if state
            .children
            .iter()
            .any(|entry| entry.pid == self.pid && entry.exit.is_none())
        {
            // SAFETY: kill takes integers. The child leads this group and has not been reaped
            // (that happens under the lock we hold), so its number has not gone to others.
            unsafe { libc::kill(-self.pid, signal) };
        }
    }
}

impl Drop for Child<'_> {
    fn drop(&mut self) {
        lock(&self.reaper.state)
            .children
            .retain(|entry| entry.pid != self.pid);
    }
}

fn notify(wake: &Arc<OwnedFd>) {
    // An eventfd only refuses when it is full, and then its reader is awake anyway.
    let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
}

/// The pid of some ended child, left unreaped; blocks until there is one.
fn peek() -> io::Result<i32> {
    // SAFETY: siginfo_t is plain data for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` is writable for the call; the other arguments are integers.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid succeeded without WNOHANG, so it filled in a SIGCHLD siginfo, which has a pid.
    Ok(unsafe { info.si_pid() })
}

fn reap(pid: i32) -> Option<Exit> {
    let mut wait_status = 0;
    // SAFETY: rusage is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals of the right type.
    let reaped = unsafe {
        libc::wait4(
            pid,
            &raw mut wait_status,
            libc::WNOHANG | libc::__WALL,
            &raw mut usage,
        )
    };
    let max_rss_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    (reaped == pid).then_some(Exit {
        wait_status,
        max_rss_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    const EXIT: Exit = Exit {
        wait_status: 256,
        max_rss_bytes: 4096,
    };

    fn wake() -> Arc<OwnedFd> {
        Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
    }

    fn woken(wake: &OwnedFd) -> bool {
        rustix::io::read(wake, &mut [0; 8]).is_ok()
    }

    #[test]
    fn a_status_goes_to_the_child_it_belongs_to() {
        let reaper = Reaper::default();
        let (wake_a, wake_b) = (wake(), wake());
        let a = reaper.spawn(&wake_a, || Ok::<_, ()>(10)).unwrap();
        let b = reaper.spawn(&wake_b, || Ok::<_, ()>(11)).unwrap();
        lock(&reaper.state).ended(11, EXIT);
        assert_eq!((a.exit(), b.exit()), (None, Some(EXIT)));
        assert!(!woken(&wake_a) && woken(&wake_b));
    }

    #[test]
    fn a_child_that_ends_before_it_is_entered_is_not_lost() {
        let reaper = Reaper::default();
        let wake = wake();
        let child = reaper.spawn(&wake, || {
            lock(&reaper.state).ended(10, EXIT);
            Ok::<_, ()>(10)
        });
        assert_eq!(child.unwrap().exit(), Some(EXIT));
        assert!(woken(&wake));
    }

    #[test]
    fn orphans_are_not_remembered() {
        let reaper = Reaper::default();
        let wake = wake();
        lock(&reaper.state).ended(10, EXIT);
        let child = reaper.spawn(&wake, || {
            lock(&reaper.state).ended(12, EXIT);
            Ok::<_, ()>(10)
        });
        assert_eq!(child.unwrap().exit(), None);
        assert!(lock(&reaper.state).early.is_empty());
    }

    #[test]
    fn a_dropped_child_is_forgotten_and_a_failed_spawn_leaves_nothing() {
        let reaper = Reaper::default();
        let wake = wake();
        drop(reaper.spawn(&wake, || Ok::<_, ()>(10)));
        assert!(reaper.spawn(&wake, || Err::<i32, _>("no")).is_err());
        let state = lock(&reaper.state);
        assert!(state.children.is_empty() && state.starting == 0);
    }
}
