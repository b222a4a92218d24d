//! The VM process: one thread that answers its owner, beside those of the machine.
//!
//! A process begins empty. It cold-boots a machine, or it becomes a **template**, a machine at rest, by loading a
//! checkpoint or by being forked (`copies`). A template can be forked, saved (`saving`), and at last be made a
//! machine of. Whatever it is, it ends when its owner closes the control stream.

mod copies;
mod running;
mod saving;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

use super::message::{Failure, FailureKind, Reply, Request};
use super::wire::{receive, send};
use crate::disk::{SharedOverlay, Stack};
use crate::exit::Ended;
use crate::machine::{Machine, MachineError, Running, Template};
use crate::vcpu::gate;

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
    control: UnixStream,
    vm: Vm,
    disk: Option<SharedOverlay>,
    tell_end: bool,
}

/// What is to be said to the owner. After a fork, the child has nothing to say to the parent's.
type Answer = Result<Option<Reply>, Failure>;

/// Serves `control` until it is closed or the process has nothing more to say.
///
/// # Errors
/// When the control stream fails.
pub fn serve(control: OwnedFd) -> io::Result<()> {
    gate::install_kick_handler()?;
    let mut server = Server {
        control: UnixStream::from(control),
        vm: Vm::None,
        disk: None,
        tell_end: false,
    };
    loop {
        if let Some(ended) = server.take_end() {
            server.vm = Vm::Over(ended);
        }
        if let Vm::Over(ended) = &server.vm
            && server.tell_end
        {
            send(&server.control, &Reply::Ended(ended.clone()))?;
            server.tell_end = false;
        }
        if !server.wait()? {
            continue;
        }
        let Some((request, descriptor)) = receive::<Request>(&server.control)? else {
            return Ok(());
        };
        let reply = match request {
            Request::AwaitEnd => {
                server.tell_end = true;
                None
            }
            request => server
                .answer(request, descriptor)
                .unwrap_or_else(|failure| Some(Reply::Failed(failure))),
        };
        if let Some(reply) = reply {
            send(&server.control, &reply)?;
        }
    }
}

fn failure(kind: FailureKind, error: impl std::fmt::Display) -> Failure {
    Failure {
        kind,
        message: error.to_string(),
    }
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
    /// Waits until the owner has something to say (true) or the VM has ended (false).
    fn wait(&self) -> io::Result<bool> {
        let running = match &self.vm {
            Vm::Running(running) => Some(running.ended().clone()),
            _ => None,
        };
        let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
        if let Some(ended) = &running {
            // SAFETY: the event lives in `running`, which outlives `fds`.
            let event = unsafe { BorrowedFd::borrow_raw(ended.event().as_raw_fd()) };
            fds.push(PollFd::from_borrowed_fd(event, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(!fds[0].revents().is_empty())
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

    fn answer(&mut self, request: Request, descriptor: Option<OwnedFd>) -> Answer {
        match request {
            Request::Fork => return self.fork(descriptor),
            Request::Split(spec) => return self.split(&spec, descriptor),
            Request::Boot(spec) => self.boot(spec, descriptor),
            Request::Load(spec) => self.load(&spec),
            Request::UseWakeSet(pages) => self.use_wake_set(pages),
            Request::Arm(spec) => self.arm(&spec),
            Request::Wake(spec) => self.wake(&spec, descriptor),
            Request::WakeSet => self.wake_set(),
            Request::Save(directory) => self.save(&directory),
            Request::ArmForkPort => self.arm_fork_port(),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::SealFrozen => self.seal_frozen(),
            Request::FreezeDisk(next) => self.freeze_disk(&next),
            Request::SealDisk => self.seal_disk(),
            Request::RequestMemory(bytes) => self.request_memory(bytes),
            Request::GrowDisk(bytes) => self.grow_disk(bytes),
            Request::Stats => self.stats(),
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
