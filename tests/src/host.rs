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

/// The command line of this run.
pub fn spore_program() -> PathBuf {
    data::root().join("spore")
}

/// Where cargo puts programs: `target/<profile>/`, of which a test's directory is `deps/`.
fn built(program: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program has a path");
    let profile = test.ancestors().nth(2).expect("cargo puts tests into deps/");
    profile.join(program)
}

fn built_vm_program() -> PathBuf {
    std::env::var_os("SPORE_VM").map_or_else(|| built("spore-vm"), PathBuf::from)
}

/// Beside the VM program; where that is another one, such as a script around it, beside the tests.
fn built_spore_program() -> PathBuf {
    let beside = built_vm_program().with_file_name("spore");
    match beside.exists() {
        true => beside,
        false => built("spore"),
    }
}

/// Copies everything to where this run has it, or says what is missing and how to get it.
///
/// # Errors
/// One line for whoever runs the tests.
pub fn pin() -> Result<(), String> {
    const BUILD: &str = "run `cargo build --workspace` first";
    const MAKE: &str = "run `make kernel base` first";
    let kernel = "kernel/current/vmlinux";
    copy(&built_vm_program(), &vm_program(), BUILD)?;
    copy(&built_spore_program(), &spore_program(), BUILD)?;
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
