//! A virtqueue at rest: plain numbers that become a working [`Queue`] only through a checked conversion.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::Memory;

/// A split virtqueue as a checkpoint holds it (virtio 1.2, 2.7). Untrusted: see its `TryFrom`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Largest size the device offers, in descriptors.
    pub max_size: u16,
    /// Size the driver chose, in descriptors.
    pub size: u16,
    /// The driver finished setting the queue up.
    pub ready: bool,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Guest physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest physical address of the available ring.
    pub available_ring: u64,
    /// Guest physical address of the used ring.
    pub used_ring: u64,
    /// Free-running index of the next available entry the device takes.
    pub next_available: u16,
    /// Free-running index of the next used entry the device writes.
    pub next_used: u16,
}

impl From<&Queue> for QueueState {
    fn from(queue: &Queue) -> Self {
        Self {
            max_size: queue.max_size(),
            size: queue.size(),
            ready: queue.ready(),
            event_idx: queue.event_idx_enabled(),
            descriptor_table: queue.desc_table(),
            available_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
            next_available: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }
}

impl TryFrom<QueueState> for Queue {
    type Error = virtio_queue::Error;

    /// Checks sizes and alignments; whether the rings are in guest memory is [`check_rings`]' business.
    fn try_from(state: QueueState) -> Result<Self, Self::Error> {
        Queue::try_from(virtio_queue::QueueState {
            max_size: state.max_size,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.descriptor_table,
            avail_ring: state.available_ring,
            used_ring: state.used_ring,
        })
    }
}

/// What a queue's three areas in guest memory fail to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// An area is not wholly in guest memory.
    #[error("the {area} at {address:#x} ({bytes} bytes) is not in guest memory")]
    OutsideMemory {
        /// Which of the three areas.
        area: &'static str,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Only the device writes the used index, so memory and device state are not of the same instant.
    #[error("guest memory says {in_memory} buffers were used, the device state says {in_state}")]
    Torn {
        /// The used ring's index in guest memory.
        in_memory: u16,
        /// The index the device would write next.
        in_state: u16,
    },
}

/// Checks that descriptor table, available ring and used ring (virtio 1.2, 2.7) are in `memory`.
///
/// Unlike `Queue::is_valid` it writes no log lines, which a guest could provoke at will.
///
/// # Errors
/// [`RingError::OutsideMemory`], naming the area.
pub fn check_rings(queue: &Queue, memory: &Memory) -> Result<(), RingError> {
    let size = u64::from(queue.size());
    let areas = [
        (
            "descriptor table",
            queue.desc_table(),
            16 * size,
            Permissions::Read,
        ),
        (
            "available ring",
            queue.avail_ring(),
            6 + 2 * size,
            Permissions::Read,
        ),
        ("used ring", queue.used_ring(), 6 + 8 * size, Permissions::Write),
    ];
    for (area, address, bytes, access) in areas {
        let inside = usize::try_from(bytes)
            .is_ok_and(|length| GuestMemory::check_range(memory, GuestAddress(address), length, access));
        // virtio-queue takes an available ring at 0 for one that was never set.
        if !inside || queue.avail_ring() == 0 {
            return Err(RingError::OutsideMemory { area, address, bytes });
        }
    }
    Ok(())
}

/// Checks that a restored queue and the restored memory are of the same instant.
///
/// # Errors
/// [`RingError`], for rings outside memory or a used index that differs.
pub fn check_instant(queue: &Queue, memory: &Memory) -> Result<(), RingError> {
    check_rings(queue, memory)?;
    let outside = RingError::OutsideMemory {
        area: "used ring",
        address: queue.used_ring(),
        bytes: 4,
    };
    let in_memory = queue.used_idx(memory, Ordering::Acquire).map_err(|_| outside)?.0;
    if in_memory == queue.next_used() {
        Ok(())
    } else {
        Err(RingError::Torn {
            in_memory,
            in_state: queue.next_used(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> QueueState {
        QueueState {
            max_size: 16,
            size: 8,
            ready: true,
            event_idx: true,
            descriptor_table: 0x1000,
            available_ring: 0x2000,
            used_ring: 0x3000,
            next_available: 7,
            next_used: 5,
        }
    }

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap()
    }

    #[test]
    fn a_saved_queue_becomes_the_same_queue() {
        let queue = Queue::try_from(state()).unwrap();
        assert_eq!(QueueState::from(&queue), state());
    }

    #[test]
    fn sizes_and_alignments_that_break_the_specification_are_refused() {
        for wrong in [
            QueueState {
                max_size: 0,
                ..state()
            },
            QueueState {
                max_size: 12,
                ..state()
            },
            QueueState { size: 0, ..state() },
            QueueState { size: 32, ..state() },
            QueueState {
                descriptor_table: 0x1008,
                ..state()
            },
            QueueState {
                available_ring: 0x2001,
                ..state()
            },
            QueueState {
                used_ring: 0x3002,
                ..state()
            },
        ] {
            assert!(Queue::try_from(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rings_outside_guest_memory_are_named() {
        let check = |state| check_rings(&Queue::try_from(state).unwrap(), &memory());
        assert_eq!(check(state()), Ok(()));
        for (wrong, area) in [
            (
                QueueState {
                    descriptor_table: 0x3ff0,
                    ..state()
                },
                "descriptor table",
            ),
            (
                QueueState {
                    descriptor_table: !0xf,
                    ..state()
                },
                "descriptor table",
            ),
            (
                QueueState {
                    available_ring: 0x3ff0,
                    ..state()
                },
                "available ring",
            ),
            (
                QueueState {
                    used_ring: 0x3fc0,
                    ..state()
                },
                "used ring",
            ),
        ] {
            match check(wrong) {
                Err(RingError::OutsideMemory { area: found, .. }) => assert_eq!(found, area),
                other => panic!("{other:?}"),
            }
        }
        assert!(
            check(QueueState {
                available_ring: 0,
                ..state()
            })
            .is_err()
        );
    }

    #[test]
    fn memory_of_another_instant_is_noticed() {
        let queue = Queue::try_from(state()).unwrap();
        let torn = RingError::Torn {
            in_memory: 0,
            in_state: 5,
        };
        assert_eq!(check_instant(&queue, &memory()), Err(torn));
    }
}
