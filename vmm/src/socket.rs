//! Unix sockets at paths of any length.
//!
//! `sun_path` holds 107 bytes (unix(7)); a data directory deep in somebody's home does not fit.
//! The directory is opened and the socket named through `/proc/self/fd`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Longest path that is used as it is.
const MAX_PATH: usize = 100;

fn short<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().as_bytes().len() <= MAX_PATH {
        return with(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(parent)?;
    with(&PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}

/// Binds a listener.
///
/// # Errors
/// What `bind(2)` reports.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    short(path, |path| UnixListener::bind(path))
}

/// Binds a socket that does not listen yet. Who connects learns the process that makes it listen (unix(7),
/// `SO_PEERCRED`).
///
/// # Errors
/// What `socket(2)` and `bind(2)` report.
pub fn bind_silent(path: &Path) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    short(path, |path| {
        Ok(rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?)
    })?;
    Ok(socket)
}

/// Connects a stream, unless it would have to wait for others to be heard first (`WouldBlock`).
///
/// # Errors
/// What `socket(2)` and `connect(2)` report.
pub fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    short(path, |path| {
        Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?)
    })?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Connects a stream.
///
/// # Errors
/// What `connect(2)` reports.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    short(path, |path| UnixStream::connect(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_directory_holds_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        let _listener = bind(&path).unwrap();
        connect(&path).unwrap();
        assert!(path.exists());
    }
}
