//! The messages, in the order of their numbers on the wire. Only append to an enum, or raise
//! [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize, Serializer};

use crate::network::Network;

/// What the host sends: something to do, or more of what is being done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostFrame<'a> {
    /// Something to do; the last one must be finished.
    Request(Request),
    /// Bytes for the standard input of the running [`Request::Exec`].
    Stdin(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    /// No more standard input will come. To a terminal this is its end-of-file character (`^D`), twice if the line has
    /// begun: the first only hands over what there is of it.
    StdinEof,
    /// Sends this signal number to the process group of the running [`Request::Exec`]; if it has a terminal, to the
    /// group in the foreground there.
    Signal(i32),
    /// Bytes of the running [`Request::WriteFile`].
    Data(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    /// The running [`Request::WriteFile`] is complete.
    End,
    /// The terminal of the running [`Request::Exec`] has another size now. Ignored if it has no terminal, and if there
    /// are no terminals of that size.
    Resize(TtySize),
}

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Are you there? Answered with [`Reply::Pong`], without touching a file.
    Ping,
    /// How are you? Answered with [`Reply::Status`].
    Status,
    /// How much memory do you have? Answered with [`Reply::Memory`].
    Memory {
        /// Also count the memory blocks: a few system calls each, so not for tight polling.
        count_blocks: bool,
    },
    /// Run a command. Answered with [`Reply::Stdout`], [`Reply::Stderr`] and [`Reply::StdinAck`]
    /// in any number and at last [`Reply::Exited`], or with [`Reply::Failed`] if it was not even
    /// tried. The host may send [`HostFrame::Stdin`], [`HostFrame::StdinEof`] and
    /// [`HostFrame::Signal`] meanwhile, and [`HostFrame::Resize`]; what comes after the process has ended is ignored.
    Exec(ExecRequest),
    /// Send a regular file. Answered with [`Reply::File`], [`Reply::Data`] in any number and
    /// [`Reply::End`].
    ReadFile {
        /// Absolute path; symbolic links are followed.
        path: String,
    },
    /// Write a file: all of it or nothing, by rename. Followed by [`HostFrame::Data`] in any
    /// number and [`HostFrame::End`]; answered after that with [`Reply::Done`].
    WriteFile {
        /// Absolute path; missing parents are created (0755), symbolic links are followed.
        path: String,
        /// Permission bits; absent: those of the file that is replaced, or 0644.
        mode: Option<u32>,
    },
    /// List a directory. Answered with [`Reply::Entries`] in any number and [`Reply::End`].
    ListDir {
        /// Absolute path.
        path: String,
    },
    /// Make a directory and its missing parents; one that exists is success.
    MakeDir {
        /// Absolute path.
        path: String,
        /// Permission bits of the last directory, if it is made here; absent: 0755.
        mode: Option<u32>,
    },
    /// Remove a file, a symbolic link or a directory.
    Remove {
        /// Absolute path; a symbolic link at its end is removed, not followed.
        path: String,
        /// Remove a directory with all it holds; without this it must be empty.
        recursive: bool,
    },
    /// Ask for the defaults of every exec. Answered with [`Reply::Defaults`].
    GetDefaults,
    /// Replace the defaults of every exec, on disk too.
    SetDefaults(ExecDefaults),
    /// Write everything dirty to the disks, and tell them which blocks are free.
    Sync,
    /// Make the guest small and still before a checkpoint: sync, trim, drop caches, compact memory.
    Settle,
    /// Power off in order. Answered with [`Reply::Done`] before it begins.
    Poweroff,
    /// Reboot in order. Answered with [`Reply::Done`] before it begins.
    Reboot,
    /// Is PID 1 this agent, and is it the one on the disk? Answered with [`Reply::Integrity`].
    Integrity,
    /// Go to the [fork port](crate::fork_port) to be checkpointed. Answered with [`Reply::Done`]
    /// before it goes; the connection is of no use after that.
    Sleep,
    /// Be this on your network, or nobody: the interface is taken down. Connections over it end.
    Network(Option<Network>),
    /// The disk below the root file system has, or will have in a moment, this many bytes: see that the kernel knows,
    /// and let the file system fill it, while it is in use. Answered with [`Reply::Disk`]; growing to what it is
    /// already only looks.
    GrowDisk {
        /// Size of the disk.
        bytes: u64,
    },
    /// What is there? Answered with [`Reply::Stat`].
    Stat {
        /// Absolute path; a symbolic link at its end is not followed.
        path: String,
    },
    /// Give up what is kept in memory only because it was read or written once: sync, drop caches. What is in use stays
    /// where it is, and so shared with other forks.
    DropCaches,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply<'a> {
    /// To [`Request::Ping`].
    Pong(Pong),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Memory`].
    Memory(MemoryReport),
    /// Bytes the process wrote to its standard output.
    Stdout(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    /// Bytes the process wrote to its standard error.
    Stderr(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    /// This many more bytes of standard input went to the process, or were thrown away because it
    /// closed its end.
    StdinAck(u32),
    /// The process ended and all of its output was sent.
    Exited(ExecOutcome),
    /// To [`Request::ReadFile`]: what follows.
    File(FileInfo),
    /// Bytes of a file.
    Data(#[serde(serialize_with = "as_bytes")] &'a [u8]),
    /// Entries of a directory, in no order.
    Entries(Vec<DirEntry>),
    /// The file or directory is complete.
    End,
    /// To [`Request::GetDefaults`].
    Defaults(ExecDefaults),
    /// To [`Request::Integrity`].
    Integrity(Integrity),
    /// It was done.
    Done,
    /// It was not done; the connection can be used on.
    Failed(Failure),
    /// To [`Request::GrowDisk`].
    Disk(DiskReport),
    /// To [`Request::Stat`].
    Stat(FileStat),
}

fn as_bytes<S: Serializer>(bytes: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// The cheapest sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Drawn once when the agent started and kept only in memory: a fork has its parent's, a
    /// boot has a new one.
    pub boot_nonce: [u8; 16],
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// How the guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Drawn once when the agent started and kept only in memory: a fork has its parent's, a
    /// boot has a new one.
    pub boot_nonce: [u8; 16],
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub uptime_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// MemTotal of `/proc/meminfo`.
    pub mem_total_bytes: u64,
    /// MemAvailable of `/proc/meminfo`.
    pub mem_available_bytes: u64,
    /// The memory blocks, where the kernel has them.
    pub blocks: Option<MemoryBlocks>,
    /// `oom_kill` of `/proc/vmstat`: processes killed for want of memory since boot.
    pub oom_kills: u64,
    /// The agent's process number; 1 in our bases.
    pub agent_pid: u32,
    /// Version and build of the agent.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel_release: String,
}

/// How much memory the guest has; one system call unless the blocks are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// MemTotal.
    pub total_bytes: u64,
    /// MemFree (not MemAvailable: that takes a walk through `/proc/meminfo`).
    pub free_bytes: u64,
    /// The memory blocks, if asked for and where the kernel has them.
    pub blocks: Option<MemoryBlocks>,
}

/// How large the root disk and the file system on it are, in the guest's own eyes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The disk, as the kernel knows it.
    pub disk_bytes: u64,
    /// What the file system can hold (statfs): less than the disk by its own tables.
    pub total_bytes: u64,
    /// What of that is free.
    pub free_bytes: u64,
}

/// `/sys/devices/system/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBlocks {
    /// Blocks whose state is `online`.
    pub online: u32,
    /// All blocks.
    pub present: u32,
    /// The size of each.
    pub block_bytes: u64,
}

/// A command to run.
///
/// It runs in a session and process group of its own. Its environment is the agent's built-in
/// one (`PATH`, and the user's `HOME`), then the [`ExecDefaults`], then `env`, later ones first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The command and its arguments; a command without a slash is looked up in `PATH`. Empty: the image's own
    /// ([`ExecDefaults::command`]).
    pub argv: Vec<String>,
    /// Variables to set over the defaults.
    pub env: BTreeMap<String, String>,
    /// Absolute path of the working directory; absent: the default one.
    pub cwd: Option<String>,
    /// As whom: `user`, `uid`, `user:group`, `uid:gid`, by the guest's `/etc/passwd` and `/etc/group`; absent: the
    /// default one.
    pub user: Option<String>,
    /// Where its standard input comes from.
    pub stdin: StdinMode,
    /// Kill it after this many milliseconds.
    pub time_limit_ms: Option<u64>,
    /// Give it a terminal of this size, which controls its session and is all three of its standard streams. What
    /// is written to it comes as [`Reply::Stdout`]; `TERM` is `xterm-256color` unless somebody says another.
    /// With [`StdinMode::None`] nobody types there.
    pub tty: Option<TtySize>,
}

