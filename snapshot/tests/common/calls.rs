//! Work whose durable steps are watched: before each call that makes something durable or moves it, somebody is asked.

use std::path::PathBuf;

use rustix::io::Errno;

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sync,
    /// Gives something a name, or another.
    Name,
    Remove,
}

const CALLS: [(i64, Kind); 10] = [
    (libc::SYS_fsync, Kind::Sync),
    (libc::SYS_fdatasync, Kind::Sync),
    (libc::SYS_rename, Kind::Name),
    (libc::SYS_renameat, Kind::Name),
    (libc::SYS_renameat2, Kind::Name),
    (libc::SYS_link, Kind::Name),
    (libc::SYS_linkat, Kind::Name),
    (libc::SYS_unlink, Kind::Remove),
    (libc::SYS_unlinkat, Kind::Remove),
    (libc::SYS_rmdir, Kind::Remove),
];

/// A call that is about to be made.
#[derive(Debug)]
pub struct Call {
    pub kind: Kind,
    /// What is synced.
    pub path: Option<PathBuf>,
}

/// Does `work` in a thread of its own. Each call is made when `judge` says `Ok`, and fails with its error else.
pub fn watched<T: Send>(
    work: impl FnOnce() -> T + Send,
    mut judge: impl FnMut(&Call) -> Result<(), Errno>,
) -> T {
    spore_calls::watched(&CALLS.map(|(number, _)| number), work, |asked| {
        let (_, kind) = CALLS.into_iter().find(|(call, _)| *call == asked.number).unwrap();
        // The thread is of this process, and waits.
        let synced = || std::fs::read_link(format!("/proc/self/fd/{}", asked.arguments[0])).unwrap();
        judge(&Call {
            kind,
            path: (kind == Kind::Sync).then(synced),
        })
    })
}
