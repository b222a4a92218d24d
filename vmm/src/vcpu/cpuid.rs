//! The CPUID a vCPU sees.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// Leaf 1 ECX: VMX.
const VMX: u32 = 1 << 5;
/// Leaf 1 ECX: TSC deadline timer; KVM emulates it but leaves the bit to us.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 0x8000_0001 ECX: SVM.
const SVM: u32 = 1 << 2;

/// What the host's KVM supports, made into what vCPU `index` of `count` is shown: its APIC id in
/// every leaf that has it, a flat topology of one-thread cores, no nested virtualization.
///
/// # Errors
/// What `KVM_GET_SUPPORTED_CPUID` reports.
pub fn for_vcpu(kvm: &Kvm, index: u8, count: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let apic_id = u32::from(index);
    // Bits of an APIC id that number cores within the package.
    let core_bits = u32::from(count).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ecx = (entry.ecx & !VMX) | TSC_DEADLINE | HYPERVISOR;
                entry.ebx = (entry.ebx & 0x0000_FFFF) | (u32::from(count) << 16) | (apic_id << 24);
                // HTT: EBX[23:16] is valid.
                if count > 1 {
                    entry.edx |= 1 << 28;
                }
            }
            // Deterministic cache parameters: the host's core and sharing counts are not ours.
            0x4 => entry.eax &= 0x0000_3FFF,
            0xB | 0x1F => {
                entry.edx = apic_id;
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 0x100),
                    1 => (core_bits, u32::from(count), 0x201),
                    level => (0, 0, level & 0xFF),
                };
            }
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => entry.ecx = u32::from(count) - 1,
            0x8000_001E => entry.eax = apic_id,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// CPUID feature bits that a checkpoint's guest was promised and this host does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingFeature {
    /// CPUID leaf (EAX).
    pub leaf: u32,
    /// CPUID subleaf (ECX).
    pub subleaf: u32,
    /// Register of the answer.
    pub register: &'static str,
    /// The bits that are set in the checkpoint and clear here.
    pub bits: u32,
}

impl std::fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "CPUID {:#x}.{:#x} {} bits {:#010x}",
            self.leaf, self.subleaf, self.register, self.bits
        )
    }
}

/// The features a saved CPUID promises its guest and this host's KVM does not offer. Empty means
/// that the checkpoint may run here.
///
/// # Errors
/// What `KVM_GET_SUPPORTED_CPUID` reports.
pub fn missing_features(
    kvm: &Kvm,
    saved: &[kvm_cpuid_entry2],
) -> Result<Vec<MissingFeature>, kvm_ioctls::Error> {
    let host = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut missing = Vec::new();
    for want in saved {
        let have = host
            .as_slice()
            .iter()
            .find(|e| e.function == want.function && e.index == want.index);
        let mut check = |register, wanted: u32, have: u32, mask: u32| {
            let bits = wanted & !have & mask;
            if bits != 0 {
                missing.push(MissingFeature {
                    leaf: want.function,
                    subleaf: want.index,
                    register,
                    bits,
                });
            }
        };
        let (eax, ebx, ecx, edx) = have.map_or((0, 0, 0, 0), |e| (e.eax, e.ebx, e.ecx, e.edx));
        match (want.function, want.index) {
            // Not features of the CPU but ours or the kernel's to set: TSC deadline, hypervisor,
            // OSXSAVE; HTT is topology.
            (0x1, _) => {
                check("ecx", want.ecx, ecx, !(TSC_DEADLINE | HYPERVISOR | 1 << 27));
                check("edx", want.edx, edx, !(1 << 28));
            }
            (0x7, _) => {
                check("ebx", want.ebx, ebx, !0);
                // OSPKE mirrors CR4.
                check("ecx", want.ecx, ecx, !(1 << 4));
                check("edx", want.edx, edx, !0);
                if want.index > 0 {
                    check("eax", want.eax, eax, !0);
                }
            }
            (0xD, 0) => {
                check("eax", want.eax, eax, !0);
                check("edx", want.edx, edx, !0);
            }
            (0xD, 1) => check("eax", want.eax, eax, !0),
            (0x8000_0001, _) => {
                check("ecx", want.ecx, ecx, !0);
                check("edx", want.edx, edx, !0);
            }
            (0x4000_0001, _) => check("eax", want.eax, eax, !0),
            _ => {}
        }
    }
    Ok(missing)
}

/// The feature words of a CPUID, for a person reading a checkpoint's manifest.
pub fn feature_words(cpuid: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut words = Vec::new();
    for entry in cpuid {
        let registers: &[(&str, u32)] = match (entry.function, entry.index) {
            (0x1 | 0x8000_0001, _) => &[("ecx", entry.ecx), ("edx", entry.edx)],
            (0x7, _) => &[("ebx", entry.ebx), ("ecx", entry.ecx), ("edx", entry.edx)],
            (0xD, 0 | 1) | (0x4000_0001, _) => &[("eax", entry.eax)],
            _ => &[],
        };
        for (name, bits) in registers {
            words.push(format!(
                "cpuid.{:x}.{:x}.{name}={bits:08x}",
                entry.function, entry.index
            ));
        }
    }
    words
}
