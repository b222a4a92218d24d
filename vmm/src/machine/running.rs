//! A machine with its threads.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::state::clock_from;
use super::{Identity, Machine, MachineError, Shared, host, ioctl};
use crate::confine::seccomp;
use crate::exit::{Ended, EndedSlot};
use crate::fork_port::{ForkPort, Report};
use crate::io::IoLoop;
use crate::vcpu::run::{self, Vcpu};

/// A machine that runs until paused.
pub struct Running {
    vcpus: Vec<JoinHandle<Vcpu>>,
    io: JoinHandle<IoLoop>,
    stop_io: Arc<EventFd>,
    clock_ns: Option<u64>,
    /// Whether its vCPUs were let go.
    released: bool,
    shared: Shared,
}

impl Machine {
    /// Starts the machine's threads. The vCPUs wait one step short of the guest until [`Running::release`].
    ///
    /// # Errors
    /// [`MachineError::Host`] when a thread cannot be started; the machine is then gone.
    pub fn park(mut self) -> Result<Running, MachineError> {
        let Shared { gate, .. } = &self.shared;
        gate.arm(self.vcpus.iter_mut().map(|vcpu| &mut vcpu.fd));
        let stop_io = self.io.stop_event();
        let ended = self.shared.ended.clone();
        let io = self.io;
        let io = spawn("io".into(), move || {
            seccomp::io_thread();
            io.run(&ended)
        })?;
        let mut running = Running {
            vcpus: Vec::with_capacity(self.vcpus.len()),
            io,
            stop_io,
            clock_ns: self.clock_ns,
            released: false,
            shared: self.shared,
        };
        for vcpu in self.vcpus {
            let Shared { gate, bus, ended, .. } = running.shared.clone();
            let thread = spawn(format!("vcpu{}", vcpu.index), move || {
                seccomp::vcpu_thread();
                run::run(vcpu, &gate, &bus, &ended)
            });
            match thread {
                Ok(thread) => running.vcpus.push(thread),
                Err(error) => {
                    drop(running.pause());
                    return Err(error);
                }
            }
        }
        Ok(running)
    }

    /// Sets the machine going.
    ///
    /// # Errors
    /// As [`Machine::park`] and [`Running::release`].
    pub fn run(self) -> Result<Running, MachineError> {
        let mut running = self.park()?;
        running.release()?;
        Ok(running)
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, MachineError> {
    thread::Builder::new()
        .name(name)
        .stack_size(256 << 10)
        .spawn(body)
        .map_err(host("a thread"))
}

/// Waits for the first event, the second or the end of the time; whether it was the first.
fn wait_readable(first: &EventFd, second: &EventFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let mut fds = [first, second].map(|event| libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the array outlives the call and its length is what is said.
        let count = unsafe { libc::poll(fds.as_mut_ptr(), 2, millis) };
        if count >= 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return fds[0].revents != 0;
        }
    }
}

impl Running {
    /// Lets a parked machine go: its clocks go on from where they stood, and its vCPUs enter the guest. The
    /// fork port's [`Report`] says when.
    ///
    /// # Errors
    /// [`MachineError`] when KVM does not take the clock.
    pub fn release(&mut self) -> Result<(), MachineError> {
        if let Some(clock_ns) = self.clock_ns.take() {
            let clock = clock_from(clock_ns);
            self.shared.vm.set_clock(&clock).map_err(ioctl("KVM_SET_CLOCK"))?;
        }
        // Before: once it is open, whoever waits for a processor may wait for the guest.
        self.shared.port.released();
        self.shared.gate.open();
        self.released = true;
        Ok(())
    }

    /// Whether it waits to be released.
    pub fn is_parked(&self) -> bool {
        !self.released
    }

    /// Stops all threads and waits for them: nothing of the machine runs afterwards, every exit has
    /// been answered and every queue left between two requests.
    ///
    /// # Errors
    /// The end of the machine, if a thread died of a defect of ours.
    pub fn pause(self) -> Result<Machine, Ended> {
        self.shared.gate.stop();
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        let mut defect = None;
        for thread in self.vcpus {
            match thread.join() {
                Ok(vcpu) => vcpus.push(vcpu),
                Err(_) => defect = Some("a vCPU thread panicked"),
            }
        }
        // Cannot fail: the counter is far from its limit.
        let _ = self.stop_io.write(1);
        match (self.io.join(), defect) {
            (Ok(io), None) => Ok(Machine {
                vcpus,
                io,
                at_port: false,
                clock_ns: self.clock_ns,
                shared: self.shared,
            }),
            (Err(_), _) => Err(Ended::Failed(
                "the I/O thread panicked: a defect of Spore, please report it".into(),
            )),
            (_, Some(what)) => Err(Ended::Failed(format!(
                "{what}: a defect of Spore, please report it"
            ))),
        }
    }

    /// Waits until the guest stands at its fork port, and stops it there: a copy of it wakes there,
    /// and is told who it is. `None` if it did not come within `limit`; it runs on then.
    ///
    /// # Errors
    /// As [`Running::pause`].
    pub fn pause_at_port(self, limit: Duration) -> Result<Result<Machine, Running>, Ended> {
        let port = self.shared.port.clone();
        let parked = wait_readable(port.parked_event(), self.shared.ended.event(), limit);
        port.arm(false);
        if !parked {
            return Ok(Err(self));
        }
        let mut machine = self.pause()?;
        machine.at_port = true;
        Ok(Ok(machine))
    }

    /// Waits until the guest has reported at its fork port that it is ready, at most `limit`.
    pub fn await_ready(&self, limit: Duration) -> Report {
        let port = &self.shared.port;
        if port.reported().ready.is_none() {
            wait_readable(port.ready_event(), self.shared.ended.event(), limit);
        }
        port.reported()
    }

    /// Writes who a parked machine is to be into its mailbox.
    ///
    /// # Errors
    /// [`MachineError::Identity`] when it cannot be what is asked.
    pub fn write_mailbox(&self, identity: &Identity) -> Result<(), MachineError> {
        self.shared.write_mailbox(identity)
    }

    /// The fork port.
    pub fn fork_port(&self) -> &Arc<ForkPort> {
        &self.shared.port
    }

    /// How the machine ended, once it has.
    pub fn ended(&self) -> &Arc<EndedSlot> {
        &self.shared.ended
    }

    /// Guest memory.
    pub fn ram(&self) -> &crate::ram::Ram {
        &self.shared.ram
    }

    /// The devices, for requests that do not need a pause.
    pub fn devices(&self) -> &crate::device_set::DeviceSet {
        &self.shared.devices
    }
}
