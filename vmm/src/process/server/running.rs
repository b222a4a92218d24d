//! Making a machine, letting it run, asking it things.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use spore_protocol::fork_port::Repair;
use spore_protocol::network::Network;
use spore_snapshot::disk::Durability;

use super::{Answer, Server, Vm, cannot, failed, failure, from_machine};
use crate::clock::Trace;
use crate::device_set::{DeviceSet, lock};
use crate::disk::{self, SharedOverlay};
use crate::fork_port::Report;
use crate::machine::{Attachments, BootConfig, Machine};
use crate::pagemap::Pagemap;
use crate::process::message::{ArmSpec, BootSpec, Failure, FailureKind, Reply, VmStats, WakeSpec, Woke};
use crate::process::wire::{Descriptors, send};
use crate::ram::RamLayout;
use crate::wake_set::WakeSet;

/// Connects the network card of a machine that has not run yet, if it is to be.
fn connect(devices: &DeviceSet, spec: Option<&Network>, mut came: Descriptors) -> Result<(), Failure> {
    match (spec, came.next("the TAP device")) {
        (None, Err(_)) => Ok(()),
        (Some(spec), Ok(tap)) => devices
            .connect(spec, tap)
            .map_err(|error| failure(FailureKind::Host, error).about("the TAP device")),
        _ => Err(failure(
            FailureKind::Conflict,
            "a network card needs a TAP device, and the other way round",
        )),
    }
}

/// What an owner is told of a fork that has reported this.
fn woke(report: Report, mut trace: Trace, why: impl FnOnce() -> String) -> Woke {
    trace.mark("READY heard");
    let failed = report.ready.and_then(|(_, value)| Repair::from_register(value));
    Woke {
        released_ns: report.released_ns.unwrap_or_default(),
        woke_ns: report.woke_ns,
        ready_ns: report.ready.map(|(at, _)| at),
        failed,
        why: failed.map(|_| why()).unwrap_or_default(),
        trace,
    }
}

impl Server {
    fn attachments(&mut self, disk: SharedOverlay, came: &mut Descriptors) -> Result<Attachments, Failure> {
        let mut next = |what| came.next(what).map_err(failed(FailureKind::Host));
        let backend = disk.backend();
        self.disk = Some(disk);
        Ok(Attachments {
            disk: backend,
            console: File::from(next("the console's log")?),
            vsock: Some(UnixListener::from(next("the vsock clients' socket")?)),
        })
    }

    pub(super) fn boot(&mut self, spec: BootSpec, mut came: Descriptors) -> Result<Reply, Failure> {
        self.empty()?;
        let kernel = came.next("the kernel").map_err(failed(FailureKind::Host))?;
        let disk = disk::of(&spec.disk, &mut came).map_err(failed(FailureKind::Disk))?;
        let attachments = self.attachments(disk, &mut came)?;
        let config = BootConfig {
            vcpus: spec.vcpus,
            ram: RamLayout {
                boot: spec.boot_bytes,
                hotplug: spec.hotplug_bytes,
            },
            kernel: (spec.kernel, kernel.into()),
            cmdline: spec.cmdline,
        };
        let machine = Machine::boot(config, attachments).map_err(from_machine)?;
        connect(machine.devices(), spec.network.as_ref(), came)?;
        self.vm = Vm::Running(machine.run().map_err(from_machine)?);
        Ok(Reply::Done)
    }

    /// Makes the template's machine and starts its threads, which wait. A template that cannot is of no more use.
    pub(super) fn arm(&mut self, spec: &ArmSpec, mut came: Descriptors) -> Result<Reply, Failure> {
        let (template, stack) = self.take_template("arm")?;
        let mut trace = Trace::default();
        trace.mark("arming");
        let disk = stack
            .overlay(&spec.overlay, &mut came, Durability::Ephemeral)
            .map_err(failed(FailureKind::Disk))?;
        let attachments = self.attachments(disk, &mut came)?;
        trace.mark("overlay, console, socket");
        let machine = template
            .into_machine(attachments, &mut trace)
            .map_err(from_machine)?;
        self.vm = Vm::Running(machine.park().map_err(from_machine)?);
        trace.mark("threads parked");
        Ok(Reply::Armed(trace))
    }

