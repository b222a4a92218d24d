//! The owner's handle on a VM process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::net::sockopt::set_socket_passcred;

use super::files;
use super::message::{
    ArmSpec, BootSpec, FailureKind, LoadSpec, Reply, Request, SaveSpec, Saved, Split, SplitSpec, VmStats,
    WakeSpec, Woke,
};
use spore_snapshot::checkpoint::{MEMORY_FILE, STATE_FILE};

use super::born::born;
use super::error::VmError;
use super::files::Overlays;
use super::owned::{Killer, Process};
use super::program::{program, user};
use super::wire::{receive, send, send_with};
use crate::clock::Trace;
use crate::confine::Confinement;
use crate::console;
use crate::exit::Ended;
use crate::wake_set::WakeSet;

/// How long a VM process may take to answer a request that does no bulk work.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// How long a save may take: up to 16 GiB to a slow disk.
const SAVE: Duration = Duration::from_secs(1800);

/// What an owner needs to have another process for a fork.
pub(super) const STREAM: &str = "no control stream for a fork";

/// Lines of console that go into an error.
pub(crate) const CONSOLE_LINES: usize = 12;

/// A VM process. Dropping the handle ends the process and waits for it.
pub struct VmHandle {
    pub(super) process: Process,
    pub(super) control: UnixStream,
    pub(super) console: PathBuf,
    pub(super) vsock: PathBuf,
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        if !self.process.is_ours() {
            return;
        }
        // Ended before its socket goes.
        self.process.kill();
        self.process.wait();
        let _ = std::fs::remove_file(&self.vsock);
    }
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
        let mut command = Command::new(&program);
        // What else is in our environment is not its business.
        let own = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"SPORE_"));
        command.env_clear().envs(own);
        if let Some(user) = user().map_err(failed)? {
            command.arg("--user").arg(user.to_string());
        }
        let child = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // What a terminal's keys do to a group is for its owner to hear and to decide about.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            process: Process::of_child(child).map_err(failed)?,
            control: ours,
            console: console.to_owned(),
            vsock: vsock.to_owned(),
        })
    }

    /// The handle of a process that this one forked. It has the same parent as the one that forked, which is us unless
    /// that was adopted. `pid` is what it is said to be; who it is, the kernel says.
    fn of_fork(pid: i32, control: UnixStream, console: &Path, vsock: &Path) -> Result<Self, VmError> {
        let process = born(&control, pid)?;
        Ok(Self {
            process,
            control,
            console: console.to_owned(),
            vsock: vsock.to_owned(),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What ends it from elsewhere.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn killer(&self) -> io::Result<Killer> {
        self.process.killer()
    }

    /// Its control stream, to wait for the news that the machine has ended: see [`VmHandle::wait_end`].
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
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
    pub fn boot(&mut self, spec: BootSpec, tap: Option<BorrowedFd<'_>>) -> Result<(), VmError> {
        let mut all = vec![files::to_read(FailureKind::Kernel, &spec.kernel)?];
        all.extend(files::layers(&spec.disk.stack)?);
        all.extend(self.ends(&spec.disk.overlay)?);
        let all: Vec<_> = all.iter().map(AsFd::as_fd).chain(tap).collect();
        self.done_with(&Request::Boot(spec), &all, ANSWER)
    }

    /// What a machine is made with: its overlay in a new file, its console, its socket.
    fn ends(&self, overlay: &Path) -> Result<[OwnedFd; 3], VmError> {
        Ok([
            files::to_make(FailureKind::Disk, overlay)?,
            files::console(&self.console)?,
            files::vsock(&self.vsock)?,
        ])
    }

    /// Makes the process a template of a checkpoint.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn load(&mut self, spec: LoadSpec) -> Result<(), VmError> {
        let mut all = vec![
            files::to_read(FailureKind::Checkpoint, &spec.state)?,
            files::to_read(FailureKind::Checkpoint, &spec.memory)?,
        ];
        all.extend(files::layers(&spec.disk)?);
        let all: Vec<_> = all.iter().map(AsFd::as_fd).collect();
        self.done_with(&Request::Load(spec), &all, ANSWER)
    }

    /// Forks a template; the fork is a template too. `console` and `vsock` are where its machine will have them.
    ///
    /// # Errors
    /// [`VmError`]; this process is none the worse.
    pub fn fork(&mut self, console: &Path, vsock: &Path) -> Result<Self, VmError> {
        let (control, reply) = self.ask_for_fork(&Request::Fork, &[])?;
        match reply {
            Reply::Forked(pid) => Self::of_fork(pid, control, console, vsock),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops the machine for a moment and forks the process: the fork is a template of that instant. The machine
    /// runs on, its disk in the next of `overlays`, a new file, instead of the present one.
    ///
    /// # Errors
    /// [`VmError`]; the machine runs on if it can.
    pub fn split(&mut self, at_port: Duration, overlays: &Overlays) -> Result<(Self, Split), VmError> {
        let spec = SplitSpec {
            at_port_ms: millis(at_port),
            next_overlay: overlays.next.clone(),
        };
        let files = overlays.open()?;
        let split = self.ask_for_fork(&Request::Split(spec), &files.each_ref().map(AsFd::as_fd));
        overlays.clean_up(&files[0], split.as_ref().err());
        let (control, reply) = split?;
        match reply {
            Reply::Split(split) => {
                let fork = Self::of_fork(split.pid, control, Path::new(""), Path::new(""))?;
                Ok((fork, split))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for something that ends with another process, whose control stream is returned.
    fn ask_for_fork(
        &mut self,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<(UnixStream, Reply), VmError> {
        let (ours, theirs) = UnixStream::pair().map_err(VmError::host(STREAM))?;
        set_socket_passcred(&ours, true).map_err(VmError::host(STREAM))?;
        let all: Vec<_> = [theirs.as_fd()]
            .into_iter()
            .chain(files.iter().copied())
            .collect();
        send_with(&self.control, request, &all).map_err(|error| self.lost(error))?;
        drop(theirs);
        Ok((ours, self.answer(ANSWER + ANSWER)?))
    }

    /// Gives machines made of this template, and of its forks from now on, these pages in advance.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn use_wake_set(&mut self, pages: &WakeSet) -> Result<(), VmError> {
        self.done(&Request::UseWakeSet(pages.clone()))
    }

    /// Which pages the machine has touched since it was made.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn wake_set(&mut self) -> Result<WakeSet, VmError> {
        let table = self.pagemap()?;
        match self.ask_with(&Request::WakeSet, &[table.as_fd()], ANSWER)? {
            Reply::WakeSet(pages) => Ok(pages),
            other => Err(unexpected(&other)),
        }
    }

    fn pagemap(&mut self) -> Result<OwnedFd, VmError> {
        let table = files::pagemap(self.pid()).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => self.lost(error),
            _ => VmError::host("the page table of a VM cannot be had")(error),
        })?;
        match self.is_gone() {
            // The number may have been another's already.
            true => Err(self.lost(io::ErrorKind::NotFound.into())),
            false => Ok(table),
        }
    }

    /// Makes the template's machine, one step short of running, with its disk's overlay in a new file.
    ///
    /// # Errors
    /// [`VmError`]; the process is of no more use then.
    pub fn arm(&mut self, overlay: &Path) -> Result<Trace, VmError> {
        let spec = ArmSpec {
            overlay: overlay.to_owned(),
        };
        let all = self.ends(overlay)?;
        let all = all.each_ref().map(AsFd::as_fd);
        match self.ask_with(&Request::Arm(spec), &all, ANSWER)? {
            Reply::Armed(trace) => Ok(trace),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets an armed machine run, and waits until it has said that it is who it should be.
    ///
    /// # Errors
    /// [`VmError`]. That it failed to become so is no error here.
    pub fn wake(&mut self, spec: WakeSpec, tap: Option<BorrowedFd<'_>>) -> Result<Woke, VmError> {
        let limit = Duration::from_millis(spec.limit_ms) + ANSWER;
        match self.ask_with(&Request::Wake(spec), tap.as_slice(), limit)? {
            Reply::Woke(woke) => Ok(woke),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets a paused machine run.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn resume(&mut self) -> Result<(), VmError> {
        self.done(&Request::Resume)
    }

    /// Makes the guest's next visit to its fork port a stop: see [`VmHandle::split`].
    ///
    /// # Errors
    /// [`VmError`].
    pub fn arm_fork_port(&mut self) -> Result<(), VmError> {
        self.done(&Request::ArmForkPort)
    }

    /// Lets the guest go on if it stands at its fork port or comes there within `late`, and its next visit be none.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn leave_fork_port(&mut self, late: Duration) -> Result<(), VmError> {
        self.done(&Request::LeaveForkPort(millis(late)))
    }

    /// Stops the machine.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn pause(&mut self) -> Result<(), VmError> {
        self.done(&Request::Pause)
    }

    /// Writes the template's memory and state into `directory`.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn save(&mut self, directory: &Path) -> Result<Saved, VmError> {
        let spec = SaveSpec {
            memory: directory.join(MEMORY_FILE),
            state: directory.join(STATE_FILE),
            resident_bytes: files::resident_bytes(self.pid()),
        };
        let all = [
            files::to_make(FailureKind::Host, &spec.memory)?,
            files::to_make(FailureKind::Host, &spec.state)?,
            self.pagemap()?,
        ];
        let saved = match self.ask_with(&Request::Save(spec), &all.each_ref().map(AsFd::as_fd), SAVE)? {
            Reply::Saved(saved) => *saved,
            other => return Err(unexpected(&other)),
        };
        for file in &all[..2] {
            // Its process may not be allowed to.
            let made = rustix::fs::fchmod(file, Mode::RUSR | Mode::RGRP | Mode::ROTH);
            made.map_err(VmError::host("the checkpoint's files cannot be made readable"))?;
        }
        Ok(saved)
    }

    /// Seals what splits have frozen of the disk, and says which overlays are layers now, by number, bottom first.
    ///
    /// # Errors
    /// [`VmError`]; what is not sealed yet is by the next call.
    pub fn seal_frozen(&mut self) -> Result<Vec<u32>, VmError> {
        match self.ask(&Request::SealFrozen, SAVE)? {
            Reply::Sealed(layers) => Ok(layers),
            other => Err(unexpected(&other)),
        }
    }

    /// Goes on with the disk of a running machine in the next of `overlays`, seals what it was until then, and says which
    /// overlays are layers now, by number, bottom first. To these it is as if the power had failed: the guest should have synced.
    ///
    /// # Errors
    /// [`VmError`]; what is not sealed yet is by [`VmHandle::seal_frozen`].
    pub fn freeze_disk(&mut self, overlays: &Overlays) -> Result<Vec<u32>, VmError> {
        let files = overlays.open()?;
        let request = Request::FreezeDisk(overlays.next.clone());
        let frozen = self.ask_with(&request, &files.each_ref().map(AsFd::as_fd), SAVE);
        overlays.clean_up(&files[0], frozen.as_ref().err());
        match frozen? {
            Reply::Sealed(layers) => Ok(layers),
            other => Err(unexpected(&other)),
        }
    }

    /// Seals the disk of a machine that has ended, and says which overlays are layers now, by number, bottom
    /// first.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn seal_disk(&mut self) -> Result<Vec<u32>, VmError> {
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

    /// Makes the disk `bytes` large; the guest's driver is told.
    ///
    /// # Errors
    /// [`VmError`]; refused if that is less than it has.
    pub fn grow_disk(&mut self, bytes: u64) -> Result<(), VmError> {
        self.done(&Request::GrowDisk(bytes))
    }

    /// How the process is confined.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn confinement(&mut self) -> Result<Confinement, VmError> {
        match self.ask(&Request::Confinement, ANSWER)? {
            Reply::Confined(confinement) => Ok(*confinement),
            other => Err(unexpected(&other)),
        }
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

    /// Ends the process; does not wait for that. Its memory is freed as soon as the kernel gets to it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Whether the process has exited.
    pub fn is_gone(&mut self) -> bool {
        self.process.try_wait().is_some()
    }

    fn done(&mut self, request: &Request) -> Result<(), VmError> {
        self.done_with(request, &[], ANSWER)
    }

    pub(super) fn done_with(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), VmError> {
        match self.ask_with(request, descriptors, limit)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, VmError> {
        self.ask_with(request, &[], limit)
    }

    /// Asks, with descriptors that go along.
    fn ask_with(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Reply, VmError> {
        send_with(&self.control, request, descriptors).map_err(|error| self.lost(error))?;
        self.answer(limit)
    }

    fn answer(&mut self, limit: Duration) -> Result<Reply, VmError> {
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
            Ok(Some((reply, _))) => Ok(reply),
            Ok(None) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if is_timeout(&error) => Err(VmError::Control(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {limit:?}"),
            ))),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// What a broken control stream means: usually that the process is gone.
    pub(super) fn lost(&mut self, error: io::Error) -> VmError {
        // The stream closes a moment before the process can be waited for.
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().map(str::to_owned) {
                return VmError::Gone {
                    status,
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

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn unexpected(reply: &Reply) -> VmError {
    VmError::Control(io::Error::other(format!(
        "an answer to something else: {reply:?}"
    )))
}
