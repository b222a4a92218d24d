//! Opening KVM: which kind it is, whether it can do what we need, and what to do if not.

use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

/// What stands behind `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvmKind {
    /// Intel VT-x.
    Vmx,
    /// AMD SVM.
    Svm,
    /// A software KVM (PVM) that interprets guest kernel mode.
    Pvm,
    /// None of the known modules is loaded.
    Unknown,
}

impl KvmKind {
    /// Looks at which KVM vendor module the host has loaded.
    pub fn detect() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        if loaded("kvm_pvm") {
            Self::Pvm
        } else if loaded("kvm_intel") {
            Self::Vmx
        } else if loaded("kvm_amd") {
            Self::Svm
        } else if let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") {
            // KVM built into the host kernel has no module directory of its vendor half.
            let flags = cpuinfo
                .lines()
                .find(|line| line.starts_with("flags"))
                .unwrap_or_default();
            match (flags.contains(" vmx"), flags.contains(" svm")) {
                (true, _) => Self::Vmx,
                (_, true) => Self::Svm,
                _ => Self::Unknown,
            }
        } else {
            Self::Unknown
        }
    }

    /// Kernel command line options the guest needs on such a host, beyond the usual ones.
    ///
    /// A software KVM interprets guest kernel mode: the first options keep the kernel from
    /// instructions that are missing there, the others from set-up work that takes it seconds
    /// (docs/guest-kernel.md has the figures). The last is no option of the kernel's, which hands it to the first
    /// program as its environment: the agent, and the commands it hands that on to, must not use AVX, whose registers
    /// such a kernel does not switch (docs/decisions/0018). Names that a version of glibc does not know are passed over.
    pub fn guest_options(self) -> &'static str {
        match self {
            Self::Pvm => {
                "no-kvmapf noxsave nosmap clearcpuid=cx16,erms,fsrm,popcnt,smap lpj=10400000 \
                 clocksource=kvm-clock tick_stride=4 noreplace-smp rodata=off percpu_alloc=page \
                 thash_entries=1024 uhash_entries=256 dhash_entries=8192 ihash_entries=8192 \
                 GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX_Usable,-AVX2_Usable,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load,-FMA,-FMA4"
            }
            _ => "",
        }
    }
}

impl fmt::Display for KvmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
            Self::Pvm => "pvm (software)",
            Self::Unknown => "unknown",
        })
    }
}

/// Why KVM cannot be used. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device node.
    #[error(
        "/dev/kvm does not exist: load the KVM module (modprobe kvm_intel or kvm_amd), switch on virtualization in the firmware, or pass the device into this container"
    )]
    Missing,
    /// No permission.
    #[error("/dev/kvm may not be opened by this user: add the user to group `kvm` or run as root")]
    Permission,
    /// Some other failure to open it.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(std::io::Error),
    /// An ABI other than 12, the only one since 2007.
    #[error("/dev/kvm speaks API version {0}; version 12 is needed: update the host kernel")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("this host's KVM lacks {0}: update the host kernel (5.10 or newer)")]
    Capability(&'static str),
}

/// KVM, once this process has opened it for good.
static HELD: OnceLock<OwnedFd> = OnceLock::new();

/// Opens `/dev/kvm` for as long as this process and its forks live: they may not be allowed to open it later. If it
/// cannot be, whoever needs it is told.
pub fn hold() {
    if let Ok(file) = File::options().read(true).write(true).open("/dev/kvm") {
        let _ = HELD.set(file.into());
    }
}

fn device() -> Result<Kvm, std::io::Error> {
    match HELD.get() {
        // SAFETY: the descriptor is a copy that belongs to nobody else, and is KVM's.
        Some(held) => Ok(unsafe { Kvm::from_raw_fd(held.try_clone()?.into_raw_fd()) }),
        None => Kvm::new().map_err(std::io::Error::from),
    }
}

/// Opens `/dev/kvm` and checks that it can run our machines.
///
/// # Errors
/// [`KvmError`], whose message says what to do.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = device().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => KvmError::Missing,
        Some(libc::EACCES | libc::EPERM) => KvmError::Permission,
        _ => KvmError::Open(error),
    })?;
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(KvmError::ApiVersion(version));
    }
    for (cap, name) in [
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
        (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
        (Cap::Xsave, "KVM_CAP_XSAVE"),
        (Cap::Xcrs, "KVM_CAP_XCRS"),
        (Cap::MpState, "KVM_CAP_MP_STATE"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability(name));
        }
    }
    Ok(kvm)
}
