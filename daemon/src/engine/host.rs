//! The host, as a scheduler sees it, and what sandboxes use of it.

use std::path::Path;
use std::sync::atomic::Ordering;

use spore_types::{Capacity, HostInfo, Pressure, Usage, Versions};
use spore_vmm::confine::Applied;
use spore_vmm::kvm::KvmKind;
use spore_vmm::process::cpu_time;

use super::Engine;
use super::sandbox::Sandbox;
use crate::error::{Error, Result};
use crate::time::millis;

/// The version of the API.
const API: &str = "1";

/// The value of a field of `/proc/meminfo` and files of its form, in bytes.
fn field(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default().saturating_mul(1024)
}

fn read(path: impl AsRef<Path>) -> String {
    // What cannot be read is told as nothing: none of it decides anything.
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Percent of the last 10 s in a line of a pressure file.
fn avg10(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(kind))?;
    let value = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("avg10="))?;
    value.parse().ok()
}

/// Percent of the last 10 s in which some task waited for memory; `None` where the kernel does not tell.
pub fn memory_pressure() -> Option<f64> {
    avg10(&read("/proc/pressure/memory"), "some")
}

fn pressure() -> Option<Pressure> {
    let memory = read("/proc/pressure/memory");
    Some(Pressure {
        memory_some: avg10(&memory, "some")?,
        memory_full: avg10(&memory, "full")?,
        cpu_some: avg10(&read("/proc/pressure/cpu"), "some").unwrap_or_default(),
        io_some: avg10(&read("/proc/pressure/io"), "some").unwrap_or_default(),
    })
}

fn load() -> [f64; 3] {
    let text = read("/proc/loadavg");
    let mut numbers = text
        .split_whitespace()
        .map(|word| word.parse().unwrap_or_default());
    std::array::from_fn(|_| numbers.next().unwrap_or_default())
}

/// Memory of a process that is resident, and what of it is its own, in bytes: not what it has read of a checkpoint and
/// not written, though nobody else may have that mapped just now.
fn unique_bytes(pid: u32) -> (u64, u64) {
    let rollup = read(format!("/proc/{pid}/smaps_rollup"));
    (field(&rollup, "Rss"), field(&rollup, "Private_Dirty"))
}

impl Engine {
    /// What a sandbox has used.
    pub fn usage(&self, sandbox: &Sandbox) -> Usage {
        let (rss_bytes, unique_bytes) = unique_bytes(sandbox.pid());
        let changing = sandbox.changing();
        let plugged_mb = changing.granted_mb.saturating_sub(sandbox.fixed.floor_mb);
        drop(changing);
        let traffic = sandbox.traffic();
        Usage {
            cpu_ms: millis(cpu_time(sandbox.pid())),
            rss_bytes,
            unique_bytes,
            plugged_bytes: u64::from(plugged_mb) << 20,
            disk_bytes: disk_bytes(sandbox.run()),
            network_received_bytes: traffic.received_bytes,
            network_sent_bytes: traffic.sent_bytes,
        }
    }

