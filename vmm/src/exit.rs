//! How a VM ends, told once, to whoever waits.

use std::io;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a VM ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "detail")]
pub enum Ended {
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest kernel panicked (pvpanic).
    Panic,
    /// The VMM cannot go on; the text names what happened, where, and what to look at.
    Failed(String),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panic => f.write_str("the guest kernel panicked"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

/// Holds the first end that is reported, and a descriptor that becomes readable then.
pub struct EndedSlot {
    ended: Mutex<Option<Ended>>,
    event: EventFd,
}

impl EndedSlot {
    /// An empty slot.
    ///
    /// # Errors
    /// When no event descriptor can be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ended: Mutex::new(None),
            event: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        })
    }

    /// Records the end unless one is recorded already.
    pub fn set(&self, ended: Ended) {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // A panic is followed by a reset: the first cause is the one to report.
        if slot.is_none() {
            *slot = Some(ended);
            // Cannot fail: the counter is far from its limit, one write a slot.
            let _ = self.event.write(1);
        }
    }

    /// What was recorded.
    pub fn get(&self) -> Option<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable once the VM has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