impl ExecRequest {
    /// A command with everything else at its default.
    pub fn new<I: IntoIterator<Item = S>, S: Into<String>>(argv: I) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Lines, 1 to [`MAX`](Self::MAX).
    pub rows: u16,
    /// Characters a line, 1 to [`MAX`](Self::MAX).
    pub cols: u16,
}

impl TtySize {
    /// The most there can be of either.
    pub const MAX: u16 = 4096;

    /// Whether there are terminals of this size.
    ///
    /// # Errors
    /// [`FailureKind::InvalidArgument`] if not.
    pub fn check(self) -> Result<(), Failure> {
        let Self { rows, cols } = self;
        match [rows, cols].iter().all(|count| (1..=Self::MAX).contains(count)) {
            true => Ok(()),
            false => Err(Failure::new(
                FailureKind::InvalidArgument,
                format!(
                    "a terminal of {rows} rows and {cols} columns; 1 to {} of each can be had",
                    Self::MAX
                ),
            )),
        }
    }
}

/// Where a process's standard input comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    None,
    /// [`HostFrame::Stdin`] until [`HostFrame::StdinEof`].
    Piped,
}

/// How a command ended and what it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Processes killed for want of memory, anywhere in the guest, while it ran.
    pub oom_kills: u64,
    /// The largest resident set of the process or a child it waited for. Never less than the
    /// agent's own, whose memory it starts in (`vfork`).
    pub max_rss_bytes: u64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code: 127 if it does not exist, 126 if it cannot be executed.
    Code(u8),
    /// This signal killed it.
    Signal(i32),
    /// It was still running at its time limit and was killed with its process group.
    TimedOut,
}

