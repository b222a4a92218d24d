//! The terminal we are on, and putting it back as it was: guards, so that every way out of a function does it.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use spore_types::TtySize;

/// A terminal that hands over each key as it is pressed, for as long as this lives.
#[derive(Debug)]
pub struct RawMode<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> RawMode<F> {
    /// Makes `terminal` raw.
    ///
    /// # Errors
    /// When it is none.
    pub fn enter(terminal: F) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl<F: AsFd> Drop for RawMode<F> {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// A screen of its own without a cursor (the alternate screen of xterm), for as long as this lives.
pub struct Screen<W: Write>(W);

impl<W: Write> Screen<W> {
    /// Begins one.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn enter(mut terminal: W) -> io::Result<Self> {
        terminal.write_all(b"\x1b[?1049h\x1b[?25l")?;
        Ok(Self(terminal))
    }

    /// Shows these lines and nothing else, without a flicker.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (at, line) in lines.iter().enumerate() {
            text.push_str(if at == 0 { "" } else { "\r\n" });
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        self.0.write_all(text.as_bytes())?;
        self.0.flush()
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = self.0.write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = self.0.flush();
    }
}

/// The size of a terminal; `None` for what is none, or does not say.
pub fn size(of: impl AsFd) -> Option<TtySize> {
    let size = tcgetwinsize(of).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(TtySize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// Whether this is a terminal.
pub fn is_one(what: impl AsFd) -> bool {
    isatty(what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    use super::*;

    fn terminal() -> (OwnedFd, File) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
        let side = File::options().read(true).write(true).open(name).unwrap();
        (main, side)
    }

    fn echoes(terminal: &File) -> bool {
        let modes = tcgetattr(terminal).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    #[test]
    fn a_terminal_is_put_back_when_the_guard_goes() {
        let (_main, side) = terminal();
        assert!(echoes(&side));
        let guard = RawMode::enter(&side).unwrap();
        let raw = tcgetattr(&side).unwrap().local_modes;
        assert!(!raw.intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
        drop(guard);
        assert!(echoes(&side));
    }

    #[test]
    fn a_terminal_is_put_back_after_an_error_and_a_panic() {
        let (_main, side) = terminal();
        let fails = || -> io::Result<()> {
            let _guard = RawMode::enter(&side)?;
            Err(io::ErrorKind::Other.into())
        };
        assert!(fails().is_err());
        assert!(echoes(&side));
        let panics = catch_unwind(AssertUnwindSafe(|| {
            let _guard = RawMode::enter(&side).unwrap();
            panic!("on purpose");
        }));
        assert!(panics.is_err());
        assert!(echoes(&side));
    }

    #[test]
    fn what_is_no_terminal_is_not_made_raw_and_has_no_size() {
        let file = tempfile::tempfile().unwrap();
        assert!(RawMode::enter(&file).is_err());
        assert_eq!(size(&file), None);
        assert!(!is_one(&file));
    }

    #[test]
    fn a_terminal_that_says_nothing_of_its_size_has_none() {
        let (main, side) = terminal();
        assert_eq!(size(&side), None);
        let told = Winsize {
            ws_row: 40,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&main, told).unwrap();
        assert_eq!(size(&side), Some(TtySize { rows: 40, cols: 100 }));
    }

    #[test]
    fn a_screen_is_left_as_it_was_entered() {
        let mut written = Vec::new();
        let mut screen = Screen::enter(&mut written).unwrap();
        screen.show(&["a".to_owned(), "b".to_owned()]).unwrap();
        drop(screen);
        let text = String::from_utf8(written).unwrap();
        assert_eq!(
            text,
            "\x1b[?1049h\x1b[?25l\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J\x1b[?25h\x1b[?1049l"
        );
    }
}
