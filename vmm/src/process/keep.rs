//! Outliving an owner: what the next one must know and prove.
//!
//! A VM process that is kept listens on a socket in its run directory, beside a record of who it is. A number alone
//! proves nothing: it may be another process's by now. So the next owner takes hold of the process first (pidfd), then
//! compares when it was started, then sees that it is the one who listens, and then shows the token.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::stat::start_time;
use crate::{random, socket};

/// The version of [`Record`].
const VERSION: u32 = 1;
/// Largest record, in bytes.
const MAX_RECORD: u64 = 4096;
/// Where the record is in a run directory.
const RECORD: &str = "keep.json";
/// Where the process listens.
const SOCKET: &str = "control";

/// What a new owner shows.
#[derive(Clone, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Token([u8; 32]);

impl Token {
    /// One that nobody knows.
    pub fn new() -> Self {
        Self(random::bytes())
    }

    /// Whether they are the same. It takes as long if they are not.
    pub fn is(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        let differ = pairs.fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
        differ == 0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a token is 64 hexadecimal digits";
        let mut token = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        for (byte, at) in token.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| WRONG)?;
        }
        Ok(Self(token))
    }
}

/// Which process a kept VM is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    version: u32,
    pub pid: u32,
    /// When it was started, in clock ticks since the host booted.
    start_time: u64,
    /// Which boot of the host that was.
    boot_id: String,
    pub token: Token,
}

/// Why a record is no good.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is none.
    #[error("it was not kept")]
    NotThere,
    /// It cannot be read.
    #[error("{path}: {why}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is of another version.
    #[error("{path} has version {found}, and this is for {VERSION}: was it kept by another Spore?", path = .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The host was booted since.
    #[error("the host was booted since")]
    Rebooted,
    /// The number is another process's now.
    #[error("process {pid} is not the VM: {why}")]
    OtherProcess {
        /// The number.
        pid: u32,
        /// How that is known.
        why: String,
    },
    /// There is no such process any more.
    #[error("its process is gone")]
    Gone,
    /// Too many wait to be heard by it.
    #[error("too many have asked for it and were not heard yet")]
    Busy,
}

impl Record {
    /// Of a process that lives.
    ///
    /// # Errors
    /// When its start cannot be read.
    pub fn of(pid: u32, token: Token) -> io::Result<Self> {
        Ok(Self {
            version: VERSION,
            pid,
            start_time: start_time(pid)?,
            boot_id: boot_id()?,
            token,
        })
    }

    /// Whether a run directory has one.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(RECORD).exists()
    }

    /// Writes it into a run directory, for its owner's eyes only.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("keep.new");
        let _ = std::fs::remove_file(&new);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        std::fs::rename(&new, dir.join(RECORD))
    }

    /// Removes it.
    pub fn remove(dir: &Path) {
        let _ = std::fs::remove_file(dir.join(RECORD));
        let _ = std::fs::remove_file(dir.join(SOCKET));
    }

    /// Reads it, and sees that it is of this boot of the host.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(dir: &Path) -> Result<Self, RecordError> {
        let path = dir.join(RECORD);
        let unreadable = |why: String| RecordError::Unreadable {
            path: path.clone(),
            why,
        };
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_RECORD + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) if bytes.len() as u64 > MAX_RECORD => return Err(unreadable("it is too large".into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RecordError::NotThere),
            Err(error) => return Err(unreadable(error.to_string())),
        }
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(found) => return Err(RecordError::Version { path, found }),
            None => return Err(unreadable("it has no version".into())),
        }
        let record: Self = serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
        match boot_id() {
            Ok(now) if now == record.boot_id => Ok(record),
            Ok(_) => Err(RecordError::Rebooted),
            Err(error) => Err(unreadable(error.to_string())),
        }
    }

    /// Takes hold of the process and connects to it: the stream is to the very process that the descriptor is of.
    ///
    /// # Errors
    /// [`RecordError`] when it is not there, or the number is another's.
    pub fn connect(&self, dir: &Path) -> Result<(Pid, OwnedFd, UnixStream), RecordError> {
        let other = |why: String| RecordError::OtherProcess { pid: self.pid, why };
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| other("there is no such number".into()))?;
        // First, so that whatever is found out about this number below is true of what is held here.
        let held = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) => held,
            Err(rustix::io::Errno::SRCH) => return Err(RecordError::Gone),
            Err(error) => return Err(other(error.to_string())),
        };
        match start_time(self.pid) {
            Ok(started) if started == self.start_time => {}
            Ok(started) => {
                let was = self.start_time;
                return Err(other(format!(
                    "it was started at tick {started}, the VM at {was}"
                )));
            }
            Err(_) => return Err(RecordError::Gone),
        }
        let stream = socket::connect_now(&dir.join(SOCKET)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => RecordError::Busy,
            _ => RecordError::Gone,
        })?;
        let peer =
            rustix::net::sockopt::socket_peercred(&stream).map_err(|error| other(error.to_string()))?;
        match peer.pid == pid {
            true => Ok((pid, held, stream)),
            false => Err(other(format!("process {} listens for owners", peer.pid))),
        }
    }
}

