//! How much a VM has worked.

use std::time::Duration;

/// Processor time of a process since it began, in units of a clock tick; nothing of one that is gone.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    // utime and stime, fields 14 and 15 of proc(5); the state, field 3, is the first here.
    let ticks: u64 = after
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
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
