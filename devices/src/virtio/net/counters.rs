//! What went through a network card, and what did not.

use serde::Serialize;

/// Both directions, since the device was made or restored. Counters stay at their largest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// From the guest.
    pub sent: SendCounters,
    /// To the guest.
    pub received: ReceiveCounters,
}

/// From the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SendCounters {
    /// Frames the backend took.
    pub frames: u64,
    /// Their bytes, without virtio headers.
    pub bytes: u64,
    /// Dropped: there is no backend.
    pub unconnected: u64,
    /// Dropped: the device was muted.
    pub muted: u64,
    /// Dropped: no frame, or its header makes no sense.
    pub malformed: u64,
    /// Dropped: another source address than the one that is allowed.
    pub foreign: u64,
    /// Lost: the backend did not take them.
    pub refused: u64,
}

/// To the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiveCounters {
    /// Frames the guest was given.
    pub frames: u64,
    /// Their bytes, without virtio headers.
    pub bytes: u64,
    /// Dropped: there will be no room for them in the guest's buffers.
    pub too_big: u64,
    /// Dropped: not even a frame.
    pub malformed: u64,
    /// Lost: the backend failed to give them.
    pub failed: u64,
}

impl SendCounters {
    /// All that did not go through.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        [
            self.unconnected,
            self.muted,
            self.malformed,
            self.foreign,
            self.refused,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

impl ReceiveCounters {
    /// All that did not go through.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        [self.too_big, self.malformed, self.failed]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

/// One more.
pub(super) fn count(counter: &mut u64) {
    add(counter, 1);
}

/// So many more.
pub(super) fn add(counter: &mut u64, many: usize) {
    *counter = counter.saturating_add(many as u64);
}
