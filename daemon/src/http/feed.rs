//! From a client to a command in a stream: input as fast as the command reads it, signals without waiting for that.
//!
//! What a client says reaches the command in its order, with one exception: while the command does not read its input,
//! signals and terminal sizes go past what waits. For that the agent is never sent more input than it has room for
//! ([`StdinWindow`]), and [`MAX_WAITING`] bytes are kept here. A client that sends more is not read from, its
//! signals neither, until the command has taken some.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use spore_protocol::{ClientError, ExecWriter, StdinWindow};
use spore_types::ExecControl;
use tokio::sync::Semaphore;

use crate::engine::exec::tty;

/// Bytes of input that wait here at most, and the most of a message: what is longer would never have room.
pub const MAX_WAITING: usize = 1 << 20;
/// Signals, sizes and ends that wait here at most.
const MAX_CONTROLS: usize = 64;

/// What a client wants of a command that runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    Input(Vec<u8>),
    Control(ExecControl),
}

impl Wish {
    /// Whether it may go past input that waits.
    fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::Control(ExecControl::Signal(_) | ExecControl::Resize(_))
        )
    }
}

/// What waits for one command.
#[derive(Debug)]
pub struct Feed {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    bytes: Semaphore,
    controls: Semaphore,
}

#[derive(Debug)]
struct Waiting {
    wishes: VecDeque<Wish>,
    window: StdinWindow,
    closed: bool,
}

impl Feed {
    pub fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                wishes: VecDeque::new(),
                window: StdinWindow::default(),
                closed: false,
            }),
            changed: Condvar::new(),
            bytes: Semaphore::new(MAX_WAITING),
            controls: Semaphore::new(MAX_CONTROLS),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a wish, when there is room for it. False: the command takes no more.
    pub async fn put(&self, wish: Wish) -> bool {
        let room = match &wish {
            Wish::Input(bytes) if bytes.is_empty() => return true,
            Wish::Input(bytes) => {
                let count = bytes.len().min(MAX_WAITING);
                self.bytes
                    .acquire_many(u32::try_from(count).unwrap_or(u32::MAX))
                    .await
            }
            Wish::Control(_) => self.controls.acquire().await,
        };
        let Ok(room) = room else { return false };
        // Given back when it is sent.
        room.forget();
        self.lock().wishes.push_back(wish);
        self.changed.notify_all();
        true
    }

    /// The agent has room for so many bytes more.
    pub fn acknowledge(&self, count: u32) {
        self.lock().window.acknowledge(count);
        self.changed.notify_all();
    }

    /// The command takes no more: whoever puts or sends is told.
    pub fn close(&self) {
        self.lock().closed = true;
        self.bytes.close();
        self.controls.close();
        self.changed.notify_all();
    }

    /// Sends the command what comes, until it takes no more. In a thread that may block.
    pub fn send_all(&self, stream: impl Write) {
        let mut writer = ExecWriter::new(stream);
        while let Some(wish) = self.next() {
            if send(&mut writer, &wish).is_err() {
                // It has ended: what is still to come is for nobody.
                self.close();
            }
        }
    }

    /// Waits for what can be sent now.
    fn next(&self) -> Option<Wish> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(wish) = waiting.take() {
                match &wish {
                    Wish::Input(bytes) => self.bytes.add_permits(bytes.len()),
                    Wish::Control(_) => self.controls.add_permits(1),
                }
                return Some(wish);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Wish> {
        let room = self.window.room();
        match self.wishes.front_mut()? {
            Wish::Input(_) if room == 0 => {
                let at = self.wishes.iter().position(Wish::is_urgent)?;
                self.wishes.remove(at)
            }
            Wish::Input(bytes) if bytes.len() > room => {
                let rest = bytes.split_off(room);
                self.window.send(room);
                Some(Wish::Input(std::mem::replace(bytes, rest)))
            }
            Wish::Input(bytes) => {
                self.window.send(bytes.len());
                self.wishes.pop_front()
            }
            Wish::Control(_) => self.wishes.pop_front(),
        }
    }
}

