//! Saving and restoring one vCPU, in the order that works.
//!
//! The order and its reasons are those of Firecracker (`arch/x86_64/vcpu.rs`) and of the KVM API
//! documentation (`Documentation/virt/kvm/api.rst`); each step says why it stands where it does.

use kvm_bindings::{
    CpuId, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// `IA32_TSC`.
const MSR_TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
const MSR_TSC_DEADLINE: u32 = 0x6E0;
/// Most MSRs a saved state may hold.
const MSRS_MAX: usize = 4096;

/// Everything of one vCPU that KVM holds. From a file it is untrusted: KVM checks each part.
#[derive(Clone, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: Option<u32>,
}

impl VcpuState {
    /// The CPUID the guest was shown.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// The MSRs in it.
    pub fn msr_indices(&self) -> impl Iterator<Item = u32> {
        self.msrs.iter().map(|&(index, _)| index)
    }

    /// Its time stamp counter and deadline.
    pub fn tsc(&self) -> SavedTsc {
        let value = |msr| {
            self.msrs
                .iter()
                .find(|&&(index, _)| index == msr)
                .map(|&(_, value)| value)
        };
        SavedTsc {
            tsc: value(MSR_TSC),
            deadline: value(MSR_TSC_DEADLINE),
        }
    }
}

/// What of a saved vCPU runs on by itself as soon as it is restored: its time stamp counter, and the deadline
/// that is compared with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedTsc {
    tsc: Option<u64>,
    deadline: Option<u64>,
}

/// Sets the time stamp counter back to what it was when the vCPU was saved, and its deadline as far ahead as it was
/// then: for a vCPU that waited after it was restored no time has passed. To be called last before it first runs.
///
/// A KVM that does not offset the counter leaves it the host's; the deadline is counted from whatever it is.
///
/// # Errors
/// [`VcpuStateError`].
pub fn restore_tsc(index: u8, vcpu: &VcpuFd, saved: SavedTsc) -> Result<(), VcpuStateError> {
    let Some(tsc) = saved.tsc else { return Ok(()) };
    write_msrs(index, vcpu, &[(MSR_TSC, tsc)])?;
    if let Some(deadline) = saved.deadline {
        let now = read_msrs(vcpu, &[MSR_TSC]).map_err(at(index, "KVM_GET_MSRS"))?;
        let now = now.first().map_or(tsc, |&(_, now)| now);
        let due = now.wrapping_add(deadline.saturating_sub(tsc));
        write_msrs(index, vcpu, &[(MSR_TSC_DEADLINE, due)])?;
    }
    Ok(())
}

/// A step of save or restore failed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// An ioctl failed.
    #[error("vCPU {index}: {step}: {source}")]
    Ioctl {
        /// Which vCPU.
        index: u8,
        /// Which step.
        step: &'static str,
        /// The cause.
        source: kvm_ioctls::Error,
    },
    /// KVM refused a model-specific register.
    #[error("vCPU {index}: this KVM does not take MSR {msr:#x}, which the checkpoint holds")]
    Msr {
        /// Which vCPU.
        index: u8,
        /// Which register.
        msr: u32,
    },
    /// The saved state is malformed.
    #[error("vCPU {index}: the saved state is malformed: {what}")]
    Malformed {
        /// Which vCPU.
        index: u8,
        /// What is wrong.
        what: &'static str,
    },
}

fn at(index: u8, step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Ioctl { index, step, source }
}

/// The MSRs that this KVM lists and actually lets be read (found once per process).
pub fn readable_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let mut candidates = kvm.get_msr_index_list()?.as_slice().to_vec();
    let mut readable = Vec::with_capacity(candidates.len());
    while !candidates.is_empty() {
        let read = read_msrs(vcpu, &candidates)?;
        readable.extend(read.iter().map(|&(index, _)| index));
        // KVM stops at the first MSR it cannot read: leave that one out and go on after it.
        candidates.drain(..(read.len() + 1).min(candidates.len()));
    }
    Ok(readable)
}

/// Reads MSRs up to the first that KVM refuses.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, kvm_ioctls::Error> {
    let mut values = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(kvm_bindings::KVM_MAX_MSR_ENTRIES) {
        let entries: Vec<_> = chunk
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = vcpu.get_msrs(&mut msrs)?;
        values.extend(
            msrs.as_slice()
                .iter()
                .take(read)
                .map(|entry| (entry.index, entry.data)),
        );
        if read < chunk.len() {
            break;
        }
    }
    Ok(values)
}

