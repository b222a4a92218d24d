//! Our standard streams and signals beside a command in a sandbox.

use std::io::{self, ErrorKind, Read, Write};

use spore_types::{ExecControl, ExecResult};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::run::NO_READER;
use crate::client::ClientError;
use crate::client::exec::{Stream, Wish};

/// Standard input read at a time, in bytes.
const PIECE: usize = 32 * 1024;
/// Pieces on their way.
const PIECES: usize = 8;

/// How a command came to its end.
pub enum End {
    /// By itself, or at its time limit.
    Exited(ExecResult),
    /// Whoever read our output has gone.
    NoReader,
    /// We are to end, and the command with us.
    Told(SignalKind),
}

impl End {
    /// From what the client says of it.
    ///
    /// # Errors
    /// When it was not seen to its end.
    pub fn of(result: Result<ExecResult, ClientError>) -> Result<Self, ClientError> {
        match result {
            Ok(result) => Ok(Self::Exited(result)),
            Err(ClientError::Local(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Self::NoReader),
            Err(error) => Err(error),
        }
    }

    /// Our exit code for it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(result) => result.exit_code,
            Self::NoReader => NO_READER,
            Self::Told(signal) => u8::try_from(128 + signal.as_raw_value()).unwrap_or(u8::MAX),
        }
    }
}

/// A command's output, on our own.
pub fn output(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    let mut out: Box<dyn Write> = match stream {
        Stream::Stdout => Box::new(io::stdout().lock()),
        Stream::Stderr => Box::new(io::stderr().lock()),
    };
    out.write_all(bytes)?;
    out.flush()
}

/// A command's input: ours, or none; and the way to say more to it.
pub fn input(ours: bool) -> (mpsc::Sender<Wish>, mpsc::Receiver<Wish>) {
    let (wishes, wished) = mpsc::channel(PIECES);
    if ours {
        let wishes = wishes.clone();
        // A thread of its own, which nobody waits for: a read of a terminal ends when somebody presses a key.
        std::thread::spawn(move || feed(io::stdin(), &wishes));
    } else {
        // There is room in an empty channel.
        let _ = wishes.try_send(Wish::Control(ExecControl::StdinEnd));
    }
    (wishes, wished)
}

/// Hands over all of an input, and its end.
fn feed(mut input: impl Read, wishes: &mpsc::Sender<Wish>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let wish = match input.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => Wish::Control(ExecControl::StdinEnd),
            Ok(count) => Wish::Input(buffer[..count].to_vec()),
        };
        let last = wish == Wish::Control(ExecControl::StdinEnd);
        if wishes.blocking_send(wish).is_err() || last {
            return;
        }
    }
}

/// The signals that mean something to a command.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    window: Signal,
}

impl Signals {
    /// Takes them from now on, instead of ending by them.
    ///
    /// # Errors
    /// When they cannot be taken.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next that comes.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.window.recv() => SignalKind::window_change(),
        }
    }

    /// The next that tells us to end.
    pub async fn told(&mut self) -> SignalKind {
        loop {
            let came = self.next().await;
            if came != SignalKind::window_change() {
                return came;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_handed_over_with_its_end() {
        let (give, mut wishes) = mpsc::channel(PIECES);
        let text = vec![b'x'; PIECE + 1];
        feed(&text[..], &give);
        assert_eq!(wishes.try_recv(), Ok(Wish::Input(vec![b'x'; PIECE])));
        assert_eq!(wishes.try_recv(), Ok(Wish::Input(b"x".to_vec())));
        assert_eq!(wishes.try_recv(), Ok(Wish::Control(ExecControl::StdinEnd)));
        drop(give);
        assert!(wishes.try_recv().is_err());
    }

    #[test]
    fn an_input_nobody_wants_is_read_no_further() {
        let (give, wishes) = mpsc::channel(1);
        drop(wishes);
        feed(io::repeat(b'x'), &give);
    }
}
