//! Long random tests: decided by a seed alone, which is told when they fail.
//!
//! `SPORE_SOAK_SECONDS` says how long they go on, `SPORE_SOAK_SEED` repeats one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long they go on among the other tests.
const SECONDS: u64 = 60;

/// xorshift64*, so that a test is the same everywhere.
pub struct Random(u64);

impl Random {
    /// Decided by a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.draw() >> 16) % end as u64).unwrap()
    }

    /// One of these, each as often as its number says.
    pub fn pick<T: std::marker::Copy>(&mut self, of: &[(T, usize)]) -> T {
        let all = of.iter().map(|(_, weight)| weight).sum();
        let mut at = self.below(all);
        for (what, weight) in of {
            match at.checked_sub(*weight) {
                None => return *what,
                Some(rest) => at = rest,
            }
        }
        unreachable!("a number below the sum of all")
    }
}

/// A test that is under way.
pub struct Soak {
    name: &'static str,
    seed: u64,
    began: Instant,
    limit: Duration,
}

impl Soak {
    /// Begins, and says how to repeat it.
    pub fn begin(name: &'static str) -> Self {
        let now = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        let soak = Self {
            name,
            seed: number("SPORE_SOAK_SEED").unwrap_or_else(now),
            began: Instant::now(),
            limit: Duration::from_secs(number("SPORE_SOAK_SECONDS").unwrap_or(SECONDS)),
        };
        eprintln!("{name}: SPORE_SOAK_SEED={} for {:?}", soak.seed, soak.limit);
        soak
    }

    /// The random numbers of one of several that go on at once.
    pub fn random(&self, who: u64) -> Random {
        Random::new(self.seed.wrapping_add(who.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// Whether there is time left.
    pub fn goes_on(&self) -> bool {
        self.elapsed() < self.limit
    }

    /// How long it has gone on.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed; SPORE_SOAK_SEED={} repeats it", self.name, self.seed);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    let number = value.parse();
    Some(number.unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}