/// Where a time limit ended it, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

impl ExitStatus {
    /// The exit code that a shell has for it: 128 and the number of the signal that killed it; 124 at its time limit.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            Self::TimedOut => TIMED_OUT,
        }
    }

    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// What a [`Reply::File`] announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its size when it was opened; files of `/proc` say 0 and have more.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name; bytes that are not UTF-8 are replaced by U+FFFD.
    pub name: String,
    /// What it is; symbolic links are not followed.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change of its contents, seconds since 1970.
    pub modified_seconds: i64,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What it is.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Last change of its contents, seconds since 1970.
    pub modified_seconds: i64,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// What every exec starts from. Kept in the guest, in `/etc/spore/exec.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecDefaults {
    /// Variables set for every exec.
    pub env: BTreeMap<String, String>,
    /// Absolute path of the working directory; absent: `/`.
    pub workdir: Option<String>,
    /// As whom, as [`ExecRequest::user`] has it; absent: root.
    pub user: Option<String>,
    /// What runs when a request names no command.
    pub command: Vec<String>,
}

/// Whether PID 1 is the agent, and the one that is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    /// The answering agent is PID 1, and the files are what it runs from.
    pub intact: bool,
    /// The answering agent's process number.
    pub agent_pid: u32,
    /// SHA-256 of what it runs from, `/proc/self/exe`, in hex.
    pub running_sha256: String,
    /// `/sbin/init` and the agent's own place.
    pub files: Vec<FileIntegrity>,
}

/// One file an intact guest boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIntegrity {
    /// Its path.
    pub path: String,
    /// Its SHA-256 in hex; absent if it cannot be read.
    pub sha256: Option<String>,
}

/// Why the agent did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people: what failed, where and why.
    pub message: String,
}

/// Why the agent did not do what it was asked, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// A path does not exist.
    NotFound,
    /// The guest's kernel does not allow it.
    PermissionDenied,
    /// Something is there already.
    AlreadyExists,
    /// A part of the path is not a directory.
    NotADirectory,
    /// A file was expected and this is a directory.
    IsADirectory,
    /// The directory is not empty.
    NotEmpty,
    /// The request itself makes no sense.
    InvalidArgument,
    /// Arguments and environment are longer than the guest's kernel takes, or a name is.
    TooLarge,
    /// The guest's disk is full.
    NoSpace,
    /// The guest's file system is read-only.
    ReadOnly,
    /// This agent cannot do it here.
    Unsupported,
    /// The message does not belong here in the conversation.
    OutOfTurn,
    /// Anything else.
    Io,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// A system error while doing `what`.
    pub fn from_io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => FailureKind::NotFound,
            io::ErrorKind::PermissionDenied => FailureKind::PermissionDenied,
            io::ErrorKind::AlreadyExists => FailureKind::AlreadyExists,
            io::ErrorKind::NotADirectory => FailureKind::NotADirectory,
            io::ErrorKind::IsADirectory => FailureKind::IsADirectory,
            io::ErrorKind::DirectoryNotEmpty => FailureKind::NotEmpty,
            io::ErrorKind::InvalidInput => FailureKind::InvalidArgument,
            io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidFilename => FailureKind::TooLarge,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => FailureKind::ReadOnly,
            io::ErrorKind::Unsupported => FailureKind::Unsupported,
            _ => FailureKind::Io,
        };
        Self::new(kind, format!("{what}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(ExitStatus::Code(7).shell_code(), 7);
        assert_eq!(ExitStatus::Signal(9).shell_code(), 137);
        assert_eq!(ExitStatus::TimedOut.shell_code(), 124);
    }
}
