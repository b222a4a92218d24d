//! A machine with its threads.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use spore_devices::Interrupt;
use vmm_sys_util::eventfd::EventFd;

use super::{Machine, MachineError, Shared, host};
use crate::exit::{Ended, EndedSlot};
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
