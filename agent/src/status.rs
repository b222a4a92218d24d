//! What the host wants to know about the guest, at the fewest system calls.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, clock_gettime};
use spore_protocol::{Failure, MemoryBlocks, MemoryReport, Pong, Status};

use crate::BUILD;
use crate::files::read_small;
use crate::sys::lock;

const BLOCKS: &str = "/sys/devices/system/memory";

/// Sixteen bytes that no other boot has. Early in a boot the kernel may not be ready to promise
/// randomness; ours need only differ, so we do not wait for it.
pub fn draw_nonce() -> [u8; 16] {
    let mut nonce = [0; 16];
    if getrandom(&mut nonce, GetRandomFlags::NONBLOCK) != Ok(nonce.len()) {
        let _ = getrandom(&mut nonce, GetRandomFlags::INSECURE);
        let clocks = [clock_ns(ClockId::Realtime), clock_ns(ClockId::Monotonic)];
        for (byte, clock) in nonce
            .iter_mut()
            .zip(clocks.iter().flat_map(|clock| clock.to_le_bytes()))
        {
            *byte ^= clock;
        }
    }
    nonce
}

/// The cheapest sign of life.
pub fn pong(boot_nonce: [u8; 16]) -> Pong {
    Pong {
        boot_nonce,
        monotonic_ns: clock_ns(ClockId::Monotonic),
        realtime_ns: clock_ns(ClockId::Realtime),
    }
}

/// How the guest is.
pub fn status(boot_nonce: [u8; 16], oom: &OomCounter) -> Result<Status, Failure> {
    // The first three lines are all we want; the kernel formats the rest regardless.
    let mut meminfo = [0; 512];
    let length = read_small("/proc/meminfo", &mut meminfo)
        .map_err(|error| Failure::from_io("read /proc/meminfo", &error))?;
    let meminfo = String::from_utf8_lossy(&meminfo[..length]).into_owned();
    let kib = |name| value(&meminfo, name).unwrap_or(0) * 1024;
    let Pong {
        boot_nonce,
        monotonic_ns,
        realtime_ns,
    } = pong(boot_nonce);
    Ok(Status {
        boot_nonce,
        monotonic_ns,
        uptime_ns: clock_ns(ClockId::Boottime),
        realtime_ns,
        mem_total_bytes: kib("MemTotal:"),
        mem_available_bytes: kib("MemAvailable:"),
        blocks: count_blocks(),
        oom_kills: oom.count(),
        agent_pid: std::process::id(),
        agent_version: BUILD.to_owned(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}

/// How much memory the guest has.
pub fn memory(with_blocks: bool) -> MemoryReport {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    MemoryReport {
        total_bytes: info.totalram * unit,
        free_bytes: info.freeram * unit,
        blocks: if with_blocks { count_blocks() } else { None },
    }
}

fn count_blocks() -> Option<MemoryBlocks> {
    let size = fs::read_to_string(format!("{BLOCKS}/block_size_bytes")).ok()?;
    let block_bytes = u64::from_str_radix(size.trim().trim_start_matches("0x"), 16).ok()?;
    let mut blocks = MemoryBlocks {
        online: 0,
        present: 0,
        block_bytes,
    };
    for entry in fs::read_dir(BLOCKS).ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("memory")) else {
            continue;
        };
        if !number.bytes().all(|digit| digit.is_ascii_digit()) {
            continue;
        }
        blocks.present += 1;
        let mut state = [0; 16];
        let length = read_small(&format!("{BLOCKS}/memory{number}/state"), &mut state).unwrap_or(0);
        blocks.online += u32::from(state[..length].trim_ascii() == b"online");
    }
    Some(blocks)
}

/// Counts processes killed for want of memory.
///
/// The number is in `/proc/vmstat`, whose hundred-odd lines take the guest's kernel some 20 ms to
/// format: too much before and after every exec. But no process is killed for want of memory
/// without a kernel message, so while there is no news in `/dev/kmsg` the number is the same:
/// one cheap poll.
#[derive(Debug, Default)]
pub struct OomCounter(Mutex<OomState>);

#[derive(Debug, Default)]
struct OomState {
    kmsg: Option<OwnedFd>,
    known: Option<u64>,
}

impl OomCounter {
    /// Processes killed since boot.
    pub fn count(&self) -> u64 {
        let mut state = lock(&self.0);
        if state.kmsg.is_none() {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            state.kmsg = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).ok();
            state.known = None;
        }
        if let Some(count) = state.known
            && state.kmsg.as_ref().is_some_and(|kmsg| !has_news(kmsg))
        {
            return count;
        }
        // Past the messages first: one that comes while we read makes us read again.
        if let Some(kmsg) = &state.kmsg {
            let _ = rustix::fs::seek(kmsg, SeekFrom::End(0));
        }
        let count = read_vmstat().unwrap_or(0);
        state.known = Some(count);
        count
    }
}

fn has_news(kmsg: &OwnedFd) -> bool {
    let mut set = [PollFd::from_borrowed_fd(kmsg.as_fd(), PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut set, Some(&now)) != Ok(0)
}

fn read_vmstat() -> Option<u64> {
    let vmstat = fs::read_to_string("/proc/vmstat").ok()?;
    value(&vmstat, "oom_kill")
}

/// The number after a name at the start of a line.
fn value(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

/// What a clock says, in nanoseconds.
pub fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_name() {
        let table = "oom_kill_disable 9\noom_kill 3\nMemTotal:       16 kB\n";
        assert_eq!(value(table, "oom_kill"), Some(3));
        assert_eq!(value(table, "MemTotal:"), Some(16));
        assert_eq!(value(table, "oom"), None);
    }

    #[test]
    fn the_cheap_and_the_thorough_way_agree_on_memory() {
        let status = status([7; 16], &OomCounter::default()).unwrap();
        assert_eq!(status.mem_total_bytes, memory(false).total_bytes);
        assert!(status.mem_available_bytes > 0 && status.mem_available_bytes <= status.mem_total_bytes);
        assert_eq!(status.boot_nonce, [7; 16]);
    }

    #[test]
    fn counting_twice_without_a_kill_gives_the_same() {
        let counter = OomCounter::default();
        let first = counter.count();
        assert_eq!(counter.count(), first);
        assert_eq!(Some(first), read_vmstat());
    }

    #[test]
    fn two_nonces_differ() {
        assert_ne!(draw_nonce(), draw_nonce());
    }
}