    /// The host.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn host_info(&self) -> Result<HostInfo> {
        Ok(HostInfo {
            images: self.images()?.into_iter().map(|image| image.id).collect(),
            checkpoints: self
                .checkpoints()?
                .into_iter()
                .map(|checkpoint| checkpoint.id)
                .collect(),
            ..self.host_state()?
        })
    }

    /// The host without what is in its store.
    ///
    /// # Errors
    /// When the store's file system cannot be asked.
    pub fn host_state(&self) -> Result<HostInfo> {
        let meminfo = read("/proc/meminfo");
        let (committed_mb, count) = self.ledger.committed();
        let list = self.list();
        let plugged_mb = list
            .iter()
            .map(|sandbox| {
                let granted = sandbox.changing().granted_mb;
                u64::from(granted.saturating_sub(sandbox.fixed.floor_mb))
            })
            .sum();
        let unique: u64 = list.iter().map(|sandbox| unique_bytes(sandbox.pid()).1).sum();
        let store = self.host.store();
        let disk = rustix::fs::statvfs(store.root()).map_err(Error::internal)?;
        let pool = self.pool.stats();
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let limit_mb = self.ledger.limit_mb();
        Ok(HostInfo {
            draining: self.draining.load(Ordering::Relaxed),
            memory: Capacity {
                total_mb: field(&meminfo, "MemTotal") >> 20,
                available_mb: field(&meminfo, "MemAvailable") >> 20,
                reserve_mb: self.config.limits.reserve_mb,
                limit_mb,
                committed_mb,
                plugged_mb,
                unique_mb: unique >> 20,
                overcommit: self.config.limits.overcommit,
                largest_fit_mb: match self.must_have_memory() {
                    Ok(()) => limit_mb.saturating_sub(committed_mb),
                    Err(_) => 0,
                },
            },
            pressure: pressure(),
            cpus: std::thread::available_parallelism().map_or(1, |count| small(count.get())),
            load: load(),
            data_dir: canonical(store.root()),
            disk_total_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            disk_free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            sandboxes: count,
            max_sandboxes: self.ledger.max_sandboxes(),
            builds: self.builds.running(),
            max_builds: self.config.limits.builds,
            execs: small(self.execs.load(Ordering::Relaxed)),
            max_execs: small(self.config.limits.execs),
            images: Vec::new(),
            checkpoints: Vec::new(),
            templates: small(pool.templates),
            shells: small(pool.shells),
            kvm: word(&KvmKind::detect()),
            confinement: self.confinement.clone(),
            versions: Versions {
                spore: env!("CARGO_PKG_VERSION").to_owned(),
                api: API.to_owned(),
                kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
                guest_kernel: self.host.kernel_digest().ok().map(|digest| digest.to_string()),
            },
            started_at: self.started_at,
        })
    }
}

/// What VM processes are confined by here, and what not, for people.
pub(super) fn confinement(groups: &super::cgroup::Groups) -> Vec<String> {
    let mut lines = vec![groups.describe()];
    match spore_vmm::process::confinement() {
        Ok(confinement) => lines.extend(confinement.parts().map(|(part, applied)| match applied {
            Applied::Yes => part.to_owned(),
            Applied::No { why } => format!("no {part}: {why}"),
        })),
        Err(error) => lines.push(format!("unknown: {error}")),
    }
    lines
}

/// The path of a directory that is there, as everybody who means it finds it.
fn canonical(dir: &Path) -> String {
    let found = std::fs::canonicalize(dir);
    found.as_deref().unwrap_or(dir).to_string_lossy().into_owned()
}

/// As serde writes it.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).ok();
    value
        .as_ref()
        .and_then(|value| value.as_str())
        .unwrap_or("unknown")
        .to_owned()
}

/// What the files of a run directory take on the disk, in bytes.
fn disk_bytes(run: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(run) else {
        return 0;
    };
    let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
    files.map(|file| file.blocks() * 512).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        let meminfo = "MemTotal:       16 kB\nMemAvailable:    8 kB\n";
        assert_eq!(field(meminfo, "MemTotal"), 16384);
        assert_eq!(field(meminfo, "Mem"), 0);
        let psi =
            "some avg10=1.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.50 avg60=0 avg300=0 total=1\n";
        assert_eq!(avg10(psi, "some"), Some(1.25));
        assert_eq!(avg10(psi, "full"), Some(0.5));
        assert_eq!(avg10("", "some"), None);
    }

    #[test]
    fn a_directory_has_one_path_whatever_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert_eq!(canonical(&dir.path().join("link")), canonical(&real));
    }

    #[test]
    fn a_process_has_memory_of_its_own() {
        let (rss, unique) = unique_bytes(std::process::id());
        assert!(rss >= unique && unique > 0);
    }
}
