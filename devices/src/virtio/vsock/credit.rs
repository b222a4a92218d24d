//! Flow control arithmetic of one connection (virtio 1.2, 5.10.6.3).
//!
//! All counters are bytes since the connection began, modulo 2^32. Every packet carries the
//! sender's buffer size and how many bytes it has passed on, so every packet is a credit update.

use super::packet::MAX_PAYLOAD;

/// Bytes the device buffers for one host stream at most, announced to the guest as `buf_alloc`.
pub const BUF_ALLOC: u32 = 128 * 1024;

/// The guest announces less room than a full packet needs only while data is on its way, so there
/// is no point in telling it of a few bytes' more room above this.
const AMPLE: u32 = 64 * 1024;
const _: () = assert!(AMPLE as usize == MAX_PAYLOAD && AMPLE < BUF_ALLOC);

/// The guest sent more than it had credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// Both directions' counters.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// The guest's buffer size, as it last said.
    peer_buf_alloc: u32,
    /// What the guest's reader has taken, as the guest last said.
    peer_fwd_cnt: u32,
    /// Payload sent to the guest.
    sent: u32,
    /// Payload received from the guest.
    received: u32,
    /// Of it, what the host stream has taken.
    forwarded: u32,
    /// `forwarded` as we last told the guest.
    announced: u32,
}

impl Credit {
    /// Takes the credit fields of a packet from the guest.
    pub(super) fn peer_says(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = fwd_cnt;
    }

    /// Bytes we may send now. Zero, too, if the guest's numbers make no sense.
    pub(super) fn available(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// Counts payload sent to the guest.
    pub(super) fn count_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Counts payload received from the guest, if it had credit for it.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), Overrun> {
        let held = self.received.wrapping_sub(self.forwarded);
        if bytes > BUF_ALLOC.saturating_sub(held) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts payload the host stream took.
    pub(super) fn count_forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should hear that there is room again: it believes there is less than a
    /// full packet's, and there is more than it believes.
    pub(super) fn update_due(&self) -> bool {
        let believed = BUF_ALLOC.saturating_sub(self.received.wrapping_sub(self.announced));
        self.forwarded != self.announced && believed < AMPLE
    }

    /// The `(buf_alloc, fwd_cnt)` for a packet that is being sent.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (BUF_ALLOC, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_may_be_sent_before_the_guest_said_how_much() {
        assert_eq!(Credit::default().available(), 0);
    }

    #[test]
    fn senseless_numbers_of_the_guest_give_no_credit() {
        let mut credit = Credit::default();
        credit.peer_says(1000, 1); // Took more than we sent.
        assert_eq!(credit.available(), 0);
        credit.peer_says(1000, 0);
        credit.count_sent(600);
        credit.peer_says(100, 0); // Shrank its buffer below what is in flight.
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit {
            sent: u32::MAX - 5,
            received: u32::MAX,
            forwarded: u32::MAX,
            ..Credit::default()
        };
        credit.peer_says(100, u32::MAX - 5);
        credit.count_sent(50);
        assert_eq!(credit.available(), 50);
        credit.peer_says(100, 44);
        assert_eq!(credit.available(), 100);
        assert_eq!(credit.receive(BUF_ALLOC), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        credit.count_forwarded(BUF_ALLOC);
        assert_eq!(credit.receive(1), Ok(()));
    }

    proptest! {
        /// A sender that believes our announcements never overruns us, and is never left with less
        /// than a packet's credit once everything it sent has been forwarded.
        #[test]
        fn an_honest_guest_neither_overruns_nor_starves(steps in prop::collection::vec((1u32..70_000, 0u32..70_000), 1..200)) {
            let mut ours = Credit::default();
            let (mut sent, mut known) = (0u32, 0u32);
            for (want, forward) in steps {
                let free = BUF_ALLOC - sent.wrapping_sub(known);
                let send = want.min(free).min(AMPLE);
                prop_assert_eq!(ours.receive(send), Ok(()));
                sent = sent.wrapping_add(send);
                let held = ours.received.wrapping_sub(ours.forwarded);
                prop_assert!(held <= BUF_ALLOC);
                ours.count_forwarded(forward.min(held));
                if ours.update_due() {
                    known = ours.announce().1;
                }
                if ours.received == ours.forwarded {
                    prop_assert!(BUF_ALLOC - sent.wrapping_sub(known) >= AMPLE);
                }
            }
        }
    }
}
