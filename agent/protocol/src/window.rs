//! How much standard input a host may send: the agent's side of the bargain is to have room for it.

use crate::STDIN_WINDOW_BYTES;

/// Bytes of standard input that the agent has room for: [`STDIN_WINDOW_BYTES`] at first, less by what is sent, more by
/// what [`Reply::StdinAck`](crate::Reply::StdinAck) says was taken.
#[derive(Debug)]
pub struct StdinWindow(usize);

impl Default for StdinWindow {
    fn default() -> Self {
        Self(STDIN_WINDOW_BYTES)
    }
}

impl StdinWindow {
    /// How many bytes may be sent now.
    pub fn room(&self) -> usize {
        self.0
    }

    /// So many bytes are sent. More than there is [room](Self::room) for leaves none.
    pub fn send(&mut self, count: usize) {
        self.0 = self.0.saturating_sub(count);
    }

    /// The agent says that so many bytes were taken. One that says more than it was sent has no more room for it.
    pub fn acknowledge(&mut self, count: u32) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.0 = self.0.saturating_add(count).min(STDIN_WINDOW_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_was_taken_and_never_for_more_than_the_window() {
        let mut window = StdinWindow::default();
        window.send(STDIN_WINDOW_BYTES - 1);
        assert_eq!(window.room(), 1);
        window.acknowledge(10);
        assert_eq!(window.room(), 11);
        window.acknowledge(u32::MAX);
        assert_eq!(window.room(), STDIN_WINDOW_BYTES);
        window.send(usize::MAX);
        assert_eq!(window.room(), 0);
    }
}
