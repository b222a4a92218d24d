//! Becoming a template, and copying by `fork(2)`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Pid;
use spore_snapshot::checkpoint::read_state;

use super::{Answer, Server, Vm, failed, failure, from_machine};
use crate::clock::{Trace, monotonic_ns};
use crate::disk::Stack;
use crate::exit::Ended;
use crate::machine::{Machine, MachineState, Template};
use crate::process::fork::{Side, sibling};
use crate::process::message::{Failure, FailureKind, LoadSpec, Reply, Split, SplitSpec};
use crate::process::wire::{Descriptors, send};
use crate::wake_set::WakeSet;

/// The two sides of a split.
enum Forked {
    Parent(Pid),
    Child(Box<MachineState>, Stack),
}

fn control_of_child(came: &mut Descriptors) -> Result<OwnedFd, Failure> {
    came.next("the fork's control stream")
        .map_err(failed(FailureKind::Conflict))
}

impl Server {
    /// Loads a checkpoint.
    pub(super) fn load(&mut self, spec: &LoadSpec, mut came: Descriptors) -> Result<Reply, Failure> {
        self.empty()?;
        let state = came.next("the state").map_err(failed(FailureKind::Checkpoint))?;
        let memory = came.next("the memory").map_err(failed(FailureKind::Checkpoint))?;
        let payload = read_state(&state.into(), &spec.state, &spec.state_record)
            .map_err(failed(FailureKind::Checkpoint))?;
        let state: MachineState = postcard::from_bytes(&payload).map_err(|error| {
            let why = format!(
                "{}: the machine state is malformed: {error}",
                spec.state.display()
            );
            failure(FailureKind::Checkpoint, why)
        })?;
        let template = Template::load(state, &memory.into()).map_err(from_machine)?;
        let disk = Stack::of(&spec.disk, &mut came).map_err(failed(FailureKind::Disk))?;
        self.vm = Vm::Template(Box::new(template), disk);
        Ok(Reply::Done)
    }

    pub(super) fn use_wake_set(&mut self, pages: WakeSet) -> Result<Reply, Failure> {
        let (mut template, disk) = self.take_template("give pages in advance")?;
        // It comes from a fork, which a guest may have taken over: one that is wrong must not spoil all others.
        let fits = pages.fits(template.ram(), template.plugged());
        if fits {
            template.set_wake_set(pages);
        }
        self.vm = Vm::Template(template, disk);
        match fits {
            true => Ok(Reply::Done),
            false => Err(failure(
                FailureKind::Conflict,
                "pages that the machine does not have",
            )),
        }
    }

    /// Forks a template.
    pub(super) fn fork(&mut self, mut came: Descriptors) -> Answer {
        let control = control_of_child(&mut came)?;
        let (template, disk) = self.take_template("fork")?;
        self.vm = Vm::Template(template, disk);
        // SAFETY: a template has no threads: those of machines there may have been are joined.
        match unsafe { sibling() } {
            Ok(Side::Parent(pid)) => Ok(Some(Reply::Forked(pid.as_raw_nonzero().get()))),
            Ok(Side::Child) => {
                self.listen_to(control);
                Ok(None)
            }
            Err(error) => Err(failure(FailureKind::Host, error).about("fork")),
        }
    }

