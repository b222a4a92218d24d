//! The host's monotonic clock, as numbers that processes can compare.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` now, in nanoseconds since the host booted. All processes of a host share it.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part is ever negative on this clock.
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

/// What happened when, on the way to a running fork: names and monotonic times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trace(Vec<(String, u64)>);

impl Trace {
    /// Notes that `what` is done now.
    pub fn mark(&mut self, what: &str) {
        self.0.push((what.to_owned(), monotonic_ns()));
    }

    /// Notes that `what` was done at `at_ns`.
    pub fn mark_at(&mut self, what: &str, at_ns: u64) {
        self.0.push((what.to_owned(), at_ns));
    }

    /// Appends what another process noted.
    pub fn extend(&mut self, other: Trace) {
        self.0.extend(other.0);
    }

    /// The marks in the order of their times.
    pub fn marks(&self) -> Vec<(&str, u64)> {
        let mut marks: Vec<_> = self.0.iter().map(|(what, at)| (what.as_str(), *at)).collect();
        marks.sort_by_key(|&(_, at)| at);
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_marks_come_in_its_order() {
        let before = monotonic_ns();
        let mut trace = Trace::default();
        trace.mark("second");
        trace.mark_at("first", before);
        assert!(monotonic_ns() >= before);
        let names: Vec<_> = trace.marks().into_iter().map(|(what, _)| what).collect();
        assert_eq!(names, ["first", "second"]);
    }
}
