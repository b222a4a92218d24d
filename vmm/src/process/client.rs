//! The owner's handle on a VM process.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::message::{
    BootSpec, Failure, Reply, Request, RestoreSpec, SaveSpec, Saved, VmStats, Woke, receive, send,
};
use crate::console;
use crate::exit::Ended;
use crate::machine::Identity;

/// How long a VM process may take to answer a request that does no bulk work.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a save may take: up to 16 GiB to a slow disk.
const SAVE: Duration = Duration::from_secs(1800);

/// Why a VM could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The program is not there or does not start.
    #[error("{program} does not start: {source}; it is installed beside `spore`, or named by SPORE_VM")]
    Spawn {
        /// Which.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It said no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The VM ended when it should not have.
    #[error("{ended}{}", serial(.console))]
    Ended {
        /// How.
        ended: Ended,
        /// The last lines of its console.
        console: String,
    },
    /// The process died or was killed.
    #[error("the VM process is gone ({status}){}", serial(.console))]
    Gone {
        /// Its exit status.
        status: String,
        /// The last lines of the VM's console.
        console: String,
    },
    /// The control stream failed.
    #[error("the VM process cannot be talked to: {0}")]
    Control(io::Error),
}

/// Console lines as part of an error message.
pub fn serial(console: &str) -> String {
    if console.is_empty() {
        String::new()
    } else {
        format!("; the console's last lines:\n{console}")
    }
}

/// Lines of console that go into an error.
const CONSOLE_LINES: usize = 12;

/// A VM process. Dropping the handle ends the process and waits for it.
pub struct VmHandle {
    child: Child,
    control: UnixStream,
    console: PathBuf,
    vsock: PathBuf,
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        // Our own child, by its handle: it cannot be a recycled process id.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.vsock);
    }
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

impl VmHandle {
    /// Starts a process without a machine yet; `console` and `vsock` are where its machine will
    /// have them.
    ///
    /// # Errors
    /// [`VmError::Spawn`].
    pub fn spawn(console: &Path, vsock: &Path) -> Result<Self, VmError> {
        let program = program();
        let failed = |source| VmError::Spawn {
            program: program.clone(),
            source,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new(&program)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            child,
            control: ours,
            console: console.to_owned(),
            vsock: vsock.to_owned(),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Unix socket for clients of the guest's vsock ports.
    pub fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        console::tail(&self.console, CONSOLE_LINES)
    }

    /// Cold-boots a machine and lets it run.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn boot(&mut self, spec: BootSpec) -> Result<(), VmError> {
        self.done(&Request::Boot(spec))
    }

    /// Makes a machine from a checkpoint; it stands still.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn restore(&mut self, spec: RestoreSpec) -> Result<(), VmError> {
        self.done(&Request::Restore(spec))
    }

    /// Lets the machine run. One that was saved at its fork port wakes as `identity`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn resume(&mut self, identity: &Identity) -> Result<(), VmError> {
        self.done(&Request::Resume {
            identity: identity.clone(),
        })
    }

    /// Makes the guest's next visit to its fork port a stop: see [`VmHandle::pause_at_fork_port`].
    ///
    /// # Errors
    /// [`VmError`].
    pub fn arm_fork_port(&mut self) -> Result<(), VmError> {
        self.done(&Request::ArmForkPort)
    }

    /// Waits until the guest stands at its fork port and stops the machine there.
    ///
    /// # Errors
    /// [`VmError`]; after `limit` the guest runs on.
    pub fn pause_at_fork_port(&mut self, limit: Duration) -> Result<(), VmError> {
        match self.ask(&Request::PauseAtForkPort(millis(limit)), limit + ANSWER)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits until a fork has said that it is who it should be, at most `limit`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn await_ready(&mut self, limit: Duration) -> Result<Woke, VmError> {
        match self.ask(&Request::AwaitReady(millis(limit)), limit + ANSWER)? {
            Reply::Woke(woke) => Ok(woke),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the machine.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn pause(&mut self) -> Result<(), VmError> {
        self.done(&Request::Pause)
    }

    /// Writes the paused machine's memory and state into `directory` and seals its disk; the disk
    /// goes on in `next_overlay`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn save(&mut self, directory: &Path, next_overlay: &Path) -> Result<Saved, VmError> {
        let spec = SaveSpec {
            directory: directory.to_owned(),
            next_overlay: next_overlay.to_owned(),
        };
        match self.ask(&Request::Save(spec), SAVE)? {
            Reply::Saved(saved) => Ok(*saved),
            other => Err(unexpected(&other)),
        }
    }

    /// Seals the disk of a machine that has ended, and says which files are layers now, bottom first.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn seal_disk(&mut self) -> Result<Vec<PathBuf>, VmError> {
        match self.ask(&Request::SealDisk, SAVE)? {
            Reply::Sealed(layers) => Ok(layers),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the guest to have `bytes` beyond boot RAM. It does so in its own time: see [`VmHandle::stats`].
    ///
    /// # Errors
    /// [`VmError`].
    pub fn request_memory(&mut self, bytes: u64) -> Result<(), VmError> {
        self.done(&Request::RequestMemory(bytes))
    }

    /// Sizes and times.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn stats(&mut self) -> Result<VmStats, VmError> {
        match self.ask(&Request::Stats, ANSWER)? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the VM to end by itself, at most `limit`; `None` if it did not.
    ///
    /// # Errors
    /// [`VmError`] when the process died instead.
    pub fn wait_end(&mut self, limit: Duration) -> Result<Option<Ended>, VmError> {
        send(&self.control, &Request::AwaitEnd).map_err(|error| self.lost(error))?;
        match self.receive(limit) {
            Ok(Reply::Ended(ended)) => Ok(Some(ended)),
            Ok(other) => Err(unexpected(&other)),
            Err(VmError::Control(error)) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the process has exited.
    pub fn is_gone(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    fn done(&mut self, request: &Request) -> Result<(), VmError> {
        match self.ask(request, ANSWER)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, VmError> {
        send(&self.control, request).map_err(|error| self.lost(error))?;
        loop {
            return match self.receive(limit)? {
                Reply::Failed(failure) => Err(failure.into()),
                // Left over from a wait that gave up; the answer to this request follows.
                Reply::Ended(_) => continue,
                reply => Ok(reply),
            };
        }
    }

    fn receive(&mut self, limit: Duration) -> Result<Reply, VmError> {
        // A zero time-out means "for ever" to the socket.
        let limit = limit.max(Duration::from_millis(1));
        self.control
            .set_read_timeout(Some(limit))
            .map_err(VmError::Control)?;
        match receive(&self.control) {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if is_timeout(&error) => Err(VmError::Control(error)),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// What a broken control stream means: usually that the process is gone.
    fn lost(&mut self, error: io::Error) -> VmError {
        // The stream closes a moment before the process can be waited for.
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return VmError::Gone {
                    status: status.to_string(),
                    console: self.console_tail(),
                };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        VmError::Control(error)
    }
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn unexpected(reply: &Reply) -> VmError {
    VmError::Control(io::Error::other(format!(
        "an answer to something else: {reply:?}"
    )))
}