fn send(writer: &mut ExecWriter<impl Write>, wish: &Wish) -> Result<(), ClientError> {
    match wish {
        Wish::Input(bytes) => writer.stdin(bytes),
        Wish::Control(ExecControl::StdinEnd) => writer.stdin_eof(),
        Wish::Control(ExecControl::Signal(signal)) => writer.signal(signal.signal),
        Wish::Control(ExecControl::Resize(size)) => writer.resize(tty(*size)),
    }
}

#[cfg(test)]
mod tests {
    use spore_protocol::STDIN_WINDOW_BYTES;
    use spore_types::ExecSignal;

    use super::*;

    const SIGNAL: Wish = Wish::Control(ExecControl::Signal(ExecSignal { signal: 15 }));
    const END: Wish = Wish::Control(ExecControl::StdinEnd);

    fn input(count: usize) -> Wish {
        Wish::Input(vec![b'x'; count])
    }

    fn put(feed: &Feed, wish: Wish) -> Option<bool> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(feed.put(wish)).poll(&mut context) {
            std::task::Poll::Ready(taken) => Some(taken),
            std::task::Poll::Pending => None,
        }
    }

    fn takes(feed: &Feed) -> Option<Wish> {
        feed.lock().take()
    }

    #[test]
    fn everything_is_in_order_while_the_command_reads() {
        let feed = Feed::new();
        for wish in [input(3), SIGNAL, input(2), END] {
            assert_eq!(put(&feed, wish), Some(true));
        }
        for wish in [input(3), SIGNAL, input(2), END] {
            assert_eq!(feed.next(), Some(wish));
        }
    }

    #[test]
    fn a_signal_goes_past_input_that_the_command_does_not_read_and_the_end_of_input_does_not() {
        let feed = Feed::new();
        assert_eq!(put(&feed, input(STDIN_WINDOW_BYTES + 7)), Some(true));
        assert_eq!(put(&feed, END), Some(true));
        assert_eq!(put(&feed, SIGNAL), Some(true));
        assert_eq!(takes(&feed), Some(input(STDIN_WINDOW_BYTES)));
        assert_eq!(takes(&feed), Some(SIGNAL));
        assert_eq!(takes(&feed), None);
        feed.acknowledge(5);
        assert_eq!(takes(&feed), Some(input(5)));
        assert_eq!(takes(&feed), None);
        feed.acknowledge(u32::MAX);
        assert_eq!(takes(&feed), Some(input(2)));
        assert_eq!(takes(&feed), Some(END));
    }

    #[test]
    fn what_waits_is_bounded_and_there_is_room_again_when_it_was_sent() {
        let feed = Feed::new();
        assert_eq!(put(&feed, input(MAX_WAITING)), Some(true));
        assert_eq!(put(&feed, input(1)), None, "there is no room");
        assert_eq!(put(&feed, SIGNAL), Some(true), "for a signal there is");
        assert_eq!(feed.next(), Some(input(STDIN_WINDOW_BYTES)));
        assert_eq!(put(&feed, input(1)), Some(true));
        for _ in 1..MAX_CONTROLS {
            assert_eq!(put(&feed, SIGNAL), Some(true));
        }
        assert_eq!(put(&feed, SIGNAL), None);
        assert_eq!(feed.next(), Some(SIGNAL));
        assert_eq!(put(&feed, SIGNAL), Some(true));
        assert_eq!(put(&feed, input(0)), Some(true), "nothing needs no room");
    }

    #[test]
    fn when_the_command_takes_no_more_both_sides_are_told() {
        let feed = Feed::new();
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| feed.send_all(std::io::sink()));
            assert_eq!(put(&feed, input(1)), Some(true));
            feed.close();
            sending.join().unwrap();
        });
        assert_eq!(put(&feed, input(1)), Some(false));
        assert_eq!(put(&feed, SIGNAL), Some(false));
    }
}
