//! What is left of something under a directory: processes, sockets, mounts, files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A process, with what of it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub name: String,
}

/// The processes other than this one that have a file under `directory` open or mapped, or name it in their
/// arguments.
pub fn processes_using(directory: &Path) -> Vec<Process> {
    let text = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        // All of this races with processes that end: what cannot be read is not there.
        let process = entry.path();
        let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
        let mentions = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(text);
        let opens = |directory_of_links: &str| {
            let links = fs::read_dir(process.join(directory_of_links))
                .into_iter()
                .flatten();
            let mut targets = links.flatten().filter_map(|link| fs::read_link(link.path()).ok());
            targets.any(|target| target.starts_with(directory))
        };
        if mentions(read("cmdline")) || opens("fd") || mentions(read("maps")) {
            let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
            found.push(Process { pid, name });
        }
    }
    found
}

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

/// The children of this process that nobody has waited for.
pub fn children() -> Vec<u32> {
    let mut found = Vec::new();
    for thread in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        found.extend(
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// Everything that uses the directory and is not a file in it, one thing a line.
pub fn users_of(directory: &Path) -> Vec<String> {
    let text = directory.to_str().unwrap();
    let processes = processes_using(directory).into_iter();
    let mut found: Vec<String> = processes
        .map(|p| format!("process {} ({})", p.pid, p.name))
        .collect();
    for (what, list, field) in [("socket", "/proc/net/unix", 7), ("mount", "/proc/self/mounts", 1)] {
        let list = fs::read_to_string(list).unwrap();
        let names = list.lines().filter_map(|line| line.split_whitespace().nth(field));
        found.extend(
            names
                .filter(|name| name.starts_with(text))
                .map(|name| format!("{what} {name}")),
        );
    }
    found
}

/// What is left in a store of VMs and of things under way, one thing a line.
pub fn in_store(root: &Path) -> Vec<String> {
    let mut found = users_of(root);
    for directory in ["run", "tmp"] {
        for entry in fs::read_dir(root.join(directory)).unwrap().flatten() {
            if entry.file_name() != ".verified" {
                found.push(format!("file {}", entry.path().display()));
            }
        }
    }
    found
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
