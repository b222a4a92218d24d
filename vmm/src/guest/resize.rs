//! Growing and shrinking, believed only when the guest shows it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::nudge::Nudge;
use super::{Agent, Guest, GuestError};
use crate::cancel::Cancel;
use crate::layout::MIB;

/// A guest that plugs or unplugs nothing for this long is not going to: all nudges, and what the last one started.
const STALL: Duration = Duration::from_secs(120);
/// Between two looks at the device.
const LOOK: Duration = Duration::from_millis(10);
/// A guest that goes on for this long after it was told to stay as it is will be what it was told in the end.
const STAY: Duration = Duration::from_secs(2);
/// MemTotal may fall short of what is plugged by this much: per-CPU data of a new zone and the like.
const TOLERANCE: u64 = MIB;

/// What a resize came to, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Granted {
    /// The least this guest can have.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// What was asked for.
    #[serde(rename = "requestedMB")]
    pub requested_mb: u32,
    /// What it has: verified in the guest.
    #[serde(rename = "grantedMB")]
    pub granted_mb: u32,
    /// MemTotal as the guest reports it, which is less by what its kernel keeps for itself.
    #[serde(rename = "memTotalMB")]
    pub mem_total_mb: u32,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// How far a resize got that did not get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// What was asked for, in MiB.
    pub requested_mb: u32,
    /// What the guest has, in MiB.
    pub granted_mb: u32,
    /// MemTotal as the guest reports it, in MiB.
    pub mem_total_mb: u32,
}

/// Why a resize did not come to what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// More than the guest can ever have.
    #[error("{requested_mb} MiB is more than this guest's maximum of {max_mb} MiB")]
    AboveMaximum {
        /// Asked for.
        requested_mb: u32,
        /// The most possible.
        max_mb: u32,
    },
    /// The guest stopped plugging.
    #[error(
        "the guest grew to {} of {} MiB and no further: its driver could not plug more (is its kernel out of memory for page structures?)",
        .0.granted_mb, .0.requested_mb
    )]
    GrewShort(Shortfall),
    /// The guest stopped unplugging.
    #[error("the guest shrank to {} MiB instead of {}: the rest of its memory is in use", .0.granted_mb, .0.requested_mb)]
    ShrankShort(Shortfall),
    /// Nobody wanted it any more.
    #[error("cancelled: the guest has {} MiB, of {} that were asked for", .0.granted_mb, .0.requested_mb)]
    Cancelled(Shortfall),
    /// The device plugged, the guest did not bring it into use.
    #[error(
        "the guest plugged {} MiB but its MemTotal of {} MiB does not show it: memory blocks were not brought online",
        .0.granted_mb, .0.mem_total_mb
    )]
    NotOnline(Shortfall),
}

fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

impl Guest {
    /// Brings the guest to `total_mb` of memory in all, clamped up to its floor, and returns when
    /// the guest itself shows it.
    ///
    /// # Errors
    /// [`ResizeError`] in [`GuestError::Resize`] says how far it got.
    pub fn resize(&mut self, agent: &mut Agent, total_mb: u32) -> Result<Granted, GuestError> {
        self.resize_unless(agent, total_mb, &Cancel::default())
    }

    /// As [`resize`](Guest::resize). Cancelled, the guest stays with what it has then.
    ///
    /// # Errors
    /// As there.
    pub fn resize_unless(
        &mut self,
        agent: &mut Agent,
        total_mb: u32,
        cancel: &Cancel,
    ) -> Result<Granted, GuestError> {
        cancel.check()?;
        let started = Instant::now();
        let before = self.vm.stats()?;
        let report = agent.memory(false)?;
        // What the kernel keeps for itself is the same before and after.
        let kept = (before.boot_bytes + before.plugged_bytes).saturating_sub(report.total_bytes);
        let (floor_mb, max_mb) = (
            mib(before.boot_bytes),
            mib(before.boot_bytes + before.region_bytes),
        );
        if total_mb > max_mb {
            return Err(ResizeError::AboveMaximum {
                requested_mb: total_mb,
                max_mb,
            }
            .into());
        }
        let block = crate::layout::HOTPLUG_BLOCK;
        let wanted = (u64::from(total_mb.max(floor_mb)) * MIB - before.boot_bytes).next_multiple_of(block);
        let grows = wanted >= before.plugged_bytes;
        // Asking for what it has would cost the guest an interrupt and a look at its memory blocks.
        if wanted != before.plugged_bytes || wanted != before.requested_bytes {
            self.vm.request_memory(wanted)?;
        }

        let mut plugged = before.plugged_bytes;
        let (mut moved, mut nudge) = (Instant::now(), Nudge::new(self.pid()));
        while plugged != wanted && moved.elapsed() < STALL && !cancel.is_cancelled() {
            std::thread::sleep(LOOK);
            let now = self.vm.stats()?.plugged_bytes;
            if now != plugged {
                plugged = now;
                moved = Instant::now();
                nudge.rest();
            } else if nudge.is_due() {
                self.vm.request_memory(wanted)?;
            }
        }
        let stopped = plugged != wanted && cancel.is_cancelled();
        if stopped {
            plugged = self.stay(plugged)?;
        }
        let shown = |total: u64| total + kept + TOLERANCE >= before.boot_bytes + plugged;
        let unchanged = wanted == before.plugged_bytes;
        let mut total = if unchanged {
            report.total_bytes
        } else {
            agent.memory(false)?.total_bytes
        };
        let verify = Instant::now();
        while plugged == wanted && !shown(total) && verify.elapsed() < STALL {
            std::thread::sleep(LOOK * 5);
            total = agent.memory(false)?.total_bytes;
        }

        let shortfall = Shortfall {
            requested_mb: total_mb,
            granted_mb: mib(before.boot_bytes + plugged),
            mem_total_mb: mib(total),
        };
        match (plugged == wanted, grows) {
            (false, _) if stopped => return Err(ResizeError::Cancelled(shortfall).into()),
            (false, true) => return Err(ResizeError::GrewShort(shortfall).into()),
            (false, false) => return Err(ResizeError::ShrankShort(shortfall).into()),
            (true, _) if !shown(total) => return Err(ResizeError::NotOnline(shortfall).into()),
            (true, _) => {}
        }
        Ok(Granted {
            floor_mb,
            requested_mb: total_mb,
            granted_mb: shortfall.granted_mb,
            mem_total_mb: shortfall.mem_total_mb,
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Asks for what it has, and says what that is: a block that was on its way when it was told comes or goes.
    fn stay(&mut self, mut plugged: u64) -> Result<u64, GuestError> {
        let begun = Instant::now();
        loop {
            self.vm.request_memory(plugged)?;
            std::thread::sleep(LOOK);
            let now = self.vm.stats()?.plugged_bytes;
            if now == plugged || begun.elapsed() >= STAY {
                return Ok(now.max(plugged));
            }
            plugged = now;
        }
    }
}
