//! A control group for each VM process: what it may have of memory, processors and tasks.
//!
//! Version 2 where its hierarchy has controllers for us, else version 1, else none: [`Groups::describe`] says which.
//! Ours are below the group the daemon was started in, in `spore-vms`, one a sandbox, named after it. With version 2
//! whoever starts the daemon gives it a group of its own (systemd: `Delegate=yes`), whose processes are moved into
//! `daemon` below it, since a group with controllers for children has no processes (cgroups(7)).

use std::io;
use std::path::{Path, PathBuf};

/// The directory that holds all of ours.
const OURS: &str = "spore-vms";
/// What a VM process has beside its guest's memory, in MiB: its program, its page tables, its disk's page cache.
const OVERHEAD_MB: u64 = 256;
/// The most tasks: vCPUs, the I/O thread, the control thread, and the kernel's for them.
const TASKS: u32 = 128;
/// Processor weight of one vCPU, of 1 to 10000 (version 2).
const WEIGHT: u32 = 100;
/// The same in version 1's shares, of 2 to 262144.
const SHARES: u32 = 1024;

/// Where groups are made.
#[derive(Debug)]
pub enum Groups {
    /// In one hierarchy.
    V2(PathBuf),
    /// In one for each controller that is there.
    V1 {
        /// Below the memory controller's.
        memory: Option<PathBuf>,
        /// Below the processors'.
        cpu: Option<PathBuf>,
        /// Below the tasks'.
        pids: Option<PathBuf>,
    },
    /// Nowhere, and why.
    None(String),
}

/// What one VM may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Memory of the guest, in MiB.
    pub memory_mb: u32,
    /// vCPUs.
    pub cpus: u32,
}

impl Share {
    fn memory_bytes(self) -> u64 {
        // Page tables and KVM's own records of the guest's memory come to less than a thirty-second of it.
        let guest = u64::from(self.memory_mb);
        (guest + guest / 32 + OVERHEAD_MB) << 20
    }
}

/// The line of `/proc/self/cgroup` for a controller: `None` is version 2's.
fn own_path(text: &str, controller: Option<&str>) -> Option<String> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|one| one == controller),
        };
        fits.then(|| path.trim_start_matches('/').to_owned())
    })
}

fn write(path: &Path, text: impl ToString) -> io::Result<()> {
    std::fs::write(path, text.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn make(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

impl Groups {
    /// Finds out what there is, and makes the directory of ours.
    pub fn find(root: &Path) -> Self {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if root.join("cgroup.controllers").exists() {
            return match Self::v2(root, &text) {
                Ok(ours) => Self::V2(ours),
                Err(error) => Self::None(format!("cgroup v2: {error}")),
            };
        }
        let below = |controller: &str| {
            let own = own_path(&text, Some(controller))?;
            let ours = root.join(controller).join(own).join(OURS);
            make(&ours).ok()?;
            Some(ours)
        };
        let (memory, cpu, pids) = (below("memory"), below("cpu"), below("pids"));
        if memory.is_none() && cpu.is_none() && pids.is_none() {
            return Self::None("no cgroup controller can be used".to_owned());
        }
        Self::V1 { memory, cpu, pids }
    }

    fn v2(root: &Path, text: &str) -> io::Result<PathBuf> {
        let own = root.join(own_path(text, None).unwrap_or_default());
        let leaf = own.join("daemon");
        make(&leaf)?;
        let procs = std::fs::read_to_string(own.join("cgroup.procs"))?;
        for pid in procs.lines() {
            // One that has ended meanwhile needs no group.
            let _ = std::fs::write(leaf.join("cgroup.procs"), pid);
        }
        let ours = own.join(OURS);
        for group in [&own, &ours] {
            make(group)?;
            write(&group.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
        }
        Ok(ours)
    }

    /// For people: what VM processes are limited by.
    pub fn describe(&self) -> String {
        match self {
            Self::V2(_) => "cgroup v2: memory, cpu, pids".to_owned(),
            Self::V1 { memory, cpu, pids } => {
                let there = [("memory", memory), ("cpu", cpu), ("pids", pids)];
                let names = |wanted: bool| {
                    let names = there.iter().filter(|(_, path)| path.is_some() == wanted);
                    names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                };
                match names(false) {
                    missing if missing.is_empty() => format!("cgroup v1: {}", names(true)),
                    missing => format!("cgroup v1: {}; not {missing}", names(true)),
                }
            }
            Self::None(why) => format!("no cgroups: {why}"),
        }
    }

    fn dirs(&self) -> Vec<&PathBuf> {
        match self {
            Self::V2(ours) => vec![ours],
            Self::V1 { memory, cpu, pids } => [memory, cpu, pids].into_iter().flatten().collect(),
            Self::None(_) => Vec::new(),
        }
    }

    /// Puts a VM process into a group of its own, without limits as yet. This may take the kernel a tenth of a
    /// second: it waits for readers of what it changes (RCU).
    ///
    /// # Errors
    /// What the kernel does not allow.
    pub fn place(&self, id: &str, pid: u32) -> io::Result<()> {
        for dir in self.dirs() {
            let group = dir.join(id);
            make(&group)?;
            write(&group.join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    /// Changes what it may have.
    ///
    /// # Errors
    /// What the kernel does not allow: less memory than it has, for example.
    pub fn limit(&self, id: &str, share: Share) -> io::Result<()> {
        let memory = share.memory_bytes();
        match self {
            Self::V2(ours) => {
                let group = ours.join(id);
                write(&group.join("memory.max"), memory)?;
                write(&group.join("cpu.weight"), (share.cpus * WEIGHT).clamp(1, 10_000))?;
                write(&group.join("pids.max"), TASKS)
            }
            Self::V1 {
                memory: dir,
                cpu,
                pids,
            } => {
                if let Some(dir) = dir {
                    write(&dir.join(id).join("memory.limit_in_bytes"), memory)?;
                }
                if let Some(dir) = cpu {
                    write(&dir.join(id).join("cpu.shares"), share.cpus * SHARES)?;
                }
                match pids {
                    Some(dir) => write(&dir.join(id).join("pids.max"), TASKS),
                    None => Ok(()),
                }
            }
            Self::None(_) => Ok(()),
        }
    }

    /// Removes the groups of VMs that are gone: the kernel keeps those that have processes.
    pub fn sweep(&self) {
        for dir in self.dirs() {
            let Ok(entries) = std::fs::read_dir(dir) else {
                continue;
            };
            for entry in entries.flatten() {
                // A file, or in use.
                let _ = std::fs::remove_dir(entry.path());
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.sweep();
        for dir in self.dirs() {
            // Not while a sandbox runs on without us.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_group_is_found_in_both_versions() {
        let text = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/user.slice/x\n";
        assert_eq!(own_path(text, Some("memory")).as_deref(), Some("a/b"));
        assert_eq!(own_path(text, Some("cpuacct")).as_deref(), Some(""));
        assert_eq!(own_path(text, None).as_deref(), Some("user.slice/x"));
        assert_eq!(own_path(text, Some("pids")), None);
    }

    #[test]
    fn a_host_without_groups_has_none_and_says_so() {
        let root = tempfile::tempdir().unwrap();
        let groups = Groups::find(root.path());
        assert!(
            groups.describe().starts_with("no cgroups"),
            "{}",
            groups.describe()
        );
        let share = Share {
            memory_mb: 1024,
            cpus: 1,
        };
        groups.place("vm", std::process::id()).unwrap();
        groups.limit("vm", share).unwrap();
        assert_eq!(share.memory_bytes(), (1024 + 32 + 256) << 20);
    }
}
