//! Outliving the owner: between two owners the machine runs on, and its process waits for the next one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::{Server, Vm, failure};
use crate::process::keep::Token;
use crate::process::message::{Failure, FailureKind, Greeting, Hello, Reply, Welcome};
use crate::process::wire::{Descriptors, receive, send, send_with};

/// How long a guest may take to its fork port when whoever wanted it there is gone.
const LATE: Duration = Duration::from_secs(1);
/// How long who connects may take to say what it wants. Only the machine's user can connect.
const HELLO: Duration = Duration::from_secs(2);
/// Who may wait to be heard.
const BACKLOG: i32 = 64;

/// What a process has that outlives its owner.
pub(super) struct Kept {
    pub(super) listener: UnixListener,
    token: Token,
    /// Of the run directory, which stays while this is open.
    lock: OwnedFd,
    /// What else the owner wants to have again, or at least to be open: its next one is given it.
    others: Vec<OwnedFd>,
    /// Whether it outlives its owner now. One that waits to be woken is nobody's sandbox yet.
    awake: bool,
}

impl Server {
    pub(super) fn keep(&mut self, token: Token, mut came: Descriptors) -> Result<Reply, Failure> {
        let host = |error: io::Error| failure(FailureKind::Host, error);
        let socket = came.next("the socket to listen on").map_err(host)?;
        let lock = came.next("the lock").map_err(host)?;
        // Here, so that who connects is told that it is this process it is connected to.
        rustix::net::listen(&socket, BACKLOG).map_err(|error| host(error.into()))?;
        self.kept = Some(Kept {
            listener: UnixListener::from(socket),
            token,
            lock,
            others: Vec::new(),
            awake: !matches!(&self.vm, Vm::Running(running) if running.is_parked()),
        });
        Ok(Reply::Done)
    }

    pub(super) fn hold(&mut self, came: Descriptors) -> Result<Reply, Failure> {
        let kept = self.kept.as_mut();
        let kept = kept.ok_or_else(|| failure(FailureKind::Conflict, "this process is not kept"))?;
        kept.others = came.rest();
        Ok(Reply::Done)
    }

    /// The owner has been told that the machine is awake and who it should be.
    pub(super) fn has_woken(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.awake = true;
        }
    }

    /// Whether the process outlives its owner as things are.
    pub(super) fn outlives_owner(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.awake)
    }

    /// The owner is gone. Says whether to go on.
    pub(super) fn owner_left(&mut self) -> bool {
        self.control = None;
        self.tell_end = false;
        if !self.outlives_owner() {
            return false;
        }
        tracing::info!("the owner is gone");
        self.leave_fork_port(LATE);
        true
    }

    /// Hears who has connected.
    pub(super) fn meet(&mut self) {
        let Some(kept) = &self.kept else { return };
        let met = kept.listener.accept().and_then(|(stream, _)| {
            stream.set_read_timeout(Some(HELLO))?;
            stream.set_write_timeout(Some(HELLO))?;
            let greeting = match (receive::<Hello>(&stream)?, &self.control) {
                (None, _) => return Ok(None),
                (Some(_), Some(_)) => Greeting::Owned,
                (Some((hello, _)), None) if hello.token.is(&kept.token) => Greeting::Welcome(self.welcome()),
                (Some(_), None) => Greeting::WrongToken,
            };
            let Greeting::Welcome(_) = greeting else {
                send(&stream, &greeting)?;
                return Ok(None);
            };
            let others = kept.others.iter().map(AsFd::as_fd);
            let descriptors: Vec<_> = [kept.lock.as_fd()].into_iter().chain(others).collect();
            send_with(&stream, &greeting, &descriptors)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            Ok(Some(stream))
        });
        match met {
            Ok(Some(stream)) => {
                tracing::info!("there is a new owner");
                self.control = Some(stream);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::info!(%error, "a connection for an owner");
                // Out of descriptors, maybe, and then the connection is there still.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn welcome(&self) -> Welcome {
        let (layers, own) = self.disk.as_ref().map(|disk| disk.layers()).unwrap_or_default();
        Welcome { layers, own }
    }

    /// In a forked child: nothing of this is its own.
    pub(super) fn forget_kept(&mut self) {
        self.kept = None;
    }
}
