//! Percentiles of samples, which are kept.

use serde::Serialize;

/// Samples in microseconds, in the order they were taken, and what they come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Percentiles {
    /// Half of the samples are not above this.
    pub p50_us: f64,
    /// Nine of ten are not.
    pub p90_us: f64,
    /// 99 of 100 are not.
    pub p99_us: f64,
    /// None is.
    pub max_us: f64,
    /// All of them.
    pub samples_us: Vec<f64>,
}

impl Percentiles {
    /// Of samples in nanoseconds; `None` of none.
    pub fn of(samples_ns: &[u64]) -> Option<Self> {
        let mut sorted = samples_ns.to_vec();
        sorted.sort_unstable();
        let rank = |percent| nearest_rank(&sorted, percent).map(micros);
        Some(Self {
            p50_us: rank(50)?,
            p90_us: rank(90)?,
            p99_us: rank(99)?,
            max_us: rank(100)?,
            samples_us: samples_ns.iter().map(|&sample| micros(sample)).collect(),
        })
    }
}

/// Nanoseconds as microseconds.
pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// The smallest of the samples that at least `percent` of them are not above (the nearest-rank method).
fn nearest_rank(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The middle one of some numbers, the lower of two; `None` of none.
pub fn median(numbers: &[u64]) -> Option<u64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    nearest_rank(&sorted, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_sample_of_the_nearest_rank() {
        // The textbook's example.
        let sorted = [15, 20, 35, 40, 50];
        let ranks = [5, 30, 40, 50, 100].map(|percent| nearest_rank(&sorted, percent).unwrap());
        assert_eq!(ranks, [15, 20, 20, 35, 50]);
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(nearest_rank(&hundred, 50), Some(50));
        assert_eq!(nearest_rank(&hundred, 99), Some(99));
        assert_eq!(nearest_rank(&hundred, 100), Some(100));
    }

    #[test]
    fn with_few_samples_the_high_percentiles_are_the_greatest_of_them() {
        let percentiles = Percentiles::of(&[3000, 1000, 2500]).unwrap();
        assert_eq!(percentiles.p50_us, 2.5);
        assert_eq!((percentiles.p99_us, percentiles.max_us), (3.0, 3.0));
        assert_eq!(
            percentiles.samples_us,
            [3.0, 1.0, 2.5],
            "in the order they were taken"
        );
    }

    #[test]
    fn of_nothing_there_are_none() {
        assert_eq!(Percentiles::of(&[]), None);
        assert_eq!(median(&[]), None);
    }
}
