//! When a guest's driver is asked anew for memory that it does not bring.
//!
//! A driver that could not unplug, because a page was in use, waits for 50 to 300 s before it tries again
//! (`VIRTIO_MEM_RETRY_TIMER_MIN_MS` in drivers/virtio/virtio_mem.c). Being asked anew ends that wait. It also makes a
//! driver that is at work drop what it has: `virtio_mem_fake_offline` and `virtio_mem_send_unplug_request` look at
//! `config_changed`, and the 32,768 pages of a memory block that were taken out of use go back one by one. Where a block
//! takes longer than we wait, asking is all that keeps it from going. So who is at work is let work.

use std::time::{Duration, Instant};

use crate::process::cpu_time;

/// A guest that does nothing is asked anew after this long without progress, then after twice as long, and so on.
const IDLE: Duration = Duration::from_secs(5);
/// One that is busy, with this or with something else, is asked after so many times that.
const BUSY: u32 = 12;

/// What is waited for since when.
pub(super) struct Nudge {
    pid: u32,
    since: Instant,
    worked: Duration,
    patience: Duration,
}

impl Nudge {
    /// For the VM that is process `pid`, which has just been asked.
    pub(super) fn new(pid: u32) -> Self {
        Self {
            pid,
            since: Instant::now(),
            worked: cpu_time(pid),
            patience: IDLE,
        }
    }

    /// There was progress.
    pub(super) fn rest(&mut self) {
        *self = Self::new(self.pid);
    }

    /// Whether it is time to ask anew. If so, the next time is later.
    pub(super) fn is_due(&mut self) -> bool {
        let waited = self.since.elapsed();
        // Before that it is not, whatever the guest did.
        if waited <= self.patience {
            return false;
        }
        let worked = cpu_time(self.pid).saturating_sub(self.worked);
        let due = is_due(waited, worked, self.patience);
        if due {
            *self = Self {
                patience: self.patience * 2,
                ..Self::new(self.pid)
            };
        }
        due
    }
}

fn is_due(waited: Duration, worked: Duration, patience: Duration) -> bool {
    let idle = worked < waited / 2;
    waited > if idle { patience } else { patience * BUSY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_guest_is_asked_soon_and_a_busy_one_is_let_work() {
        let second = Duration::from_secs(1);
        assert!(!is_due(4 * second, Duration::ZERO, IDLE));
        assert!(is_due(6 * second, Duration::ZERO, IDLE));
        assert!(is_due(6 * second, 2 * second, IDLE));
        assert!(!is_due(6 * second, 4 * second, IDLE));
        assert!(!is_due(59 * second, 59 * second, IDLE));
        assert!(is_due(61 * second, 61 * second, IDLE));
        assert!(!is_due(61 * second, 61 * second, IDLE * 2));
    }
}
