//! A process that is ours: ended and waited for through a descriptor, so its number is never mistaken.
//!
//! Mostly it is our child. One that was adopted is not, nor are its forks: nobody but their parent hears how they
//! ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};

/// How the end of a process is told that is not our child.
const UNKNOWN: &str = "how is not known: it was not our child";

/// What ends a process from elsewhere.
#[derive(Debug)]
pub struct Killer(OwnedFd);

impl Killer {
    /// Ends it; does not wait for that.
    pub fn kill(&self) {
        // It can only have ended already.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// A process. Dropping it ends it and waits for it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    descriptor: OwnedFd,
    ended: Option<String>,
    /// Whether it ends with this.
    ours: bool,
}

impl Process {
    /// Takes over a child that was started.
    ///
    /// # Errors
    /// When no descriptor can be had; the child is ended then.
    pub fn of_child(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        // A child keeps its number until it is waited for, so this is the one that is meant.
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // Nobody else would, and it would stay a zombie for as long as this process lives.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        })?;
        Ok(Self::of(pid, descriptor))
    }

    /// Takes over the process that `descriptor` is of, whose number is `pid`, whoever's child it is. Nobody else waits
    /// for it if it is ours.
    pub fn of(pid: Pid, descriptor: OwnedFd) -> Self {
        Self {
            pid,
            descriptor,
            ended: None,
            ours: true,
        }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// What ends it from elsewhere.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn killer(&self) -> io::Result<Killer> {
        self.descriptor.try_clone().map(Killer)
    }

    /// Ends it; does not wait for that.
    pub fn kill(&self) {
        // It can only have ended already.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Option<&str> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Option<&str> {
        self.wait_with(WaitIdOptions::EXITED)
    }

    /// Lets go of it: it lives on.
    pub fn release(&mut self) {
        self.ours = false;
    }

    /// Whether it was not let go of.
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    fn wait_with(&mut self, options: WaitIdOptions) -> Option<&str> {
        while self.ended.is_none() {
            match waitid(WaitId::PidFd(self.descriptor.as_fd()), options) {
                Ok(Some(status)) => self.ended = Some(describe(&status)),
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(Errno::CHILD) => match has_ended(&self.descriptor, options) {
                    Ok(true) => self.ended = Some(UNKNOWN.to_owned()),
                    Ok(false) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => self.ended = Some(error.to_string()),
                },
                Err(error) => self.ended = Some(error.to_string()),
            }
        }
        self.ended.as_deref()
    }
}

/// Whether a process has ended that is not a child; if need be, waits for that (pidfd_open(2)).
fn has_ended(descriptor: &OwnedFd, options: WaitIdOptions) -> Result<bool, Errno> {
    let now = rustix::event::Timespec::default();
    let limit = options.contains(WaitIdOptions::NOHANG).then_some(&now);
    let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
    Ok(poll(&mut fds, limit)? > 0)
}

/// As `std::process::ExitStatus` says it.
fn describe(status: &WaitIdStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (_, Some(signal)) => signal,
        _ => 0,
    };
    let hint = match status.terminating_signal() {
        Some(libc::SIGSYS) => ": seccomp: it asked the host's kernel for what it may not",
        _ => "",
    };
    format!("{}{hint}", std::process::ExitStatus::from_raw(raw))
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ours && self.ended.is_none() {
            self.kill();
            self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_ended_and_its_end_is_told() {
        let mut sleeper = Process::of_child(Command::new("sleep").arg("1000").spawn().unwrap()).unwrap();
        assert_eq!(sleeper.try_wait(), None);
        sleeper.kill();
        assert!(sleeper.wait().unwrap().contains("SIGKILL"));
        let mut failing = Process::of_child(Command::new("false").spawn().unwrap()).unwrap();
        assert_eq!(failing.wait(), Some("exit status: 1"));
        let pid = failing.pid();
        drop(failing);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_process_that_is_not_our_child_is_ended_and_waited_for_too() {
        // The shell's child, and soon nobody's we know.
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"])
            .stdout(Stdio::piped());
        let said = shell.output().unwrap().stdout;
        let pid: i32 = std::str::from_utf8(&said).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        let mut stranger = Process::of(pid, pidfd_open(pid, PidfdFlags::empty()).unwrap());
        assert_eq!(stranger.try_wait(), None);
        stranger.kill();
        assert_eq!(stranger.wait(), Some(UNKNOWN));
    }

    #[test]
    fn a_process_that_was_let_go_of_lives_on() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let mut process = Process::of(pid, pidfd_open(pid, PidfdFlags::empty()).unwrap());
        process.release();
        drop(process);
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
