//! What is left of something under a directory: processes, sockets, mounts, and what a store should not have
//! any more.
//!
//! All of it is read from `/proc` while other processes come and go. What cannot be read is taken as not
//! there: a process that ended in between is no leftover.

use std::fs;
use std::path::{Path, PathBuf};

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
    let text = directory.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let process = entry.path();
        let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
        let mentions = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains(&*text);
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

/// The children of this process that nobody has waited for.
pub fn children() -> Vec<u32> {
    let mut found = Vec::new();
    for thread in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
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
    let processes = processes_using(directory).into_iter();
    let mut found: Vec<String> = processes
        .map(|p| format!("process {} ({})", p.pid, p.name))
        .collect();
    for (what, list, field) in [("socket", "/proc/net/unix", 7), ("mount", "/proc/self/mounts", 1)] {
        let list = fs::read_to_string(list).unwrap_or_default();
        let paths = list
            .lines()
            .filter_map(|line| line.split_whitespace().nth(field))
            .map(unescape);
        found.extend(
            paths
                .filter(|path| path.starts_with(directory))
                .map(|path| format!("{what} {}", path.display())),
        );
    }
    found
}

/// A path as the kernel writes it into `/proc/self/mounts`: blanks are octal escapes.
fn unescape(field: &str) -> PathBuf {
    [("\\040", " "), ("\\011", "\t"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escape, meant)| {
            text.replace(escape, meant)
        })
        .into()
}

/// What uses a store, and what is in it of VMs and of things under way, one thing a line.
pub fn in_store(root: &Path) -> Vec<String> {
    let mut found = users_of(root);
    for directory in ["run", "tmp"] {
        for entry in fs::read_dir(root.join(directory)).into_iter().flatten().flatten() {
            // Which files were found intact; it belongs to the store, not to a VM.
            if entry.file_name() != ".verified" {
                found.push(format!("file {}", entry.path().display()));
            }
        }
    }
    found
}

/// What is published in a store, one thing a line: nothing, where every image was removed and collected.
pub fn published(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["bases", "layers", "checkpoints", "images", "images/names"] {
        for entry in fs::read_dir(root.join(directory)).into_iter().flatten().flatten() {
            // What begins with a dot is a lock.
            let lock = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !lock && entry.path() != root.join("images/names") {
                found.push(format!("file {}", entry.path().display()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_and_what_lies_in_run_and_tmp_are_found() {
        let store = tempfile::tempdir().unwrap();
        let root = store.path();
        assert_eq!(in_store(root), [""; 0]);
        fs::create_dir_all(root.join("run/.verified")).unwrap();
        fs::create_dir_all(root.join("tmp/half")).unwrap();
        let path = root.join("run/vsock");
        let _socket = UnixListener::bind(&path).unwrap();
        let mut found = in_store(root);
        found.sort();
        assert_eq!(
            found,
            [
                format!("file {}", root.join("run/vsock").display()),
                format!("file {}", root.join("tmp/half").display()),
                format!("socket {}", path.display()),
            ]
        );
    }

    #[test]
    fn a_process_is_found_by_its_open_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("open")).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdout(file)
            .spawn()
            .unwrap();
        let found = processes_using(directory.path());
        let ours = children();
        child.kill().unwrap();
        child.wait().unwrap();
        // Its name is that of this program until it has become `sleep`.
        assert_eq!(found.iter().map(|p| p.pid).collect::<Vec<_>>(), [child.id()]);
        assert!(ours.contains(&child.id()));
        assert_eq!(processes_using(directory.path()), []);
    }

    #[test]
    fn what_is_published_is_found_and_locks_are_not() {
        let store = tempfile::tempdir().unwrap();
        let root = store.path();
        fs::create_dir_all(root.join("images/names")).unwrap();
        fs::write(root.join("images/.lock"), "").unwrap();
        assert_eq!(published(root), [""; 0]);
        fs::write(root.join("images/names/hello"), "").unwrap();
        let left = root.join("images/names/hello");
        assert_eq!(published(root), [format!("file {}", left.display())]);
    }

    #[test]
    fn a_mount_points_blanks_are_unescaped() {
        assert_eq!(unescape("/a\\040b"), Path::new("/a b"));
    }
}
