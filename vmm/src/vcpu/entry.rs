//! The register state in which a vCPU enters a freshly loaded kernel.

use kvm_bindings::{kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Error, VcpuFd};

use crate::layout;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The PVH boot protocol (Xen `docs/misc/pvh.pandoc`): 32-bit protected mode, paging off,
    /// EBX = `hvm_start_info`.
    Pvh(u64),
    /// The 64-bit Linux boot protocol (`Documentation/x86/boot.rst`): long mode, identity-mapped
    /// first 4 GiB, RSI = `boot_params`.
    Linux64(u64),
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// `IA32_MISC_ENABLE`, bit 0: fast strings.
const MSR_MISC_ENABLE: u32 = 0x1A0;

/// A flat segment; `kind` is the descriptor type (0xB code, 0x3 data, 0xB busy TSS).
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    let code = kind == 0xB;
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long && code),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Sets up the boot vCPU. The application processors need nothing: KVM starts them waiting for INIT.
///
/// # Errors
/// What the ioctls report.
pub fn set_boot_state(vcpu: &VcpuFd, entry: Entry) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs()?;
    let mut regs = kvm_regs {
        rflags: 2,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        ..Default::default()
    };
    let long = matches!(entry, Entry::Linux64(_));
    let code = segment(0x10, 0xB, long);
    let data = segment(0x18, 0x3, false);
    sregs.cs = code;
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = data;
    }
    sregs.tr = kvm_segment {
        s: 0,
        g: 0,
        db: 0,
        limit: 0x67,
        ..segment(0x20, 0xB, false)
    };
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    match entry {
        Entry::Pvh(address) => {
            regs.rip = address;
            regs.rbx = layout::BOOT_INFO;
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
        }
        Entry::Linux64(address) => {
            regs.rip = address;
            regs.rsi = layout::BOOT_INFO;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::BOOT_PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)?;
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37F,
        mxcsr: 0x1F80,
        ..Default::default()
    })?;
    let fast_strings = kvm_msr_entry {
        index: MSR_MISC_ENABLE,
        data: 1,
        ..Default::default()
    };
    if let Ok(msrs) = kvm_bindings::Msrs::from_entries(&[fast_strings]) {
        // A hint to the guest; a KVM without it is none the worse.
        let _ = vcpu.set_msrs(&msrs);
    }
    Ok(())
}

/// The GDT that goes with [`set_boot_state`]: null, null, code, data, TSS.
pub fn boot_gdt(long: bool) -> [u64; 5] {
    let code = if long {
        0x00AF_9B00_0000_FFFF
    } else {
        0x00CF_9B00_0000_FFFF
    };
    [0, 0, code, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067]
}
