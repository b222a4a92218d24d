//! Files and directories of the guest.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use spore_protocol::frame;
use spore_protocol::{
    CHUNK_BYTES, DirEntry, EntryKind, Failure, FailureKind, FileInfo, FileStat, HostFrame, Reply,
};

use crate::conversation::{Buffers, Conn};
use crate::exec::Gone;

/// Permission bits, with set-user-id, set-group-id and sticky.
const MODE_BITS: u32 = 0o7777;
/// Entries in one reply: far below the frame limit with names of 255 bytes, which may grow
/// threefold when they are not UTF-8.
const ENTRIES_PER_REPLY: usize = 256;

/// Answers [`Request::ReadFile`](spore_protocol::Request::ReadFile).
pub fn send(path: &str, connection: &Conn, buffers: &mut Buffers) -> Result<(), Gone> {
    let (file, info) = match open_to_send(path) {
        Ok(opened) => opened,
        Err(failure) => return Ok(buffers.push(&Reply::Failed(failure))?),
    };
    buffers.push(&Reply::File(info))?;
    buffers
        .scratch
        .reserve_exact(CHUNK_BYTES.saturating_sub(buffers.scratch.capacity()));
    let mut sent = 0;
    loop {
        buffers.scratch.clear();
        match rustix::io::read(&file, spare_capacity(&mut buffers.scratch)) {
            Ok(0) => return Ok(buffers.push(&Reply::End)?),
            Ok(count) => {
                frame::encode(&Reply::Data(&buffers.scratch), &mut buffers.outgoing)?;
                sent += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                let failure = Failure::from_io(format!("read {path:?}"), &error.into());
                return Ok(buffers.push(&Reply::Failed(failure))?);
            }
        }
        // A file of known size that was sent whole needs no read to learn that it ended, unless
        // it grew meanwhile: then what it had is a whole answer too.
        if info.size_bytes > 0 && sent >= info.size_bytes {
            return Ok(buffers.push(&Reply::End)?);
        }
        buffers.flush(connection)?;
    }
}

fn open_to_send(path: &str) -> Result<(File, FileInfo), Failure> {
    let opened = absolute(path)?;
    let failed = |error: &io::Error| Failure::from_io(format!("open {path:?}"), error);
    // Without O_NONBLOCK a pipe would hold us until somebody writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(opened)
        .map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(Failure::new(
            FailureKind::IsADirectory,
            format!("{path:?} is a directory"),
        ));
    }
    if !metadata.is_file() {
        return Err(Failure::new(
            FailureKind::Unsupported,
            format!("{path:?} is not a regular file"),
        ));
    }
    let info = FileInfo {
        size_bytes: metadata.len(),
        mode: metadata.mode() & MODE_BITS,
    };
    Ok((file, info))
}

/// Answers [`Request::WriteFile`](spore_protocol::Request::WriteFile). What cannot be written is
/// read all the same: the host listens only when it has sent everything.
pub fn receive(path: &str, mode: Option<u32>, connection: &Conn, buffers: &mut Buffers) -> Result<(), Gone> {
    let mut stream = connection;
    let mut file = absolute(path).and_then(|path| Replacement::begin(path, mode));
    loop {
        let body = buffers.incoming.read_frame(&mut stream)?.ok_or(Gone)?;
        match frame::decode(body)? {
            HostFrame::Data(bytes) => {
                if let Ok(open) = &mut file
                    && let Err(failure) = open.write(bytes)
                {
                    file = Err(failure);
                }
            }
            HostFrame::End => return Ok(buffers.push_done(file.and_then(Replacement::commit))?),
            _ => return Err(Gone),
        }
    }
}

