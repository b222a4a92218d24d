//! The loop of one vCPU thread: enter the guest, answer the exit, again.

use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX, kvm_cpuid_entry2,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::gate::{Gate, Pass};
use super::state::{self, SavedTsc};
use crate::bus::Bus;
use crate::exit::{Ended, EndedSlot};
use crate::fork_port::AfterRead;

/// A vCPU and its number.
pub struct Vcpu {
    /// Number and APIC id.
    pub index: u8,
    /// The KVM descriptor.
    pub fd: VcpuFd,
    /// The CPUID it was given. KVM_GET_CPUID2 is no substitute: some KVMs add what the host's CPU
    /// has and they do not offer.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Its time stamp counter goes on from here when it first runs, however long ago it was restored.
    pub tsc: Option<SavedTsc>,
}

/// Runs until the gate says stop or the VM ends; returns the vCPU with no I/O pending in it.
pub fn run(mut vcpu: Vcpu, gate: &Gate, bus: &Arc<Bus>, ended: &EndedSlot) -> Vcpu {
    let index = usize::from(vcpu.index);
    gate.register_thread(index);
    // What KVM does in a VM's first KVM_RUN (since Linux 6.13 it starts a kernel thread, a millisecond or more) is
    // then done before anyone waits for it. It also binds the vCPU to this thread.
    enter_without_running(&mut vcpu);
    while gate.pass(index) == Pass::Enter {
        if let Some(tsc) = vcpu.tsc.take()
            && let Err(error) = state::restore_tsc(vcpu.index, &vcpu.fd, tsc)
        {
            ended.set(Ended::Failed(error.to_string()));
            break;
        }
        let exit = vcpu.fd.run();
        gate.left(index);
        let verdict = match exit {
            Ok(exit) => answer(exit, bus),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Verdict::GoOn,
            Err(error) => Verdict::Failed(format!("KVM_RUN: {error}{}", hint(error.errno()))),
        };
        let end = match verdict {
            Verdict::GoOn => continue,
            // Whoever wanted this hears of it from the fork port, and stops the others.
            Verdict::Park => break,
            Verdict::End(end) => end,
            Verdict::Failed(what) => Ended::Failed(describe(&mut vcpu, &what)),
            Verdict::InternalError => Ended::Failed(describe_internal_error(&mut vcpu)),
        };
        ended.set(end);
        // The others are stopped by whoever hears of the end; this one must not enter again.
        break;
    }
    finish_pending_io(&mut vcpu);
    gate.unregister(index);
    vcpu
}

enum Verdict {
    GoOn,
    Park,
    End(Ended),
    Failed(String),
    InternalError,
}

fn answer(exit: VcpuExit<'_>, bus: &Bus) -> Verdict {
    let result = match exit {
        VcpuExit::MmioRead(address, data) => {
            if bus.mmio_read(address, data) == AfterRead::Park {
                return Verdict::Park;
            }
            Ok(())
        }
        VcpuExit::MmioWrite(address, data) => bus.mmio_write(address, data),
        VcpuExit::IoIn(port, data) => {
            bus.io_read(port, data);
            Ok(())
        }
        VcpuExit::IoOut(port, data) => match bus.io_write(port, data) {
            Some(ended) => return Verdict::End(ended),
            None => Ok(()),
        },
        // Level-triggered interrupts are not used, so there is nothing to de-assert.
        VcpuExit::IoapicEoi(_) | VcpuExit::Intr => Ok(()),
        VcpuExit::Shutdown => {
            return Verdict::Failed("the guest triple-faulted (KVM_EXIT_SHUTDOWN)".into());
        }
        VcpuExit::InternalError => return Verdict::InternalError,
        VcpuExit::FailEntry(reason, cpu) => {
            return Verdict::Failed(format!(
                "KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x} on host CPU {cpu}: the guest state is not one this CPU accepts"
            ));
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            return Verdict::Failed(format!(
                "KVM_EXIT_MEMORY_FAULT at {gpa:#x}, {size} bytes, flags {flags:#x}: the host could not provide guest memory (is it out of memory?)"
            ));
        }
        other => return Verdict::Failed(format!("{other:?}, an exit this VMM does not expect")),
    };
    match result {
        Ok(()) => Verdict::GoOn,
        Err(error) => Verdict::Failed(format!("a device could not go on: {error}")),
    }
}

fn hint(errno: i32) -> &'static str {
    match errno {
        libc::EFAULT => ": guest memory that the host cannot provide (is it out of memory?)",
        libc::ENOMEM => ": the host is out of memory",
        _ => "",
    }
}

fn describe(vcpu: &mut Vcpu, what: &str) -> String {
    let place = vcpu.fd.get_regs().map_or_else(
        |error| format!("RIP unknown ({error})"),
        |regs| format!("RIP {:#x}", regs.rip),
    );
    format!("vCPU {}: {what}; {place}", vcpu.index)
}

fn describe_internal_error(vcpu: &mut Vcpu) -> String {
    let run = vcpu.fd.get_kvm_run();
    debug_assert_eq!(run.exit_reason, KVM_EXIT_INTERNAL_ERROR);
    // SAFETY: the exit reason names this union field.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let kind = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => {
            "KVM could not emulate an instruction: the host's `dmesg` names it; look RIP up in the guest kernel's System.map, and see docs/guest.md for the options that avoid it"
        }
        KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        _ => "see the host's `dmesg`",
    };
    let what = format!("KVM_EXIT_INTERNAL_ERROR, suberror {}: {kind}", internal.suberror);
    describe(vcpu, &what)
}

/// A read the guest is waiting for is in no get-state ioctl: KVM keeps it until the next `KVM_RUN`.
/// One more entry finishes it.
fn finish_pending_io(vcpu: &mut Vcpu) {
    enter_without_running(vcpu);
}

/// A `KVM_RUN` with `immediate_exit` set: it does what comes before running and comes back before the guest runs.
fn enter_without_running(vcpu: &mut Vcpu) {
    vcpu.fd.set_kvm_immediate_exit(1);
    match vcpu.fd.run() {
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
        other => tracing::debug!(vcpu = vcpu.index, ?other, "entering without running"),
    }
    vcpu.fd.set_kvm_immediate_exit(0);
}
