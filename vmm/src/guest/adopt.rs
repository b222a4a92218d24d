//! Guests that outlive their owner.
//!
//! A guest that is [kept](Guest::keep) runs on when its owner ends, in whatever way, and the next owner
//! [adopts](Guest::adopt) it. In between, its process holds the lock of its run directory, so that nobody sweeps it;
//! once the process is gone too, the next sweep does. Whoever wants to hear of a guest that ended meanwhile adopts
//! before it opens the store, since opening sweeps: [`Store::attach`] does not.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};
use spore_snapshot::RunId;
use spore_snapshot::store::{RunDir, Store, StoreError};

use super::launch::{console_of, vsock_of};
use super::{Guest, GuestError};
use crate::console;
use crate::disk::overlay_number;
use crate::process::keep::{self, Record, RecordError, Token};
use crate::process::{CONSOLE_LINES, Process, Refused, VmError, VmHandle, Welcome, serial};

/// How long the kernel may take to take a VM process apart.
const END: Duration = Duration::from_secs(10);
/// How long it may take to close the files of one that has ended.
const CLOSED: Duration = Duration::from_secs(2);

/// Why a guest could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// There is no such guest, or it was not kept. A sweep may have removed what was left of it.
    #[error("there is no guest {id} to adopt")]
    NotThere {
        /// Which.
        id: RunId,
    },
    /// Its process ended while nobody owned it. What was left of it is removed.
    #[error("guest {id} ended while nobody owned it: {why}{}", serial(.console))]
    Ended {
        /// Which.
        id: RunId,
        /// What is known of the cause.
        why: String,
        /// The last lines of its console.
        console: String,
    },
    /// The record of it is damaged, of another version, or of another process.
    #[error("guest {id} cannot be adopted: {source}")]
    Record {
        /// Which.
        id: RunId,
        /// What is wrong.
        source: RecordError,
        /// Whether its process was gone as well, and what was left of it is removed. If not, see [`discard`].
        swept: bool,
    },
    /// The process that runs it does not take the token of the record.
    #[error("guest {id} cannot be adopted: the token in its record is not the one it knows")]
    WrongToken {
        /// Which.
        id: RunId,
    },
    /// Somebody owns it.
    #[error("guest {id} has an owner")]
    Owned {
        /// Which.
        id: RunId,
    },
    /// It is still about what its last owner asked for. It can be tried again.
    #[error(
        "guest {id} did not answer within {limit:?}: it may be about what its last owner asked for; try again"
    )]
    Busy {
        /// Which.
        id: RunId,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It took a new owner and could not be driven then. It ended with that.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AdoptError {
    /// Whether there is nothing left to be adopted, now or later.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::NotThere { .. } | Self::Ended { .. } | Self::Guest(_) => true,
            Self::Record { swept, .. } => *swept,
            Self::WrongToken { .. } | Self::Owned { .. } | Self::Busy { .. } | Self::Store(_) => false,
        }
    }
}

/// The guests that were kept and have a run directory, whether they live or not: [`Guest::adopt`] tells. Those that
/// somebody owns are among them.
///
/// # Errors
/// When the store cannot be read.
pub fn adoptable(store: &Store) -> Result<Vec<RunId>, StoreError> {
    let mut ids = RunDir::all(store)?;
    ids.retain(|id| Record::is_in(&RunDir::place(store, id)));
    Ok(ids)
}

/// Ends a kept guest that cannot be adopted, and removes what it had: the process that listens for owners in its run
/// directory, if there is one. Says whether nothing is left; something is when somebody owns it.
///
/// # Errors
/// When the process cannot be taken hold of, or the store cannot be read.
pub fn discard(store: &Store, id: &RunId) -> Result<bool, AdoptError> {
    let dir = RunDir::place(store, id);
    let host = |source| GuestError::Host {
        what: dir.clone(),
        source,
    };
    if let Some((_, held)) = keep::listener_in(&dir).map_err(host)? {
        let _ = pidfd_send_signal(&held, Signal::KILL);
        let mut fds = [rustix::event::PollFd::new(&held, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: END.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&limit)).map_err(|error| host(error.into()))?;
    }
    Ok(sweep_soon(store, id)? || !dir.exists())
}

impl Guest {
    /// From now on the guest outlives this process: it runs on when that ends, however it does, and can be
    /// [adopted](Guest::adopt) by another. Dropping it still ends it; [`Guest::release`] does not.
    ///
    /// Forks of it are not kept with it. Its network is its owner's business: see [`Guest::keep_with`].
    ///
    /// # Errors
    /// [`GuestError`]; it ends with its owner then, as before.
    pub fn keep(&mut self) -> Result<(), GuestError> {
        if self.kept {
            return Ok(());
        }
        let dir = self.run.path().to_owned();
        let host = |source| GuestError::Host {
            what: dir.clone(),
            source,
        };
        let token = Token::new();
        let kept = keep::bind(&dir).map_err(host).and_then(|socket| {
            // Written first: a process that outlived us without it would be nobody's for ever.
            Record::of(self.pid(), token.clone())
                .and_then(|record| record.write(&dir))
                .map_err(host)?;
            Ok(self.vm.keep(token, socket.as_fd(), self.run.lock())?)
        });
        match kept {
            Ok(()) => self.kept = true,
            Err(_) => Record::remove(&dir),
        }
        kept
    }

    /// As [`Guest::keep`], and the process holds these descriptors, at most four, until the next owner asks for them with
    /// [`Guest::take_descriptors`]: a lock that is to stay, for example.
    ///
    /// # Errors
    /// As there.
    pub fn keep_with(&mut self, others: &[BorrowedFd<'_>]) -> Result<(), GuestError> {
        self.keep()?;
        match others {
            [] => Ok(()),
            others => Ok(self.vm.hold(others)?),
        }
    }

    /// The descriptors that the last owner kept it with, once, for a guest that was adopted.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.left)
    }