/// Answers [`Request::ListDir`](spore_protocol::Request::ListDir).
pub fn list(path: &str, connection: &Conn, buffers: &mut Buffers) -> Result<(), Gone> {
    let failed = |error: &io::Error| Failure::from_io(format!("list {path:?}"), error);
    let opened = absolute(path).and_then(|path| fs::read_dir(path).map_err(|error| failed(&error)));
    let directory = match opened {
        Ok(directory) => directory,
        Err(failure) => return Ok(buffers.push(&Reply::Failed(failure))?),
    };
    let mut entries = Vec::new();
    for entry in directory {
        match entry.and_then(|entry| describe(&entry)) {
            Ok(entry) => entries.push(entry),
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Ok(buffers.push(&Reply::Failed(failed(&error)))?),
        }
        if entries.len() == ENTRIES_PER_REPLY {
            buffers.push(&Reply::Entries(std::mem::take(&mut entries)))?;
            buffers.flush(connection)?;
        }
    }
    if !entries.is_empty() {
        buffers.push(&Reply::Entries(entries))?;
    }
    Ok(buffers.push(&Reply::End)?)
}

fn describe(entry: &fs::DirEntry) -> io::Result<DirEntry> {
    let stat = stat_of(&entry.metadata()?);
    Ok(DirEntry {
        name: entry.file_name().to_string_lossy().into_owned(),
        kind: stat.kind,
        size_bytes: stat.size_bytes,
        mode: stat.mode,
        modified_seconds: stat.modified_seconds,
    })
}

fn stat_of(metadata: &fs::Metadata) -> FileStat {
    let kind = match metadata.file_type() {
        kind if kind.is_file() => EntryKind::File,
        kind if kind.is_dir() => EntryKind::Directory,
        kind if kind.is_symlink() => EntryKind::Symlink,
        _ => EntryKind::Other,
    };
    FileStat {
        kind,
        size_bytes: metadata.len(),
        mode: metadata.mode() & MODE_BITS,
        modified_seconds: metadata.mtime(),
    }
}

/// Answers [`Request::Stat`](spore_protocol::Request::Stat).
pub fn stat(path: &str) -> Result<FileStat, Failure> {
    let metadata = fs::symlink_metadata(absolute(path)?);
    metadata
        .map(|metadata| stat_of(&metadata))
        .map_err(|error| Failure::from_io(format!("stat {path:?}"), &error))
}

/// Does [`Request::MakeDir`](spore_protocol::Request::MakeDir).
pub fn make_dir(path: &str, mode: Option<u32>) -> Result<(), Failure> {
    let made = absolute(path)?;
    let failed = |error: &io::Error| Failure::from_io(format!("make directory {path:?}"), error);
    match DirBuilder::new().mode(0o755).create(made) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && made.is_dir() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(made)
                .map_err(|error| failed(&error))?;
        }
        Err(error) => return Err(failed(&error)),
    }
    match mode {
        // Not through mkdir, which takes neither the umask's bits nor the special ones.
        Some(mode) => set_mode(made, mode).map_err(|error| failed(&error)),
        None => Ok(()),
    }
}

/// Does [`Request::Remove`](spore_protocol::Request::Remove).
pub fn remove(path: &str, recursive: bool) -> Result<(), Failure> {
    let removed = absolute(path)?;
    let failed = |error: &io::Error| Failure::from_io(format!("remove {path:?}"), error);
    let metadata = fs::symlink_metadata(removed).map_err(|error| failed(&error))?;
    if !metadata.is_dir() {
        return fs::remove_file(removed).map_err(|error| failed(&error));
    }
    if !recursive {
        return fs::remove_dir(removed).map_err(|error| failed(&error));
    }
    if fs::canonicalize(removed).is_ok_and(|real| real == Path::new("/")) {
        return Err(Failure::new(
            FailureKind::InvalidArgument,
            "the root directory cannot be removed",
        ));
    }
    remove_tree(removed.to_owned()).map_err(|error| failed(&error))
}

/// Like `std::fs::remove_dir_all`, but without recursion: our stacks are small, and how deep
/// directories go is the guest's choice.
fn remove_tree(root: PathBuf) -> io::Result<()> {
    let mut stack = vec![root];
    while let Some(directory) = stack.last() {
        let mut inner = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                inner.push(entry.path())
            } else {
                fs::remove_file(entry.path())?
            }
        }
        if inner.is_empty() {
            fs::remove_dir(directory)?;
            stack.pop();
        } else {
            stack.append(&mut inner);
        }
    }
    Ok(())
}

