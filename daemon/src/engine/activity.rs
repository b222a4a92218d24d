//! Whether a sandbox is in use, and since when not.
//!
//! In use is what somebody works with through the API: a command or a copy that goes on, a fork, a checkpoint, a
//! change. Whoever only looks does not use it, and neither does what runs in it by itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::now;

/// The uses of one sandbox.
#[derive(Debug)]
pub struct Activity(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    uses: usize,
    /// When one last began or ended, in seconds since 1970.
    last: u64,
}

/// One use; it ends when this is dropped.
#[derive(Debug)]
pub struct Use(Arc<Activity>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Inner { uses: 0, last: now() }))
    }
}

impl Activity {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody begins to use it.
    pub fn begin(self: &Arc<Self>) -> Use {
        let mut inner = self.lock();
        inner.uses += 1;
        inner.last = now();
        Use(self.clone())
    }

    /// When somebody last began or ended to use it, in seconds since 1970.
    pub fn last(&self) -> u64 {
        self.lock().last
    }

    /// For how many seconds nobody has used it at a time; 0 while somebody does.
    pub fn idle_at(&self, now: u64) -> u64 {
        let inner = self.lock();
        match inner.uses {
            0 => now.saturating_sub(inner.last),
            _ => 0,
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.uses -= 1;
        inner.last = now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_idle_from_when_its_last_use_ended() {
        let activity = Arc::new(Activity::default());
        let later = now() + 100;
        assert!(activity.idle_at(later) >= 99);
        let first = activity.begin();
        let second = activity.begin();
        drop(first);
        assert_eq!(activity.idle_at(later), 0);
        activity.lock().last = 0;
        drop(second);
        assert!((99..=100).contains(&activity.idle_at(later)));
    }
}
