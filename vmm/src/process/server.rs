//! The VM process: one thread that answers its owner, beside those of the machine.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use spore_protocol::fork_port::Repair;
use spore_snapshot::checkpoint::{MEMORY_FILE, MemoryWriter, STATE_FILE, read_state, write_state};

use super::message::{
    BootSpec, Failure, FailureKind, Reply, Request, RestoreSpec, SaveSpec, Saved, VmStats, Woke, receive,
    send,
};
use crate::device_set::{DeviceSet, lock};
use crate::disk::{self, SharedOverlay};
use crate::exit::Ended;
use crate::hotplug::run_of;
use crate::layout::MIB;
use crate::machine::{Attachments, BootConfig, Identity, Machine, MachineError, MachineState, Running};
use crate::ram::{PluggedRun, RamLayout};
use crate::socket;
use crate::vcpu::cpuid;
use crate::vcpu::gate;

/// The machine, as far as it has come.
enum Vm {
    None,
    Paused(Machine),
    Running(Running),
    /// It ended by itself or by a defect; what is left of it is gone.
    Over(Ended),
}

struct Server {
    vm: Vm,
    disk: Option<SharedOverlay>,
    prepared_us: u64,
    resumed: Instant,
    tell_end: bool,
}

/// Serves `control` until it is closed or the process has nothing more to say.
///
/// # Errors
/// When the control stream fails.
pub fn serve(control: OwnedFd) -> io::Result<()> {
    let control = UnixStream::from(control);
    gate::install_kick_handler()?;
    let mut server = Server {
        vm: Vm::None,
        disk: None,
        prepared_us: 0,
        resumed: Instant::now(),
        tell_end: false,
    };
    loop {
        if let Some(ended) = server.take_end() {
            server.vm = Vm::Over(ended);
        }
        if let Vm::Over(ended) = &server.vm
            && server.tell_end
        {
            send(&control, &Reply::Ended(ended.clone()))?;
            server.tell_end = false;
        }
        if !server.wait(&control)? {
            continue;
        }
        let Some(request) = receive::<Request>(&control)? else {
            return Ok(());
        };
        let reply = match request {
            Request::AwaitEnd => {
                server.tell_end = true;
                continue;
            }
            request => server.answer(request).unwrap_or_else(Reply::Failed),
        };
        send(&control, &reply)?;
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
    fn wait(&self, control: &UnixStream) -> io::Result<bool> {
        let running = match &self.vm {
            Vm::Running(running) => Some(running.ended().clone()),
            _ => None,
        };
        let mut fds = vec![PollFd::new(control, PollFlags::IN)];
        if let Some(ended) = &running {
            // SAFETY: the event lives in `running`, which outlives `fds`.
            let event = unsafe {
                std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(ended.event()))
            };
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

    fn answer(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Boot(spec) => self.boot(spec),
            Request::Restore(spec) => self.restore(spec),
            Request::Resume { identity } => self.resume(&identity),
            Request::ArmForkPort => self.arm_fork_port(),
            Request::PauseAtForkPort(millis) => self.pause_at_fork_port(Duration::from_millis(millis)),
            Request::AwaitReady(millis) => self.await_ready(Duration::from_millis(millis)),
            Request::Pause => self.pause(),
            Request::Save(spec) => self.save(&spec),
            Request::SealDisk => self.seal_disk(),
            Request::RequestMemory(bytes) => self.request_memory(bytes),
            Request::Stats => self.stats(),
            // Handled by the caller.
            Request::AwaitEnd => Ok(Reply::Done),
        }
    }

    fn attachments(
        &mut self,
        disk: &disk::DiskSpec,
        console: &Path,
        vsock: &Path,
    ) -> Result<Attachments, Failure> {
        if !matches!(self.vm, Vm::None) {
            return Err(failure(
                FailureKind::Conflict,
                "this process has a machine already",
            ));
        }
        let host = |what: &Path| {
            let what = what.display().to_string();
            move |error: io::Error| failure(FailureKind::Host, format!("{what}: {error}"))
        };
        let overlay = disk::open(disk).map_err(|error| failure(FailureKind::Disk, error))?;
        let backend = overlay.backend();
        self.disk = Some(overlay);
        Ok(Attachments {
            disk: backend,
            console: File::create(console).map_err(host(console))?,
            vsock: Some(socket::bind(vsock).map_err(host(vsock))?),
        })
    }

    fn boot(&mut self, spec: BootSpec) -> Result<Reply, Failure> {
        let started = Instant::now();
        let attachments = self.attachments(&spec.disk, &spec.console, &spec.vsock)?;
        let config = BootConfig {
            vcpus: spec.vcpus,
            ram: RamLayout {
                boot: spec.boot_bytes,
                hotplug: spec.hotplug_bytes,
            },
            kernel: spec.kernel,
            cmdline: spec.cmdline,
        };
        let machine = Machine::boot(&config, attachments).map_err(from_machine)?;
        self.prepared_us = micros(started);
        self.vm = Vm::Running(machine.run().map_err(from_machine)?);
        Ok(Reply::Done)
    }

    fn restore(&mut self, spec: RestoreSpec) -> Result<Reply, Failure> {
        let started = Instant::now();
        let attachments = self.attachments(&spec.disk, &spec.console, &spec.vsock)?;
        let refused = |error: &dyn std::fmt::Display| failure(FailureKind::Checkpoint, error);
        let open = |path: &Path| {
            File::open(path)
                .map_err(|error| failure(FailureKind::Checkpoint, format!("{}: {error}", path.display())))
        };
        let payload = read_state(&open(&spec.state)?, &spec.state, &spec.state_record)
            .map_err(|error| refused(&error))?;
        let state: MachineState = postcard::from_bytes(&payload).map_err(|error| {
            refused(&format!(
                "{}: the machine state is malformed: {error}",
                spec.state.display()
            ))
        })?;
        let memory = open(&spec.memory)?;
        let machine = Machine::restore(&state, &memory, attachments).map_err(from_machine)?;
        self.vm = Vm::Paused(machine);
        self.prepared_us = micros(started);
        Ok(Reply::Done)
    }

    fn resume(&mut self, identity: &Identity) -> Result<Reply, Failure> {
        let started = Instant::now();
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Paused(machine) => {
                machine.write_mailbox(identity).map_err(from_machine)?;
                self.resumed = started;
                self.vm = Vm::Running(machine.run().map_err(from_machine)?);
                Ok(Reply::Done)
            }
            other => Err(self.put_back(other, "resume")),
        }
    }

    fn pause(&mut self) -> Result<Reply, Failure> {
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Running(running) => match running.pause() {
                Ok(machine) => {
                    self.vm = Vm::Paused(machine);
                    Ok(Reply::Done)
                }
                Err(ended) => {
                    self.vm = Vm::Over(ended.clone());
                    Err(failure(FailureKind::Host, ended))
                }
            },
            other => Err(self.put_back(other, "pause")),
        }
    }

    fn running(&self, what: &str) -> Result<&Running, Failure> {
        match &self.vm {
            Vm::Running(running) => Ok(running),
            _ => Err(failure(
                FailureKind::Conflict,
                format!("cannot {what}: the machine does not run"),
            )),
        }
    }

    fn arm_fork_port(&mut self) -> Result<Reply, Failure> {
        self.running("arm the fork port")?.fork_port().arm(true);
        Ok(Reply::Done)
    }

    fn pause_at_fork_port(&mut self, limit: Duration) -> Result<Reply, Failure> {
        match std::mem::replace(&mut self.vm, Vm::None) {
            Vm::Running(running) => match running.pause_at_port(limit) {
                Ok(Ok(machine)) => {
                    self.vm = Vm::Paused(machine);
                    Ok(Reply::Done)
                }
                Ok(Err(running)) => {
                    self.vm = Vm::Running(running);
                    Err(failure(
                        FailureKind::Guest,
                        "the agent did not come to its fork port in time",
                    ))
                }
                Err(ended) => {
                    self.vm = Vm::Over(ended.clone());
                    Err(failure(FailureKind::Host, ended))
                }
            },
            other => Err(self.put_back(other, "stop at the fork port")),
        }
    }

    fn await_ready(&mut self, limit: Duration) -> Result<Reply, Failure> {
        let running = self.running("wait for the guest")?;
        if !running.wakes_at_port() {
            return Ok(Reply::Woke(Woke::default()));
        }
        let report = running.await_ready(limit);
        let since = |at: Instant| u64::try_from((at - self.resumed).as_micros()).unwrap_or(u64::MAX);
        let failed = report.ready.and_then(|(_, value)| Repair::from_register(value));
        Ok(Reply::Woke(Woke {
            at_port: true,
            woke_us: report.woke.map(since),
            ready_us: report.ready.map(|(at, _)| since(at)),
            failed,
            why: failed.map(|_| running.why_not_ready()).unwrap_or_default(),
        }))
    }

    fn put_back(&mut self, vm: Vm, what: &str) -> Failure {
        let state = match &vm {
            Vm::None => "there is no machine".to_owned(),
            Vm::Paused(_) => "the machine stands still".to_owned(),
            Vm::Running(_) => "the machine runs".to_owned(),
            Vm::Over(ended) => format!("the machine has ended: {ended}"),
        };
        self.vm = vm;
        failure(FailureKind::Conflict, format!("cannot {what}: {state}"))
    }

    fn save(&mut self, spec: &SaveSpec) -> Result<Reply, Failure> {
        let started = Instant::now();
        let (Vm::Paused(machine), Some(disk)) = (&self.vm, &self.disk) else {
            let vm = std::mem::replace(&mut self.vm, Vm::None);
            return Err(self.put_back(vm, "save"));
        };
        let refused = |error: &dyn std::fmt::Display| failure(FailureKind::Host, error);
        let state = machine.save().map_err(from_machine)?;
        let plugged = plugged_runs(machine.devices());
        let payload = postcard::to_stdvec(&state).map_err(|error| refused(&error))?;

        let mut writer = MemoryWriter::create(&spec.directory.join(MEMORY_FILE), state.ram.span())
            .map_err(|error| refused(&error))?;
        writer.expect_bytes(resident_bytes());
        machine
            .write_memory(&plugged, &mut writer)
            .map_err(|error| refused(&error))?;
        let memory = writer.finish().map_err(|error| refused(&error))?.into_record();
        let state_record =
            write_state(&spec.directory.join(STATE_FILE), &payload).map_err(|error| refused(&error))?;

        let layers = disk
            .seal(&spec.next_overlay)
            .map_err(|error| failure(FailureKind::Disk, error))?;
        Ok(Reply::Saved(Box::new(Saved {
            memory,
            state: state_record.into_record(),
            layers,
            disk_bytes: disk.bytes(),
            vcpus: u32::try_from(state.vcpus.len()).unwrap_or(u32::MAX),
            memory_bytes: state.ram.boot + plugged.iter().map(|(_, bytes)| bytes).sum::<u64>(),
            cpu_features: state
                .vcpus
                .first()
                .map(|vcpu| cpuid::feature_words(vcpu.cpuid()))
                .unwrap_or_default(),
            paused_us: micros(started),
        })))
    }

    fn seal_disk(&mut self) -> Result<Reply, Failure> {
        match (&self.vm, &self.disk) {
            (Vm::Over(_), Some(disk)) => {
                let layers = disk
                    .seal_for_good()
                    .map_err(|error| failure(FailureKind::Disk, error))?;
                Ok(Reply::Sealed(layers))
            }
            _ => {
                let vm = std::mem::replace(&mut self.vm, Vm::None);
                Err(self.put_back(vm, "seal the disk"))
            }
        }
    }

    fn devices(&self) -> Result<&DeviceSet, Failure> {
        match &self.vm {
            Vm::Paused(machine) => Ok(machine.devices()),
            Vm::Running(running) => Ok(running.devices()),
            Vm::None => Err(failure(FailureKind::Conflict, "there is no machine")),
            Vm::Over(ended) => Err(failure(
                FailureKind::Conflict,
                format!("the machine has ended: {ended}"),
            )),
        }
    }

    fn request_memory(&mut self, bytes: u64) -> Result<Reply, Failure> {
        let mut mem = lock(&self.devices()?.mem);
        mem.device_mut()
            .set_requested_size(bytes)
            .map_err(|error| failure(FailureKind::Conflict, error))?;
        mem.config_changed()
            .map_err(|error| failure(FailureKind::Host, error))?;
        Ok(Reply::Done)
    }

    fn stats(&self) -> Result<Reply, Failure> {
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
            prepared_us: self.prepared_us,
        }))
    }
}

fn plugged_runs(devices: &DeviceSet) -> Vec<PluggedRun> {
    lock(&devices.mem).device().plugged_ranges().map(run_of).collect()
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Resident memory of this process, a bound on what a save writes; 0 when it cannot be read.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    pages.saturating_mul(4096).max(MIB)
}
