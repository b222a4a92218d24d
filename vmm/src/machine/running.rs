//! A machine with its threads.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use spore_devices::Interrupt;
use vmm_sys_util::eventfd::EventFd;

use super::{Machine, MachineError, Shared, host};
use crate::exit::{Ended, EndedSlot};
use crate::fork_port::{ForkPort, Report};
use crate::io::IoLoop;
use crate::vcpu::run::{self, Vcpu};

/// A machine that runs until paused.
pub struct Running {
    vcpus: Vec<JoinHandle<Vcpu>>,
    io: JoinHandle<IoLoop>,
    stop_io: Arc<EventFd>,
    shared: Shared,
}

impl Machine {
    /// Sets the machine going.
    ///
    /// # Errors
    /// [`MachineError::Host`] when a thread cannot be started; the machine is then gone.
    pub fn run(mut self) -> Result<Running, MachineError> {
        let Shared { gate, .. } = &self.shared;
        gate.arm(self.vcpus.iter_mut().map(|vcpu| &mut vcpu.fd));
        if std::mem::take(&mut self.announce) {
            self.shared
                .devices
                .generation_line
                .trigger()
                .map_err(host("the generation id's interrupt"))?;
        }
        let stop_io = self.io.stop_event();
        let ended = self.shared.ended.clone();
        let io = self.io;
        let io = spawn("io".into(), move || io.run(&ended))?;
        let mut threads = Vec::with_capacity(self.vcpus.len());
        for vcpu in self.vcpus {
            let Shared { gate, bus, ended, .. } = self.shared.clone();
            let thread = spawn(format!("vcpu{}", vcpu.index), move || {
                run::run(vcpu, &gate, &bus, &ended)
            });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    let half = Running {
                        vcpus: threads,
                        io,
                        stop_io,
                        shared: self.shared,
                    };
                    drop(half.pause());
                    return Err(error);
                }
            }
        }
        Ok(Running {
            vcpus: threads,
            io,
            stop_io,
            shared: self.shared,
        })
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
                announce: false,
                at_port: false,
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

    /// Whether it was made from a machine that stood at its fork port, and wakes there.
    pub fn wakes_at_port(&self) -> bool {
        self.shared.port.wakes()
    }

    /// The fork port.
    pub fn fork_port(&self) -> &ForkPort {
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