    /// Stops the machine, forks, and lets it go on. In the child the machine is a template.
    pub(super) fn split(&mut self, spec: &SplitSpec, mut came: Descriptors) -> Answer {
        let control = control_of_child(&mut came)?;
        let overlay = came.next("the next overlay").map_err(failed(FailureKind::Host))?;
        let reader = came
            .next("the overlay to read")
            .map_err(failed(FailureKind::Host))?;
        let mut trace = Trace::default();
        let (machine, stopped_ns) = self.stop(Duration::from_millis(spec.at_port_ms))?;
        trace.mark("threads joined");
        let forked = self
            .still(&machine, spec, (overlay.into(), reader), &mut trace)
            .and_then(|(state, disk)| {
                // SAFETY: the machine's threads were joined when it was stopped.
                match unsafe { sibling() } {
                    Ok(Side::Parent(pid)) => Ok(Forked::Parent(pid)),
                    Ok(Side::Child) => Ok(Forked::Child(Box::new(state), disk)),
                    Err(error) => Err(failure(FailureKind::Host, error).about("fork")),
                }
            });
        match forked {
            Ok(Forked::Child(state, disk)) => {
                self.become_template(machine, *state, disk, control);
                Ok(None)
            }
            Ok(Forked::Parent(pid)) => {
                trace.mark("forked");
                self.go_on(machine)?;
                Ok(Some(Reply::Split(Split {
                    pid: pid.as_raw_nonzero().get(),
                    stopped_ns,
                    resumed_ns: monotonic_ns(),
                    trace,
                })))
            }
            Err(failure) => {
                self.go_on(machine)?;
                Err(failure)
            }
        }
    }

    /// Stops the machine at its fork port, and says since when it stands.
    fn stop(&mut self, limit: Duration) -> Result<(Machine, u64), Failure> {
        let running = self.take_running("split")?;
        let port = running.fork_port().clone();
        match running.pause_at_port(limit) {
            Ok(Ok(machine)) => Ok((machine, port.reported().parked_ns.unwrap_or_else(monotonic_ns))),
            Ok(Err(running)) => {
                self.vm = Vm::Running(running);
                Err(failure(
                    FailureKind::Guest,
                    "the agent did not come to its fork port in time",
                ))
            }
            Err(ended) => Err(self.over(ended)),
        }
    }

    pub(super) fn over(&mut self, ended: Ended) -> Failure {
        self.vm = Vm::Over(ended.clone());
        failure(FailureKind::Host, ended.to_string())
    }

    /// Saves the state of a machine that stands still, and freezes its disk.
    fn still(
        &self,
        machine: &Machine,
        spec: &SplitSpec,
        (overlay, reader): (File, OwnedFd),
        trace: &mut Trace,
    ) -> Result<(MachineState, Stack), Failure> {
        let state = machine.save().map_err(from_machine)?;
        trace.mark("state saved");
        let frozen = self.disk()?.freeze(overlay, &spec.next_overlay, reader);
        let frozen = frozen.map_err(failed(FailureKind::Disk))?;
        trace.mark("disk frozen");
        Ok((state, frozen))
    }

    pub(super) fn go_on(&mut self, machine: Machine) -> Result<(), Failure> {
        match machine.run() {
            Ok(running) => {
                self.vm = Vm::Running(running);
                Ok(())
            }
            Err(error) => {
                let failure = from_machine(error);
                self.vm = Vm::Over(Ended::Failed(failure.message.clone()));
                Err(failure)
            }
        }
    }

    /// In a forked child: what was the parent's is let go of, its memory and state are a template.
    fn become_template(&mut self, machine: Machine, state: MachineState, disk: Stack, control: OwnedFd) {
        self.listen_to(control);
        self.tell_end = false;
        // Its machines are others': they must not be able to change what their parent's disk lies on.
        let only_read = self.disk.take().map_or(Ok(()), |disk| disk.only_read());
        let template = only_read
            .map_err(|error| error.to_string())
            .and_then(|()| Template::of(machine, state).map_err(|error| error.to_string()));
        self.vm = match template {
            Ok(template) => Vm::Template(Box::new(template), disk),
            Err(why) => Vm::Over(Ended::Failed(why)),
        };
    }

    /// In a forked child: the control stream is its own, and it says that it is there. The parent's is closed here, so
    /// that its owner notices when the parent ends; so is what the parent has to outlive its owner.
    fn listen_to(&mut self, control: OwnedFd) {
        let stdin: io::Result<()> = rustix::stdio::dup2_stdin(&control).map_err(io::Error::from);
        if let Err(error) = stdin {
            tracing::warn!(%error, "the parent's control stream stays open");
        }
        self.forget_kept();
        let control = UnixStream::from(control);
        // If nobody hears it, nobody is there, which is found out next.
        let _ = send(&control, &Reply::Born);
        self.control = Some(control);
    }
}
