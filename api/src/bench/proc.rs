//! What `/proc` says of a VM's process.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::BenchError;
use super::stats::median;

/// Memory of a VM's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Pages of its own: what goes when it goes.
    pub private_dirty_bytes: u64,
    /// All its pages, those it shares with others divided by how many share them.
    pub pss_bytes: u64,
}

impl Memory {
    /// Of a process (`smaps_rollup`, proc(5)).
    ///
    /// # Errors
    /// [`BenchError::File`].
    pub fn of(pid: u32) -> Result<Self, BenchError> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).map_err(|source| BenchError::File {
            path: path.into(),
            source,
        })?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or_default() * 1024
        };
        Self {
            private_dirty_bytes: field("Private_Dirty:"),
            pss_bytes: field("Pss:"),
        }
    }

    /// The middle of several, each figure by itself; nothing of none.
    pub fn median(all: &[Self]) -> Option<Self> {
        let of = |field: fn(&Self) -> u64| median(&all.iter().map(field).collect::<Vec<_>>());
        Some(Self {
            private_dirty_bytes: of(|memory| memory.private_dirty_bytes)?,
            pss_bytes: of(|memory| memory.pss_bytes)?,
        })
    }
}

/// How long the threads of a process with this name have run, in nanoseconds (`schedstat`, proc(5)).
pub fn thread_cpu_ns(pid: u32, name: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = tasks.into_iter().flatten().flatten().map(|entry| entry.path());
    threads
        .filter(|thread| read(&thread.join("comm")).trim() == name)
        .filter_map(|thread| {
            read(&thread.join("schedstat"))
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

fn read(path: &Path) -> String {
    // A thread that has ended meanwhile has no more to say.
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_right_lines() {
        let text = "00400000-7ffd000 ---p 00000000 00:00 0  [rollup]\nRss:  900 kB\nPss:   300 kB\nPss_Dirty:  7 kB\n\
                    Private_Clean:  1 kB\nPrivate_Dirty:   120 kB\n";
        let expected = Memory {
            private_dirty_bytes: 120 << 10,
            pss_bytes: 300 << 10,
        };
        assert_eq!(Memory::parse(text), expected);
        assert!(Memory::of(std::process::id()).unwrap().pss_bytes > 0);
    }

    #[test]
    fn a_threads_time_goes_on() {
        let thread = std::thread::Builder::new().name("spins".into());
        let time = thread.spawn(|| {
            // The kernel counts when it schedules: at the next tick at the latest.
            let started = std::time::Instant::now();
            while thread_cpu_ns(std::process::id(), "spins") == 0 && started.elapsed().as_secs() < 10 {
                std::hint::spin_loop();
            }
            thread_cpu_ns(std::process::id(), "spins")
        });
        assert!(time.unwrap().join().unwrap() > 0);
    }
}