/// The socket on which a process will listen for owners, bound.
///
/// # Errors
/// When it cannot be bound.
pub fn bind(dir: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(SOCKET);
    let socket = socket::bind_silent(&path)?;
    // Nobody else gets into the directory either.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// The process that listens for owners in a run directory, whatever its record says; `None` when nobody does.
///
/// # Errors
/// When it cannot be taken hold of.
pub fn listener_in(dir: &Path) -> io::Result<Option<(Pid, OwnedFd)>> {
    let peer = || match socket::connect_now(&dir.join(SOCKET)) {
        Ok(stream) => Ok(Some(rustix::net::sockopt::socket_peercred(&stream)?.pid)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        Err(_) => Ok(None),
    };
    let Some(pid) = peer()? else { return Ok(None) };
    let held = pidfd_open(pid, PidfdFlags::empty())?;
    // It listens still, so its number was its own when it was taken hold of.
    match peer()? == Some(pid) {
        true => Ok(Some((pid, held))),
        false => Ok(None),
    }
}

fn boot_id() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ours() -> Record {
        Record::of(std::process::id(), Token::new()).unwrap()
    }

    fn write(dir: &Path, record: &serde_json::Value) {
        std::fs::write(dir.join(RECORD), record.to_string()).unwrap();
    }

    /// A run directory in which this process listens, and its record.
    fn listening() -> (tempfile::TempDir, OwnedFd, Record) {
        let dir = tempfile::tempdir().unwrap();
        let socket = bind(dir.path()).unwrap();
        rustix::net::listen(&socket, 3).unwrap();
        let record = ours();
        record.write(dir.path()).unwrap();
        (dir, socket, record)
    }

    #[test]
    fn tokens_are_the_same_or_not_and_are_never_shown() {
        let (one, other) = (Token::new(), Token::new());
        assert!(one.is(&one.clone()) && !one.is(&other));
        let text = String::from(one.clone());
        assert!(Token::try_from(text.clone()).unwrap().is(&one));
        assert!(!format!("{one:?}").contains(&text[..8]));
        for wrong in [&text[1..], &text.replace(|_| true, "g"), "", &format!("{text}00")] {
            assert!(Token::try_from(wrong.to_owned()).is_err());
        }
        let almost = format!("{}{}", &text[..63], if text.ends_with('0') { '1' } else { '0' });
        assert!(!Token::try_from(almost).unwrap().is(&one));
    }

    #[test]
    fn a_record_leads_to_the_process_it_is_of() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, _socket, record) = listening();
        let read = Record::read(dir.path()).unwrap();
        assert!(read.token.is(&record.token));
        let (pid, ..) = read.connect(dir.path()).unwrap();
        assert_eq!(pid, rustix::process::getpid());
        assert_eq!(listener_in(dir.path()).unwrap().unwrap().0, pid);
        // It never hears anybody, and nobody waits for ever.
        read.connect(dir.path()).unwrap();
        let error = read.connect(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Busy), "{error}");
        assert!(listener_in(dir.path()).is_err());
        for file in [RECORD, SOCKET] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_number_that_is_another_processs_now_is_refused() {
        let (dir, _socket, record) = listening();
        // As if this process had got the number of one that was started earlier.
        let mut earlier = record.clone();
        earlier.start_time -= 1;
        let error = earlier.connect(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::OtherProcess { .. }), "{error}");
        // Another process that lives, and when it was started: but it is not who listens.
        let init = Record::of(1, record.token.clone()).unwrap();
        let error = init.connect(dir.path()).unwrap_err();
        assert!(error.to_string().contains("listens for owners"), "{error}");
        // Nobody has it.
        let mut none = record;
        none.pid = u32::try_from(i32::MAX).unwrap();
        let error = none.connect(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Gone), "{error}");
    }

    #[test]
    fn a_process_that_does_not_listen_is_gone() {
        let (dir, socket, record) = listening();
        drop(socket);
        let error = record.connect(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Gone), "{error}");
        assert!(listener_in(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_record_that_is_none_is_refused_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let error = Record::read(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::NotThere), "{error}");

        let good = serde_json::to_value(ours()).unwrap();
        let text = good.to_string();
        for garbage in [
            "",
            "{",
            "[]",
            "null",
            "{\"version\":true}",
            &text[..text.len() / 2],
            &" ".repeat(5000),
        ] {
            std::fs::write(dir.path().join(RECORD), garbage).unwrap();
            let error = Record::read(dir.path()).unwrap_err();
            assert!(
                matches!(error, RecordError::Unreadable { .. }),
                "{garbage}: {error}"
            );
        }
        for (field, value) in [
            ("pid", json!(-1)),
            ("startTime", json!("now")),
            ("token", json!("00")),
            ("more", json!(1)),
        ] {
            let mut record = good.clone();
            record[field] = value;
            write(dir.path(), &record);
            let error = Record::read(dir.path()).unwrap_err();
            assert!(
                matches!(error, RecordError::Unreadable { .. }),
                "{field}: {error}"
            );
        }
        let mut newer = good.clone();
        newer["version"] = json!(2);
        write(dir.path(), &newer);
        let error = Record::read(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Version { found: 2, .. }), "{error}");
        let mut earlier = good;
        earlier["bootId"] = json!("another");
        write(dir.path(), &earlier);
        let error = Record::read(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::Rebooted), "{error}");
    }
}