fn absolute(path: &str) -> Result<&Path, Failure> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(Path::new(path));
    }
    Err(Failure::new(
        FailureKind::InvalidArgument,
        format!("{path:?} is not an absolute path"),
    ))
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode & MODE_BITS))
}

/// A new file that takes an old one's place when it is complete, or leaves no trace.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    /// Where it is until then; absent once it has its place.
    temporary: Option<PathBuf>,
    target: PathBuf,
}

impl Replacement {
    /// Begins a file. Parents are created; a symbolic link that leads to something is followed.
    /// Without a mode, it gets mode and owner of the file it replaces, or 0644.
    pub fn begin(path: &Path, mode: Option<u32>) -> Result<Self, Failure> {
        let failed = |error: &io::Error| Failure::from_io(format!("write {:?}", path.display()), error);
        let target = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => {
                fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
            }
            _ => path.to_owned(),
        };
        let replaced = fs::symlink_metadata(&target)
            .ok()
            .filter(|metadata| !metadata.is_symlink());
        if let Some(replaced) = &replaced {
            if replaced.is_dir() {
                return Err(Failure::new(
                    FailureKind::IsADirectory,
                    format!("{:?} is a directory", path.display()),
                ));
            }
            if !replaced.is_file() {
                let message = format!("{:?} is not a regular file", path.display());
                return Err(Failure::new(FailureKind::Unsupported, message));
            }
        }
        // A path like "/a/" names a directory, and Path would drop the slash without a word.
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Failure::new(
                FailureKind::IsADirectory,
                format!("{:?} is a directory", path.display()),
            ));
        }
        let Some(parent) = target.parent() else {
            return Err(Failure::new(FailureKind::IsADirectory, "/ is a directory"));
        };
        let temporary = parent.join(temporary_name());
        let file = match create(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(parent)
                .and_then(|()| create(&temporary)),
            other => other,
        };
        let replacement = Self {
            file: file.map_err(|error| failed(&error))?,
            temporary: Some(temporary),
            target,
        };
        let prepared = match (mode, replaced) {
            (Some(mode), _) => replacement.set_mode(mode),
            (None, Some(replaced)) => replacement.take_after(&replaced),
            (None, None) => replacement.set_mode(0o644),
        };
        prepared.map_err(|error| failed(&error))?;
        Ok(replacement)
    }

    /// Appends to the new file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// Makes what was written durable.
    pub fn sync(&self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| self.failed(&error))
    }

    /// Puts the new file in its place.
    pub fn commit(mut self) -> Result<(), Failure> {
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.target).map_err(|error| self.failed(&error))?;
        }
        self.temporary = None;
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file
            .set_permissions(Permissions::from_mode(mode & MODE_BITS))
    }

    /// Owner before mode: a change of owner drops the set-user-id bit.
    fn take_after(&self, replaced: &fs::Metadata) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            let ours = self.file.metadata()?;
            if (ours.uid(), ours.gid()) != (replaced.uid(), replaced.gid()) {
                chown(temporary, Some(replaced.uid()), Some(replaced.gid()))?;
            }
        }
        self.set_mode(replaced.mode())
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::from_io(format!("write {:?}", self.target.display()), error)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Unique among living agents on a file system: what a dead one left has another pid or boot's
/// file names, and `create_new` refuses the rest.
fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    format!(
        ".spore-{}-{:x}{:08x}-{count}",
        std::process::id(),
        now.tv_sec,
        now.tv_nsec
    )
}

/// Reads a file of a few kilobytes whose size the kernel does not know in advance.
pub fn read_small(path: &str, buffer: &mut [u8]) -> io::Result<usize> {
    let mut file = File::open(path)?;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