/// Saves a vCPU that is not in `KVM_RUN` and whose pending I/O has been completed; `cpuid` is what it was given.
///
/// # Errors
/// [`VcpuStateError::Ioctl`].
pub fn save(
    index: u8,
    vcpu: &VcpuFd,
    cpuid: &[kvm_cpuid_entry2],
    msr_indices: &[u32],
) -> Result<VcpuState, VcpuStateError> {
    // MP_STATE first: reading it makes KVM process pending INIT/SIPI, which changes other state.
    let mp_state = vcpu.get_mp_state().map_err(at(index, "KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(at(index, "KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(at(index, "KVM_GET_SREGS"))?;
    let xsave = vcpu.get_xsave().map_err(at(index, "KVM_GET_XSAVE"))?;
    let xcrs = vcpu.get_xcrs().map_err(at(index, "KVM_GET_XCRS"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(at(index, "KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(at(index, "KVM_GET_LAPIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().ok();
    let mut msrs = read_msrs(vcpu, msr_indices).map_err(at(index, "KVM_GET_MSRS"))?;
    fix_expired_deadline(&mut msrs);
    // Last: reading other state can move an exception from pending to injected.
    let events = vcpu.get_vcpu_events().map_err(at(index, "KVM_GET_VCPU_EVENTS"))?;
    Ok(VcpuState {
        cpuid: cpuid.to_vec(),
        mp_state,
        regs,
        sregs,
        xsave: xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect(),
        xcrs,
        debug_regs,
        lapic,
        msrs,
        events,
        tsc_khz,
    })
}

/// KVM reads back a deadline of 0 when the timer has expired but its interrupt is not delivered
/// yet; restored as it is the timer would never fire again. The present moment makes it fire at once.
fn fix_expired_deadline(msrs: &mut [(u32, u64)]) {
    let tsc = msrs
        .iter()
        .find(|(index, _)| *index == MSR_TSC)
        .map(|&(_, value)| value);
    if let (Some(tsc), Some(deadline)) = (tsc, msrs.iter_mut().find(|(index, _)| *index == MSR_TSC_DEADLINE))
        && deadline.1 == 0
    {
        deadline.1 = tsc;
    }
}

/// Puts a saved state into a fresh vCPU.
///
/// # Errors
/// [`VcpuStateError`].
pub fn restore(index: u8, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
    // CPUID before anything whose legality depends on it; since Linux 6.13 KVM caches it at the
    // first KVM_RUN and at reads of CPUID-dependent MSRs.
    let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| VcpuStateError::Malformed {
        index,
        what: "too many CPUID entries",
    })?;
    vcpu.set_cpuid2(&cpuid).map_err(at(index, "KVM_SET_CPUID2"))?;
    if let Some(khz) = state.tsc_khz
        && vcpu.get_tsc_khz().ok() != Some(khz)
    {
        vcpu.set_tsc_khz(khz).map_err(at(index, "KVM_SET_TSC_KHZ"))?;
    }
    vcpu.set_mp_state(state.mp_state)
        .map_err(at(index, "KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.regs).map_err(at(index, "KVM_SET_REGS"))?;
    // SREGS before LAPIC: they hold the APIC base.
    vcpu.set_sregs(&state.sregs).map_err(at(index, "KVM_SET_SREGS"))?;
    let xsave = xsave_from(index, &state.xsave)?;
    // SAFETY: `kvm_xsave` is the 4 KiB structure; we never enable features (AMX) that need more.
    unsafe { vcpu.set_xsave(&xsave.as_fam_struct_ref().xsave) }.map_err(at(index, "KVM_SET_XSAVE"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(at(index, "KVM_SET_XCRS"))?;
    vcpu.set_debug_regs(&state.debug_regs)
        .map_err(at(index, "KVM_SET_DEBUGREGS"))?;
    // LAPIC before MSRS: TSC_DEADLINE is ignored unless the LAPIC timer is in deadline mode.
    vcpu.set_lapic(&state.lapic).map_err(at(index, "KVM_SET_LAPIC"))?;
    if state.msrs.len() > MSRS_MAX {
        return Err(VcpuStateError::Malformed {
            index,
            what: "too many MSRs",
        });
    }
    // TSC_DEADLINE is not among them: it is set when the vCPU first runs (`restore_tsc`). Set here, the timer would
    // run while the vCPU waits.
    let others: Vec<_> = state
        .msrs
        .iter()
        .copied()
        .filter(|(msr, _)| *msr != MSR_TSC_DEADLINE)
        .collect();
    write_msrs(index, vcpu, &others)?;
    vcpu.set_vcpu_events(&state.events)
        .map_err(at(index, "KVM_SET_VCPU_EVENTS"))?;
    // Tells the guest's watchdogs that it was stopped. EINVAL: the guest uses no kvm-clock.
    match vcpu.kvmclock_ctrl() {
        Err(error) if error.errno() != libc::EINVAL => Err(at(index, "KVM_KVMCLOCK_CTRL")(error)),
        _ => Ok(()),
    }
}

fn xsave_from(index: u8, bytes: &[u8]) -> Result<Xsave, VcpuStateError> {
    let mut xsave = kvm_xsave::default();
    if bytes.len() != std::mem::size_of_val(&xsave.region) {
        return Err(VcpuStateError::Malformed {
            index,
            what: "XSAVE area of another size",
        });
    }
    for (word, bytes) in xsave.region.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let mut wrapped = Xsave::new(0).map_err(|_| VcpuStateError::Malformed {
        index,
        what: "XSAVE area",
    })?;
    // SAFETY: only the fixed part is replaced; the length of the flexible part stays 0.
    unsafe { wrapped.as_mut_fam_struct() }.xsave = xsave;
    Ok(wrapped)
}

fn write_msrs(index: u8, vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    for chunk in values.chunks(kvm_bindings::KVM_MAX_MSR_ENTRIES) {
        let entries: Vec<_> = chunk
            .iter()
            .map(|&(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| VcpuStateError::Malformed {
            index,
            what: "too many MSRs",
        })?;
        let written = vcpu.set_msrs(&msrs).map_err(at(index, "KVM_SET_MSRS"))?;
        if let Some(&(msr, _)) = chunk.get(written) {
            return Err(VcpuStateError::Msr { index, msr });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_deadline_becomes_now_and_an_armed_one_stays() {
        let mut expired = vec![(MSR_TSC, 77), (MSR_TSC_DEADLINE, 0)];
        fix_expired_deadline(&mut expired);
        assert_eq!(expired[1].1, 77);
        let mut armed = vec![(MSR_TSC_DEADLINE, 99), (MSR_TSC, 77)];
        fix_expired_deadline(&mut armed);
        assert_eq!(armed[0].1, 99);
    }
}
