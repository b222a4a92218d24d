//! A process that is ours: ended and waited for through a descriptor, so its number is never mistaken.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};
use std::os::fd::AsFd;

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

/// A child process. Dropping it ends it and waits for it.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    descriptor: OwnedFd,
    ended: Option<String>,
}

impl Process {
    /// Takes over a child that was started.
    ///
    /// # Errors
    /// When no descriptor can be had; the child is ended then.
    pub fn of_child(child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        pid.ok_or(io::ErrorKind::NotFound.into()).and_then(Self::of_pid)
    }

    /// Takes over a child with this number, which nobody else waits for.
    ///
    /// # Errors
    /// When there is none, or no descriptor can be had; the child is ended then.
    pub fn of_pid(pid: Pid) -> io::Result<Self> {
        // A child keeps its number until it is waited for, so this is the one that is meant.
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // Nobody else would, and it would stay a zombie for as long as this process lives.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        })?;
        Ok(Self {
            pid,
            descriptor,
            ended: None,
        })
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

    fn wait_with(&mut self, options: WaitIdOptions) -> Option<&str> {
        while self.ended.is_none() {
            match waitid(WaitId::PidFd(self.descriptor.as_fd()), options) {
                Ok(Some(status)) => self.ended = Some(describe(&status)),
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => self.ended = Some(error.to_string()),
            }
        }
        self.ended.as_deref()
    }
}

/// As `std::process::ExitStatus` says it.
fn describe(status: &WaitIdStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (_, Some(signal)) => signal,
        _ => 0,
    };
    std::process::ExitStatus::from_raw(raw).to_string()
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
            self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

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
}
