//! The VM process: one thread that answers its owner, beside those of the machine.
//!
//! A process begins empty. It cold-boots a machine, or it becomes a **template**, a machine at rest, by loading a
//! checkpoint or by being forked (`copies`). A template can be forked, saved (`saving`), and at last be made a
//! machine of. Whatever it is, it ends when its owner closes the control stream.

mod copies;
mod kept;
mod running;
mod saving;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::error::errno_in;
use super::message::{Failure, FailureKind, Reply, Request};
use super::wire::{Descriptors, receive, send};
use crate::confine::Confinement;
use crate::disk::{SharedOverlay, Stack};
use crate::exit::Ended;
use crate::machine::{Machine, MachineError, Running, Template};
use crate::vcpu::gate;
use kept::Kept;

/// The machine, as far as it has come.
enum Vm {
    None,
    /// At rest; nothing of it is KVM's yet.
    Template(Box<Template>, Stack),
    Paused(Machine),
    /// Its threads are there; an armed one's vCPUs wait to be released.
    Running(Running),
    /// It ended by itself or by a defect; what is left of it is gone.
    Over(Ended),
}

struct Server {
    /// To the owner, while there is one.
    control: Option<UnixStream>,
    kept: Option<Kept>,
    vm: Vm,
    disk: Option<SharedOverlay>,
    tell_end: bool,
    confinement: Confinement,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The owner has something to say, or is gone.
    Owner,
    /// Somebody wants to be the owner.
    Caller,
    /// The machine may have ended.
    Machine,
}

/// What is to be said to the owner. After a fork, the child has nothing to say to the parent's.
type Answer = Result<Option<Reply>, Failure>;

/// Serves `control`, in a process that is confined like this, until it is closed or the process has nothing more to say. A process that is kept serves whoever
/// is its owner next, and never returns but for a failure.
///
/// # Errors
/// When the control stream fails.
pub fn serve(control: OwnedFd, confinement: Confinement) -> io::Result<()> {
    gate::install_kick_handler()?;
    let mut server = Server {
        control: Some(UnixStream::from(control)),
        kept: None,
        vm: Vm::None,
        disk: None,
        tell_end: false,
        confinement,
    };
    loop {
        if let Some(ended) = server.take_end() {
            server.vm = Vm::Over(ended);
        }
        if let Vm::Over(ended) = &server.vm
            && server.tell_end
        {
            server.tell(&Reply::Ended(ended.clone()))?;
            server.tell_end = false;
        }
        match server.wait()? {
            Next::Machine => {}
            Next::Caller => server.meet(),
            Next::Owner => match server.hear() {
                Ok(true) => {}
                Ok(false) if server.owner_left() => {}
                Ok(false) => return Ok(()),
                Err(error) if server.owner_left() => tracing::info!(%error, "the owner's stream"),
                Err(error) => return Err(error),
            },
        }
    }
}

/// What a request failed of: an error or a text.
type Cause = Box<dyn std::error::Error + Send + Sync>;

fn failure(kind: FailureKind, error: impl Into<Cause>) -> Failure {
    let error = error.into();
    Failure {
        kind,
        message: error.to_string(),
        errno: errno_in(&*error),
    }
}

/// What makes an error into a failure.
fn failed<E: Into<Cause>>(kind: FailureKind) -> impl FnOnce(E) -> Failure {
    move |error| failure(kind, error)
}

fn from_machine(error: MachineError) -> Failure {
    let kind = match &error {
        MachineError::Kvm(_) => FailureKind::Kvm,
        MachineError::Boot(_) => FailureKind::Kernel,
        MachineError::Vcpu(_) | MachineError::Device { .. } | MachineError::CpuFeatures(_) => {
            FailureKind::Checkpoint
        }
        _ => FailureKind::Host,
    };
    failure(kind, error)
}

impl Server {
    /// Says something to the owner. If it is gone, nobody hears it; [`Server::hear`] will find that out.
    fn tell(&self, reply: &Reply) -> io::Result<()> {
        match &self.control {
            Some(control) => send(control, reply),
            None => Ok(()),
        }
        .or_else(|error| if self.outlives_owner() { Ok(()) } else { Err(error) })
    }

