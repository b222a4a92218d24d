//! What the kernel says of a process: proc_pid_stat(5).

use std::io;
use std::time::Duration;

/// The fields of a process from the third on: the second, its name, is in parentheses and may have any character in it.
fn after_name(pid: u32) -> io::Result<String> {
    let mut stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rfind(')').map_or(0, |at| at + 1);
    Ok(stat.split_off(after))
}

/// A field that is a number, counted as in the manual.
fn field(after_name: &str, number: usize) -> Option<u64> {
    let field = after_name.split_ascii_whitespace().nth(number - 3)?;
    field.parse().ok()
}

/// When a process was started, in clock ticks since the host booted (field 22).
///
/// # Errors
/// When there is no such process.
pub(super) fn start_time(pid: u32) -> io::Result<u64> {
    field(&after_name(pid)?, 22)
        .ok_or_else(|| io::Error::other("the host does not say when a process was started"))
}

/// Processor time of a process since it began (fields 14 and 15), in units of a clock tick; nothing of one that is gone.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = after_name(pid).unwrap_or_default();
    let ticks: u64 = [14, 15]
        .into_iter()
        .filter_map(|number| field(&stat, number))
        .sum();
    Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_used_time_and_one_that_is_gone_none() {
        let busy = std::time::Instant::now();
        while busy.elapsed().as_millis() < 60 {}
        assert!(cpu_time(std::process::id()) >= Duration::from_millis(10));
        assert_eq!(cpu_time(u32::MAX), Duration::ZERO);
    }
}
