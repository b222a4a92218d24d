//! The terminal of a command: a pair of descriptors of which the command has one, as its controlling
//! terminal, and we the other, the master.
//!
//! Between the two is the kernel's line discipline (n_tty): it echoes, edits lines, makes signals of
//! characters, and says at the master that input is at its end (`EIO`) when nobody has the terminal
//! open any more, after all that was written to it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, SpecialCodeIndex, Winsize};
use rustix::termios::{tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};
use spore_protocol::{Failure, FailureKind, TtySize};

use super::user::User;

/// More than a terminal holds of what was written to it: a little over 8 KiB on the way (`pty_common_install`)
/// and 4 KiB that have arrived (`N_TTY_BUF_SIZE`); written byte by byte it comes to 20 KiB.
pub const MOST_HELD_BYTES: usize = 64 * 1024;

/// What ends a terminal's input unless it was told another character.
const CONTROL_D: u8 = 4;

/// Our end.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
}

impl Terminal {
    /// A new one of this size, and the command's end, which belongs to `user`.
    pub fn open(size: TtySize, user: Option<&User>) -> Result<(Self, OwnedFd), Failure> {
        let failed = |error: Errno| {
            // An errno of a device that is missing, or of too many, says something else about files.
            let kind = match error {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => FailureKind::Unsupported,
                _ => FailureKind::Io,
            };
            let error = io::Error::from(error);
            Failure::new(kind, format!("terminal for the command: {error}"))
        };
        Self::try_open(size, user).map_err(failed)
    }

    fn try_open(size: TtySize, user: Option<&User>) -> Result<(Self, OwnedFd), Errno> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        // Not by name, which would depend on what is mounted where.
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let terminal = Self { master };
        terminal.resize(size)?;
        // Rubbing out takes a whole character of UTF-8.
        let mut modes = tcgetattr(&slave)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        if let Some(user) = user {
            rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(user.uid)), None)?;
        }
        // Only our end: the command must find an ordinary terminal.
        rustix::io::ioctl_fionbio(&terminal.master, true)?;
        Ok((terminal, slave))
    }

    /// Another descriptor of our end.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.master, 3)?)
    }

    /// Changes its size; the processes in its foreground get SIGWINCH.
    pub fn resize(&self, size: TtySize) -> Result<(), Errno> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size)
    }

    /// The character that ends its input, as it is now.
    pub fn end_of_file(&self) -> u8 {
        match tcgetattr(&self.master).map(|modes| modes.special_codes[SpecialCodeIndex::VEOF]) {
            // 0: there is none (_POSIX_VDISABLE).
            Err(_) | Ok(0) => CONTROL_D,
            Ok(character) => character,
        }
    }

    /// Sends a signal to the process group in its foreground; false if there is none.
    pub fn signal_foreground(&self, signal: i32) -> bool {
        let Ok(group) = tcgetpgrp(&self.master) else {
            return false;
        };
        let group = group.as_raw_pid();
        // SAFETY: kill takes integers. A terminal's foreground is a process group of the session it controls, so
        // neither ours nor, as a group above 1, everybody.
        group > 1 && unsafe { libc::kill(-group, signal) } == 0
    }
}

/// Whether a descriptor has nothing to read now.
pub fn is_empty(descriptor: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&now)), Ok(0))
}
