//! A control group for each VM process: what it may have of memory, processors and tasks.
//!
//! Version 2 where its hierarchy has controllers for us, else version 1, else none: [`Groups::describe`] says which.
//! Ours are in `spore-vms`, one a sandbox, named after it: below the group that is asked for, or else below the one the
//! daemon was started in. A service is to ask for one outside of its own, since its sandboxes outlive it: with version 2
//! nothing can be started in a group that has controllers for children (cgroups(7), "no internal processes"), which a
//! service's own group would be when it is started again.
//!
//! Below the daemon's own group, with version 2, whoever starts it gives it one for itself; its processes are moved into
//! `daemon` below that.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The directory that holds all of ours.
const OURS: &str = "spore-vms";
/// What a VM process has beside its guest's memory, in MiB: its program, its page tables, its disk's page cache.
const OVERHEAD_MB: u64 = 256;
/// The most tasks: vCPUs, the I/O thread, the control thread, and the kernel's for them.
const TASKS: u32 = 128;
/// How often a process is put into its group whose group is removed meanwhile.
const TRIES: u32 = 3;
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
    // A group that was removed has no device for it (kernfs).
    std::fs::write(path, text.to_string()).map_err(|error| {
        let kind = match error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) {
            true => io::ErrorKind::NotFound,
            false => error.kind(),
        };
        io::Error::new(kind, format!("{}: {error}", path.display()))
    })
}

fn make(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

/// Makes a group of version 2, if it is not there, whose children are limited.
fn hand_down(group: &Path) -> io::Result<()> {
    make(group)?;
    write(&group.join("cgroup.subtree_control"), "+memory +cpu +pids")
}

impl Groups {
    /// Finds out what there is, and makes the directory of ours: below the group `below`, or the daemon's own.
    pub fn find(root: &Path, below: Option<&Path>) -> Self {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if root.join("cgroup.controllers").exists() {
            let ours = match below {
                Some(group) => Self::v2_below(root, group),
                None => Self::v2(root, &text),
            };
            return match ours {
                Ok(ours) => Self::V2(ours),
                Err(error) => Self::None(format!("cgroup v2: {error}")),
            };
        }
        let in_one = |controller: &str| {
            let hierarchy = root.join(controller);
            // One that is not there is not made.
            hierarchy.join("tasks").exists().then_some(())?;
            let group = match below {
                Some(group) => {
                    std::fs::create_dir_all(hierarchy.join(group)).ok()?;
                    hierarchy.join(group)
                }
                None => hierarchy.join(own_path(&text, Some(controller))?),
            };
            let ours = group.join(OURS);
            make(&ours).ok()?;
            Some(ours)
        };
        let (memory, cpu, pids) = (in_one("memory"), in_one("cpu"), in_one("pids"));
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
            hand_down(group)?;
        }
        Ok(ours)
    }

    fn v2_below(root: &Path, group: &Path) -> io::Result<PathBuf> {
        let ours = root.join(group).join(OURS);
        let mut down: Vec<&Path> = ours.ancestors().take_while(|at| at.starts_with(root)).collect();
        down.reverse();
        for group in down {
            hand_down(group)?;
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
            self.place_in(dir, id, pid)?;
        }
        Ok(())
    }

    /// Whoever sweeps, which may be another daemon, removes what has no processes yet.
    fn place_in(&self, dir: &Path, id: &str, pid: u32) -> io::Result<()> {
        let mut tries = 0;
        loop {
            let group = dir.join(id);
            let placed = make(&group).and_then(|()| write(&group.join("cgroup.procs"), pid));
            tries += 1;
            let removed = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            if !placed.as_ref().is_err_and(removed) || tries == TRIES {
                return placed;
            }
            match self {
                Self::V2(_) => hand_down(dir)?,
                _ => make(dir)?,
            }
        }
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
    fn our_groups_are_below_the_one_that_is_asked_for_in_both_versions() {
        let asked = Some(Path::new("host/spore"));
        // Files take what is written to them, as the kernel's do.
        let second = tempfile::tempdir().unwrap();
        std::fs::write(second.path().join("cgroup.controllers"), "").unwrap();
        let Groups::V2(ours) = &Groups::find(second.path(), asked) else {
            panic!("it is version 2");
        };
        assert_eq!(*ours, second.path().join("host/spore/spore-vms"));
        for group in ["", "host", "host/spore", "host/spore/spore-vms"] {
            let control = second.path().join(group).join("cgroup.subtree_control");
            assert_eq!(std::fs::read_to_string(control).unwrap(), "+memory +cpu +pids");
        }
        let first = tempfile::tempdir().unwrap();
        std::fs::create_dir(first.path().join("memory")).unwrap();
        std::fs::write(first.path().join("memory/tasks"), "").unwrap();
        let Groups::V1 { memory, cpu, pids } = &Groups::find(first.path(), asked) else {
            panic!("it is version 1");
        };
        assert_eq!(*memory, Some(first.path().join("memory/host/spore/spore-vms")));
        assert_eq!((cpu, pids), (&None, &None));
    }

    #[test]
    fn a_host_without_groups_has_none_and_says_so() {
        let root = tempfile::tempdir().unwrap();
        let groups = Groups::find(root.path(), None);
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