    /// Lets an armed machine run, and waits until it is who it should be. The owner hears that from the vCPU that says
    /// so, and need not wait until this thread has been woken; what else there may be to say is returned.
    pub(super) fn wake(&mut self, spec: &WakeSpec, came: Descriptors) -> Answer {
        let mut trace = Trace::default();
        trace.mark("wake request received");
        let Vm::Running(running) = &mut self.vm else {
            return Err(cannot("wake", &self.vm));
        };
        connect(running.devices(), spec.identity.network.as_ref(), came)?;
        running.write_mailbox(&spec.identity).map_err(from_machine)?;
        trace.mark("mailbox written");
        let told = Arc::new(AtomicBool::new(false));
        if let Some(control) = &self.control {
            // As a file: a vCPU's thread may write, and not send.
            let control = control.try_clone().map_err(failed(FailureKind::Host))?;
            let (control, trace, told) = (File::from(OwnedFd::from(control)), trace.clone(), told.clone());
            running.fork_port().do_when_ready(Box::new(move |report| {
                // An owner that is gone is found out by who listens to it.
                let sent = send(&control, &Reply::Woke(woke(report, trace, String::new)));
                told.store(sent.is_ok(), Ordering::SeqCst);
            }));
        }
        running.release().map_err(from_machine)?;
        let report = running.await_ready(Duration::from_millis(spec.limit_ms));
        // Also one that says so just now: then it has not been told.
        let nobody_told = running.fork_port().withdraw();
        if nobody_told {
            let woke = woke(report, trace, || running.why_not_ready());
            return Ok(Some(Reply::Woke(woke)));
        }
        if told.load(Ordering::SeqCst) {
            self.has_woken();
        }
        Ok(None)
    }

    pub(super) fn wake_set(&self, mut came: Descriptors) -> Result<Reply, Failure> {
        let running = self.running("look at its pages")?;
        let plugged = super::saving::plugged_runs(running.devices());
        let pages = came
            .next("the page table")
            .and_then(|table| WakeSet::record(running.ram(), &plugged, &Pagemap::of(table.into())))
            .map_err(|error| failure(FailureKind::Host, error).about("the page table"))?;
        Ok(Reply::WakeSet(pages))
    }

    pub(super) fn arm_fork_port(&mut self) -> Result<Reply, Failure> {
        self.running("arm the fork port")?.fork_port().arm(true);
        Ok(Reply::Done)
    }

    /// Nobody waits for the guest at its fork port any more. It goes on if it stands there already, or comes there
    /// within `late`: its next visit would be taken for that of whoever wants one then.
    pub(super) fn leave_fork_port(&mut self, late: Duration) {
        let Vm::Running(running) = &self.vm else { return };
        if !running.fork_port().is_wanted_or_visited() {
            return;
        }
        let Ok(running) = self.take_running("go on") else {
            return;
        };
        let machine = match running.pause_at_port(late) {
            Ok(Ok(machine)) => Ok(machine),
            // It may have come there just now.
            Ok(Err(running)) => running.pause(),
            Err(ended) => Err(ended),
        };
        match machine {
            Ok(machine) => {
                // If it cannot go on, that is how it ended.
                let _ = self.go_on(machine);
            }
            Err(ended) => self.vm = Vm::Over(ended),
        }
    }

    pub(super) fn pause(&mut self) -> Result<Reply, Failure> {
        match self.take_running("pause")?.pause() {
            Ok(machine) => {
                self.vm = Vm::Paused(machine);
                Ok(Reply::Done)
            }
            Err(ended) => Err(self.over(ended)),
        }
    }

    pub(super) fn resume(&mut self) -> Result<Reply, Failure> {
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Paused(machine) => {
                self.vm = Vm::Running(machine.run().map_err(from_machine)?);
                Ok(Reply::Done)
            }
            other => {
                let failure = cannot("resume", &other);
                self.vm = other;
                Err(failure)
            }
        }
    }

    fn devices(&self) -> Result<&DeviceSet, Failure> {
        match &self.vm {
            Vm::Paused(machine) => Ok(machine.devices()),
            Vm::Running(running) => Ok(running.devices()),
            vm => Err(cannot("look at its devices", vm)),
        }
    }

    pub(super) fn request_memory(&mut self, bytes: u64) -> Result<Reply, Failure> {
        let mut mem = lock(&self.devices()?.mem);
        mem.device_mut()
            .set_requested_size(bytes)
            .map_err(failed(FailureKind::Conflict))?;
        mem.config_changed().map_err(failed(FailureKind::Host))?;
        Ok(Reply::Done)
    }

    pub(super) fn grow_disk(&mut self, bytes: u64) -> Result<Reply, Failure> {
        let disk = self.disk()?;
        // The device's lock first, as the I/O thread takes them.
        let mut root = lock(&self.devices()?.root);
        disk.grow(bytes).map_err(failed(FailureKind::Disk))?;
        root.device_mut().grow().map_err(failed(FailureKind::Disk))?;
        root.config_changed().map_err(failed(FailureKind::Host))?;
        Ok(Reply::Done)
    }

    pub(super) fn stats(&self) -> Result<Reply, Failure> {
        let layout = match &self.vm {
            Vm::Paused(machine) => machine.ram().layout(),
            Vm::Running(running) => running.ram().layout(),
            _ => RamLayout { boot: 0, hotplug: 0 },
        };
        let mem = lock(&self.devices()?.mem);
        Ok(Reply::Stats(VmStats {
            boot_bytes: layout.boot,
            region_bytes: layout.hotplug,
            requested_bytes: mem.device().requested_size(),
            plugged_bytes: mem.device().plugged_size(),
            disk_bytes: self.disk.as_ref().map_or(0, SharedOverlay::bytes),
            paused: matches!(self.vm, Vm::Paused(_)),
        }))
    }
}
