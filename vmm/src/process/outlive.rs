//! A VM process that outlives its owner, as owners see it.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::client::{ANSWER, VmHandle, is_timeout};
use super::error::{Refused, VmError};
use super::keep::Token;
use super::message::{Greeting, Hello, Request, Welcome};
use super::owned::Process;
use super::wire::{Descriptors, receive, send};

/// How long a process may take to what its last owner asked for, before it takes a new one.
const MEET: Duration = Duration::from_secs(10);

impl VmHandle {
    /// Lets the process outlive its owner: it listens on `socket`, which is bound, for who knows the token, and holds
    /// the run directory's `lock`. One whose machine is armed does so from when its owner has heard that it woke; until
    /// then it ends with its owner.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn keep(
        &mut self,
        token: Token,
        socket: BorrowedFd<'_>,
        lock: BorrowedFd<'_>,
    ) -> Result<(), VmError> {
        self.done_with(&Request::Keep(token), &[socket, lock], ANSWER)
    }

    /// Gives a kept process what its next owner is to have, instead of what it was given before.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn hold(&mut self, descriptors: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        self.done_with(&Request::Hold, descriptors, ANSWER)
    }

    /// Lets go of a process, which lives on if it is kept.
    pub(crate) fn release(mut self) {
        self.process.release();
    }

    /// Becomes the owner of a process that outlived its last one. Its run directory's lock comes with it.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn adopt(
        process: Process,
        control: UnixStream,
        token: Token,
        console: &Path,
        vsock: &Path,
    ) -> Result<(Self, Welcome, Descriptors), Refused> {
        // Nothing happens to the process if this comes to nothing.
        let mut vm = Self {
            process,
            control,
            console: console.to_owned(),
            vsock: vsock.to_owned(),
        };
        match vm.meet(token) {
            Ok((welcome, came)) => Ok((vm, welcome, came)),
            Err(refused) => {
                vm.release();
                Err(refused)
            }
        }
    }

    fn meet(&mut self, token: Token) -> Result<(Welcome, Descriptors), Refused> {
        let talk = || {
            self.control.set_read_timeout(Some(MEET))?;
            send(&self.control, &Hello { token })?;
            receive::<Greeting>(&self.control)
        };
        match talk() {
            Ok(Some((Greeting::Welcome(welcome), came))) => Ok((welcome, came)),
            Ok(Some((Greeting::Owned, _))) => Err(Refused::Owned),
            Ok(Some((Greeting::WrongToken, _))) => Err(Refused::WrongToken),
            Ok(None) => Err(self.lost(io::ErrorKind::UnexpectedEof.into()).into()),
            Err(error) if is_timeout(&error) => Err(Refused::Busy(MEET)),
            Err(error) => Err(self.lost(error).into()),
        }
    }
}
