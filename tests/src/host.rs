//! What a guest needs of this machine: KVM, the VM program, a kernel and a base.
//!
//! A run takes its own copy of the files first: a build beside it, which may replace any of them, must not make
//! its guests of two kinds.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use spore_builder::{HostMemory, Limits};

use crate::data;

/// Why there can be no guest here; `None` when there can.
pub fn no_kvm() -> Option<&'static str> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let why = WHY.get_or_init(|| spore_vmm::kvm::open().err().map(|error| error.to_string()));
    why.as_deref()
}

/// Where kernels and bases come from.
fn common_cache() -> PathBuf {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    named("SPORE_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(named("XDG_CACHE_HOME")?).join("spore")))
        .or_else(|| Some(PathBuf::from(named("HOME")?).join(".cache/spore")))
        .expect("none of SPORE_CACHE, XDG_CACHE_HOME and HOME is set")
}

/// Where the kernel and the base of this run are.
pub fn cache() -> PathBuf {
    data::root().join("cache")
}

/// The VM program of this run.
pub fn vm_program() -> PathBuf {
    data::root().join("spore-vm")
}

/// Where cargo puts the VM program: `target/<profile>/`, of which a test's directory is `deps/`.
fn built_vm_program() -> PathBuf {
    if let Some(named) = std::env::var_os("SPORE_VM") {
        return named.into();
    }
    let test = std::env::current_exe().expect("this program has a path");
    let profile = test.ancestors().nth(2).expect("cargo puts tests into deps/");
    profile.join("spore-vm")
}

/// Copies everything to where this run has it, or says what is missing and how to get it.
///
/// # Errors
/// One line for whoever runs the tests.
pub fn pin() -> Result<(), String> {
    const MAKE: &str = "run `make kernel base` first";
    let kernel = "kernel/current/vmlinux";
    copy(&built_vm_program(), &vm_program(), "run `cargo build` first")?;
    copy(&common_cache().join(kernel), &cache().join(kernel), MAKE)?;
    for file in ["rootfs.ext4", "base.json"] {
        let base = Path::new("bases/busybox").join(file);
        copy(&common_cache().join(&base), &cache().join(&base), MAKE)?;
    }
    // Large, and only one test's. What the name means may change; the directory does not.
    if let Ok(debian) = common_cache().join("bases/debian").canonicalize() {
        std::os::unix::fs::symlink(debian, cache().join("bases/debian")).unwrap();
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, how: &str) -> Result<(), String> {
    if !from.exists() {
        return Err(format!("{} is not there: {how}", from.display()));
    }
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    data::copy(from, to);
    Ok(())
}

/// What manifests may ask for here.
pub fn limits() -> Limits {
    Limits {
        host_memory: HostMemory::read().expect("the host says how much memory it has"),
    }
}
