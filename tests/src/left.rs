//! What is left of something, as `spore demo` looks for it, and processes by number.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
pub use spore_api::leftovers::{children, in_store, processes_using, users_of};

/// The VM processes that have files under `directory` open.
pub fn vms_using(directory: &Path) -> Vec<u32> {
    let processes = processes_using(directory).into_iter();
    processes
        .filter(|process| process.name == "spore-vm")
        .map(|process| process.pid)
        .collect()
}

/// Whether there is such a process, and be it one that only waits to be reaped.
pub fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Whether there is such a process, and it has not ended.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may have any character in it.
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// Kills a process as nobody can refuse to be killed.
pub fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// The same, of a process that may have ended.
pub fn kill_if_there(pid: u32) {
    match kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("{pid}: {error}"),
    }
}

/// Waits until `check` finds nothing, for what the kernel does a moment after it was asked; panics with what
/// is found when it does not come to that.
pub fn soon_nothing<T: std::fmt::Debug>(within: Duration, mut check: impl FnMut() -> Vec<T>) {
    let started = Instant::now();
    loop {
        let found = check();
        if found.is_empty() {
            return;
        }
        assert!(
            started.elapsed() < within,
            "still there after {within:?}: {found:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until something holds; panics with `what` when it does not come to that.
pub fn soon(what: &str, within: Duration, mut check: impl FnMut() -> bool) {
    soon_nothing(within, || Vec::from_iter((!check()).then_some(what)));
}

/// Bytes that only this process has in memory, the VM's guest memory included.
pub fn private_bytes(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap());
    kib.sum::<u64>() << 10
}

/// The files under a directory that a process has open for writing.
pub fn written_files(pid: u32, directory: &Path) -> Vec<PathBuf> {
    let process = Path::new("/proc").join(pid.to_string());
    // It may have ended.
    let links = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let written = links.filter_map(|link| {
        let path = fs::read_link(link.path()).ok()?;
        let info = fs::read_to_string(process.join("fdinfo").join(link.file_name())).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        // O_WRONLY or O_RDWR.
        let writes = u32::from_str_radix(flags.trim(), 8).unwrap() & 3 != 0;
        (writes && path.starts_with(directory)).then_some(path)
    });
    written.collect()
}

/// What the descriptors of a process are of, as the kernel names it.
pub fn descriptors(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}