    /// Whether it outlives this process.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Lets go of a guest without ending it, for the next owner to adopt. One that was not kept ends all the same.
    ///
    /// If it is our child and ends before we do, it stays a zombie for that long.
    pub fn release(self) {
        if self.kept {
            self.vm.release();
            self.run.release();
        }
    }

    /// Takes over a kept guest whose owner is gone. It ran on all the while; what was under way when its owner ended
    /// is done or undone, and nothing is left of connections to its agent.
    ///
    /// Its process is usually not our child, so how it ends will not be known. Its [times](Guest::times) are not known
    /// either.
    ///
    /// # Errors
    /// [`AdoptError`]. A guest that ended meanwhile is an error too, and its directory is removed. One that lives is
    /// left as it is.
    pub fn adopt(store: &Store, id: &RunId) -> Result<Self, AdoptError> {
        let dir = RunDir::place(store, id);
        let not_there = || AdoptError::NotThere { id: id.clone() };
        let record = match Record::read(&dir) {
            Err(RecordError::NotThere) => return Err(not_there()),
            record => record,
        };
        // Looked at first: if it is dead it is swept below.
        let console = console::tail(&console_of(&dir), CONSOLE_LINES);
        if RunDir::is_dead(store, id)? {
            RunDir::sweep(store, id)?;
            return Err(match record {
                Ok(_) => ended(id, "its process is gone", console),
                Err(RecordError::Rebooted) => ended(id, "the host was booted since", console),
                Err(source) => AdoptError::Record {
                    id: id.clone(),
                    source,
                    swept: true,
                },
            });
        }
        let not_it = |source| AdoptError::Record {
            id: id.clone(),
            source,
            swept: false,
        };
        let record = record.map_err(not_it)?;
        let (pid, held, stream) = match record.connect(&dir) {
            Ok(connected) => connected,
            Err(RecordError::Gone) if sweep_soon(store, id)? => {
                return Err(ended(id, "its process is gone", console));
            }
            Err(RecordError::Busy) => {
                return Err(AdoptError::Busy {
                    id: id.clone(),
                    limit: Duration::ZERO,
                });
            }
            Err(source) => return Err(not_it(source)),
        };
        let adopted = VmHandle::adopt(
            Process::of(pid, held),
            stream,
            record.token,
            &console_of(&dir),
            &vsock_of(&dir),
        );
        let (vm, welcome, mut came) = adopted.map_err(|refused| match refused {
            Refused::Owned => AdoptError::Owned { id: id.clone() },
            Refused::WrongToken => AdoptError::WrongToken { id: id.clone() },
            Refused::Busy(limit) => AdoptError::Busy {
                id: id.clone(),
                limit,
            },
            Refused::Vm(VmError::Gone { status, .. }) => {
                let _ = sweep_soon(store, id);
                ended(id, &status, console)
            }
            Refused::Vm(error) => AdoptError::Guest(error.into()),
        })?;
        let lock = came
            .next("the lock")
            .map_err(|error| GuestError::from(VmError::Control(error)))?;
        let run = RunDir::take_over(store, id, lock)?;
        let mut guest = Self::of_adopted(store, run, vm, &welcome)?;
        guest.left = came.rest();
        Ok(guest)
    }

    fn of_adopted(store: &Store, run: RunDir, vm: VmHandle, welcome: &Welcome) -> Result<Self, GuestError> {
        let pinned = run.pins()?;
        let numbers = std::fs::read_dir(run.path()).map_err(|source| GuestError::Host {
            what: run.path().to_owned(),
            source,
        })?;
        let numbers: Vec<(u32, bool)> = numbers
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((overlay_number(&entry.path())?, entry.metadata().ok()?.len() > 0))
            })
            .collect();
        let overlays = numbers.iter().map(|(number, _)| *number).max().unwrap_or(0);
        // One that was made and not used has no length.
        let used = numbers.iter().filter(|(_, used)| *used);
        let in_use = used.map(|(number, _)| *number).max().unwrap_or(0);
        // What the last owner did not come to put into the store.
        let missing = welcome.layers.saturating_sub(pinned.len());
        let mut guest = Self::with(run, vm, pinned)?;
        (guest.kept, guest.overlays, guest.overlay_in_use) = (true, overlays, in_use);
        guest.trace.mark("adopted");
        guest.vm.seal_frozen()?;
        let first = welcome.own.len().checked_sub(missing);
        let own = first.and_then(|first| welcome.own.get(first..)).ok_or_else(|| {
            VmError::Control(std::io::Error::other(
                "the process has more layers than it says where they are from",
            ))
        })?;
        let sealed = own.iter().map(|number| guest.overlay(*number)).map(|path| {
            // Its name until the last owner had written down what it is called in the store.
            let in_between = path.with_extension("in");
            if path.exists() { path } else { in_between }
        });
        let sealed: Vec<PathBuf> = sealed.collect();
        guest.take_in_files(store, sealed)?;
        Ok(guest)
    }
}

/// Removes what is left of a guest whose process has ended: the kernel may still be about closing its files.
fn sweep_soon(store: &Store, id: &RunId) -> Result<bool, StoreError> {
    let deadline = Instant::now() + CLOSED;
    loop {
        if RunDir::sweep(store, id)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ended(id: &RunId, why: &str, console: String) -> AdoptError {
    AdoptError::Ended {
        id: id.clone(),
        why: why.to_owned(),
        console,
    }
}