    /// Hears a request and answers it; false when there will be no more.
    fn hear(&mut self) -> io::Result<bool> {
        let Some(control) = &self.control else {
            return Ok(false);
        };
        let Some((request, came)) = receive::<Request>(control)? else {
            return Ok(false);
        };
        let reply = match request {
            Request::AwaitEnd => {
                self.tell_end = true;
                None
            }
            request => self
                .answer(request, came)
                .unwrap_or_else(|failure| Some(Reply::Failed(failure))),
        };
        if let Some(reply) = reply {
            self.tell(&reply)?;
            if let Reply::Woke(woke) = &reply
                && woke.is_ready()
            {
                self.has_woken();
            }
        }
        Ok(true)
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<Next> {
        let mut fds = Vec::with_capacity(3);
        let mut next = Vec::with_capacity(3);
        // The owner first: if it has just gone, that is found out before somebody takes its place.
        if let Some(control) = &self.control {
            fds.push(PollFd::new(control, PollFlags::IN));
            next.push(Next::Owner);
        }
        if let Some(kept) = &self.kept {
            fds.push(PollFd::new(&kept.listener, PollFlags::IN));
            next.push(Next::Caller);
        }
        if let Vm::Running(running) = &self.vm {
            // SAFETY: the event lives in `self.vm`, which outlives `fds`.
            let event = unsafe { BorrowedFd::borrow_raw(running.ended().event().as_raw_fd()) };
            fds.push(PollFd::from_borrowed_fd(event, PollFlags::IN));
            next.push(Next::Machine);
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().zip(next).find(|(fd, _)| !fd.revents().is_empty());
        Ok(ready.map_or(Next::Machine, |(_, next)| next))
    }

    /// The end of a running VM, with its threads stopped.
    fn take_end(&mut self) -> Option<Ended> {
        let Vm::Running(running) = &self.vm else {
            return None;
        };
        let ended = running.ended().get()?;
        if let Vm::Running(running) = std::mem::replace(&mut self.vm, Vm::None) {
            // The threads are joined before anyone hears of the end: nothing runs any more.
            drop(running.pause());
        }
        Some(ended)
    }

    fn answer(&mut self, request: Request, came: Descriptors) -> Answer {
        match request {
            Request::Fork => return self.fork(came),
            Request::Split(spec) => return self.split(&spec, came),
            Request::Wake(spec) => return self.wake(&spec, came),
            Request::Boot(spec) => self.boot(spec, came),
            Request::Load(spec) => self.load(&spec, came),
            Request::UseWakeSet(pages) => self.use_wake_set(pages),
            Request::Arm(spec) => self.arm(&spec, came),
            Request::WakeSet => self.wake_set(came),
            Request::Save(spec) => self.save(&spec, came),
            Request::ArmForkPort => self.arm_fork_port(),
            Request::LeaveForkPort(late_ms) => {
                self.leave_fork_port(Duration::from_millis(late_ms));
                Ok(Reply::Done)
            }
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::SealFrozen => self.seal_frozen(),
            Request::FreezeDisk(next) => self.freeze_disk(&next, came),
            Request::SealDisk => self.seal_disk(),
            Request::RequestMemory(bytes) => self.request_memory(bytes),
            Request::GrowDisk(bytes) => self.grow_disk(bytes),
            Request::Stats => self.stats(),
            Request::Keep(token) => self.keep(token, came),
            Request::Hold => self.hold(came),
            Request::Ping => Ok(Reply::Done),
            Request::Confinement => Ok(Reply::Confined(Box::new(self.confinement.clone()))),
            // Handled by the caller.
            Request::AwaitEnd => Ok(Reply::Done),
        }
        .map(Some)
    }

    fn running(&self, what: &str) -> Result<&Running, Failure> {
        match &self.vm {
            Vm::Running(running) => Ok(running),
            vm => Err(cannot(what, vm)),
        }
    }

    fn disk(&self) -> Result<&SharedOverlay, Failure> {
        let disk = self.disk.as_ref();
        disk.ok_or_else(|| failure(FailureKind::Disk, "the machine has no disk"))
    }

    fn take_running(&mut self, what: &str) -> Result<Running, Failure> {
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Running(running) => Ok(running),
            other => {
                let failure = cannot(what, &other);
                self.vm = other;
                Err(failure)
            }
        }
    }

    fn take_template(&mut self, what: &str) -> Result<(Box<Template>, Stack), Failure> {
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Template(template, disk) => Ok((template, disk)),
            other => {
                let failure = cannot(what, &other);
                self.vm = other;
                Err(failure)
            }
        }
    }

    fn empty(&self) -> Result<(), Failure> {
        match &self.vm {
            Vm::None => Ok(()),
            _ => Err(failure(
                FailureKind::Conflict,
                "this process has a machine already",
            )),
        }
    }
}

fn cannot(what: &str, vm: &Vm) -> Failure {
    let state = match vm {
        Vm::None => "there is no machine".to_owned(),
        Vm::Template(..) => "the machine is at rest".to_owned(),
        Vm::Paused(_) => "the machine stands still".to_owned(),
        Vm::Running(_) => "the machine runs".to_owned(),
        Vm::Over(ended) => format!("the machine has ended: {ended}"),
    };
    failure(FailureKind::Conflict, format!("cannot {what}: {state}"))
}
