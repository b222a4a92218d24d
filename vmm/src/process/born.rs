//! Taking hold of a fork of a VM process, which is not its owner's to have made.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::set_socket_passcred;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::client::{ANSWER, STREAM};
use super::error::VmError;
use super::message::{Reply, Request};
use super::owned::Process;
use super::wire::{receive, receive_from, send};

/// Takes hold of a process that was just forked, which says so on its control stream.
///
/// The number in its parent's answer would not do: a VM process that its guest has taken over could name any, and
/// the process behind it would be ended with the fork.
pub(super) fn born(control: &UnixStream, pid: i32) -> Result<Process, VmError> {
    control
        .set_read_timeout(Some(ANSWER))
        .map_err(VmError::host(STREAM))?;
    let sender = speaks(control, pid).map_err(VmError::Control)?;
    let held = pidfd_open(sender, PidfdFlags::empty()).map_err(VmError::host("a fork cannot be held"))?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if let Err(rustix::io::Errno::CHILD) = waitid(WaitId::PidFd(held.as_fd()), look) {
        // Its parent may have waited for it already, and its number be another's. It speaks, so it is not.
        let asked = send(control, &Request::Ping).and_then(|()| receive::<Reply>(control));
        let answered = asked.and_then(|answer| answer.ok_or(io::ErrorKind::UnexpectedEof.into()));
        answered.map_err(VmError::Control)?;
    }
    Ok(Process::of(sender, held))
}

/// Hears a fork's first word, and who it is.
fn speaks(control: &UnixStream, pid: i32) -> io::Result<Pid> {
    let (word, sender) = receive_from::<Reply>(control)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    set_socket_passcred(control, false)?;
    if !matches!(word, Reply::Born) || sender.as_raw_nonzero().get() != pid {
        return Err(io::Error::other(format!(
            "process {} says {word:?} where {pid} should say that it is there",
            sender.as_raw_nonzero()
        )));
    }
    Ok(sender)
}
