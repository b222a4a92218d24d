//! Memory that is promised, and whether more can be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_types::ErrorCode;

use crate::config::Limits;
use crate::error::{Error, Result};

/// What is promised to all sandboxes and builds of a host.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The most that may be promised, in MiB.
    limit_mb: u64,
    /// The most sandboxes.
    sandboxes: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    committed_mb: u64,
    sandboxes: u32,
}

/// Memory promised to somebody. It is free again when this is dropped.
#[derive(Debug)]
pub struct Promise {
    ledger: Ledger,
    memory_mb: u64,
    sandboxes: u32,
}

impl Ledger {
    /// Of a host with so much memory, in MiB.
    pub fn new(total_mb: u64, limits: &Limits) -> Self {
        Self(Arc::new(Inner {
            limit_mb: limit_mb(total_mb, limits),
            sandboxes: limits.sandboxes,
            state: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most that may be promised, in MiB.
    pub fn limit_mb(&self) -> u64 {
        self.0.limit_mb
    }

    /// The most sandboxes.
    pub fn max_sandboxes(&self) -> u32 {
        self.0.sandboxes
    }

    /// What is promised, in MiB, and to how many sandboxes.
    pub fn committed(&self) -> (u64, u32) {
        let state = self.lock();
        (state.committed_mb, state.sandboxes)
    }

    /// Promises memory to a sandbox, or to several at once.
    ///
    /// # Errors
    /// `insufficient_capacity`, with what would fit.
    pub fn promise(&self, each_mb: u32, sandboxes: u32) -> Result<Vec<Promise>> {
        let wanted = u64::from(each_mb) * u64::from(sandboxes);
        let mut state = self.lock();
        let most = self.0.sandboxes;
        if state.sandboxes.saturating_add(sandboxes) > most {
            let error = Error::new(
                ErrorCode::InsufficientCapacity,
                format!(
                    "{} of at most {most} sandboxes run, {sandboxes} more do not fit",
                    state.sandboxes
                ),
            );
            return Err(error.with("fitSandboxes", most.saturating_sub(state.sandboxes)));
        }
        self.check(&state, wanted)?;
        state.committed_mb += wanted;
        state.sandboxes += sandboxes;
        Ok((0..sandboxes)
            .map(|_| Promise {
                ledger: self.clone(),
                memory_mb: each_mb.into(),
                sandboxes: 1,
            })
            .collect())
    }

    /// Promises memory to a build.
    ///
    /// # Errors
    /// As [`Ledger::promise`].
    pub fn promise_build(&self, memory_mb: u32) -> Result<Promise> {
        let mut state = self.lock();
        self.check(&state, memory_mb.into())?;
        state.committed_mb += u64::from(memory_mb);
        Ok(Promise {
            ledger: self.clone(),
            memory_mb: memory_mb.into(),
            sandboxes: 0,
        })
    }

    /// What has been promised by an earlier daemon and runs: promised whatever the limit is now.
    pub fn acknowledge(&self, memory_mb: u32) -> Promise {
        let mut state = self.lock();
        state.committed_mb += u64::from(memory_mb);
        state.sandboxes += 1;
        Promise {
            ledger: self.clone(),
            memory_mb: memory_mb.into(),
            sandboxes: 1,
        }
    }

    fn check(&self, state: &State, wanted_mb: u64) -> Result<()> {
        let fit = self.0.limit_mb.saturating_sub(state.committed_mb);
        if wanted_mb <= fit {
            return Ok(());
        }
        let message = format!(
            "{wanted_mb} MiB do not fit: {} of {} MiB are promised",
            state.committed_mb, self.0.limit_mb
        );
        Err(Error::new(ErrorCode::InsufficientCapacity, message)
            .with("requestedMB", wanted_mb)
            .with("fitMB", fit))
    }
}

impl Promise {
    /// How much, in MiB.
    pub fn memory_mb(&self) -> u64 {
        self.memory_mb
    }

    /// Promises another amount instead. Less is always possible.
    ///
    /// # Errors
    /// As [`Ledger::promise`]; the old amount stays promised.
    pub fn change(&mut self, memory_mb: u32) -> Result<()> {
        let (old, new) = (self.memory_mb, u64::from(memory_mb));
        let mut state = self.ledger.lock();
        if new > old {
            self.ledger.check(&state, new - old)?;
        }
        state.committed_mb = state.committed_mb - old + new;
        self.memory_mb = new;
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        state.committed_mb -= self.memory_mb;
        state.sandboxes -= self.sandboxes;
    }
}

/// What may be promised of so much memory.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "MiB of a host: far below 2^52, and the factor is not negative"
)]
fn limit_mb(total_mb: u64, limits: &Limits) -> u64 {
    let free = total_mb.saturating_sub(limits.reserve_mb);
    (free as f64 * limits.overcommit.max(0.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let limits = Limits {
            reserve_mb: 1000,
            overcommit: 2.0,
            sandboxes: 5,
            ..Limits::default()
        };
        Ledger::new(3000, &limits)
    }

    #[test]
    fn what_is_promised_is_counted_and_given_back() {
        let ledger = ledger();
        assert_eq!(ledger.limit_mb(), 4000);
        let mut two = ledger.promise(1500, 2).unwrap();
        assert_eq!(ledger.committed(), (3000, 2));
        let refused = ledger.promise(1001, 1).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InsufficientCapacity);
        assert_eq!(refused.body().details["fitMB"], 1000);
        let mut one = two.pop().unwrap();
        assert!(one.change(2501).is_err());
        one.change(2500).unwrap();
        assert_eq!(ledger.committed(), (4000, 2));
        one.change(10).unwrap();
        drop(two);
        assert_eq!(ledger.committed(), (10, 1));
        drop(one);
        assert_eq!(ledger.committed(), (0, 0));
    }

    #[test]
    fn sandboxes_have_a_limit_of_their_own_and_builds_do_not_count() {
        let ledger = ledger();
        let _build = ledger.promise_build(100).unwrap();
        let _five = ledger.promise(1, 5).unwrap();
        let refused = ledger.promise(1, 1).unwrap_err();
        assert_eq!(refused.body().details["fitSandboxes"], 0);
        assert!(ledger.promise(1, u32::MAX).is_err());
        let adopted = ledger.acknowledge(100_000);
        assert!(ledger.promise_build(1).is_err());
        drop(adopted);
        assert!(ledger.promise_build(1).is_ok());
    }
}
