//! `spore cp`: a file into a sandbox or out of one.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tempfile::NamedTempFile;

use super::Daemon;
use crate::cli::remote::Cp;
use crate::failure::Failure;
use crate::ui;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    /// `ID:/path`.
    Sandbox {
        id: &'a str,
        path: &'a str,
    },
    /// `-`.
    Standard,
    File(&'a Path),
}

/// A name with a `:` that is a file here is written `./a:b`.
fn side(text: &str) -> Result<Side<'_>, Failure> {
    match text.split_once(':') {
        _ if text == "-" => Ok(Side::Standard),
        Some((id, path)) if !id.is_empty() && !id.contains('/') => {
            if path.starts_with('/') {
                Ok(Side::Sandbox { id, path })
            } else {
                Err(refused(format!("{text}: a path in a sandbox begins with /")))
            }
        }
        _ => Ok(Side::File(Path::new(text))),
    }
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::refused("invalid_request", why)
}

/// Copies.
pub fn run(daemon: &Daemon, args: &Cp) -> Result<(), Failure> {
    match (side(&args.from)?, side(&args.to)?) {
        (Side::Sandbox { id, path }, Side::Standard) => {
            let read = daemon.client.read_file(id, path, |_| Ok(io::stdout().lock()));
            Ok(read.map(drop)?)
        }
        (Side::Sandbox { id, path }, Side::File(to)) => fetch(daemon, id, path, to),
        (Side::Standard, Side::Sandbox { id, path }) => {
            if path.ends_with('/') {
                return Err(refused(format!(
                    "{}: standard input has no name; say the file's",
                    args.to
                )));
            }
            store(daemon, id, path, None, io::stdin())
        }
        (Side::File(from), Side::Sandbox { id, path }) => {
            let here = |error: io::Error| refused(format!("{}: {error}", from.display()));
            let file = File::open(from).map_err(here)?;
            let found = file.metadata().map_err(here)?;
            if found.is_dir() {
                return Err(refused(format!(
                    "{} is a directory; pipe tar through `spore exec -i`",
                    from.display()
                )));
            }
            let mode = found.is_file().then(|| found.permissions().mode() & 0o777);
            store(daemon, id, &inside(path, from), mode, file)
        }
        _ => Err(refused(
            "one side must be a sandbox's, ID:/path, and the other not",
        )),
    }
}

/// The file's own name, if only a directory was said.
fn inside(path: &str, from: &Path) -> String {
    match from.file_name() {
        Some(name) if path.ends_with('/') => format!("{path}{}", name.to_string_lossy()),
        _ => path.to_owned(),
    }
}

fn store(
    daemon: &Daemon,
    id: &str,
    path: &str,
    mode: Option<u32>,
    from: impl io::Read + Send + 'static,
) -> Result<(), Failure> {
    let answer = daemon.client.write_file(id, path, mode, from)?;
    daemon.tell(&answer, |written| {
        if daemon.verbose {
            ui::tell(format_args!(
                "{}: {}",
                written.path,
                ui::bytes(written.size_bytes)
            ));
        }
        Ok(())
    })
}

fn fetch(daemon: &Daemon, id: &str, path: &str, to: &Path) -> Result<(), Failure> {
    let to = if to.is_dir() {
        let name = Path::new(path).file_name();
        to.join(name.ok_or_else(|| refused(format!("{path} is a directory")))?)
    } else {
        to.to_owned()
    };
    let mut mode = 0;
    let written = daemon.client.read_file(id, path, |its| {
        mode = its;
        Target::new(&to)
    })?;
    let failed = |error: io::Error| Failure::internal(format!("{}: {error}", to.display()));
    written.keep(mode).map_err(failed)
}

/// Where a file goes: beside its place until it is whole, unless that is a device or a pipe.
enum Target {
    Beside(NamedTempFile, PathBuf),
    There(File),
}

impl Target {
    fn new(to: &Path) -> io::Result<Self> {
        // What a link means is replaced, not the link.
        let to = to.canonicalize().unwrap_or_else(|_| to.to_owned());
        if to.metadata().is_ok_and(|found| !found.is_file()) {
            return File::options().write(true).open(&to).map(Self::There);
        }
        let dir = match to.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let file = NamedTempFile::new_in(dir)?;
        Ok(Self::Beside(file, to))
    }

    fn keep(self, mode: u32) -> io::Result<()> {
        let Self::Beside(file, to) = self else {
            return Ok(());
        };
        // There is one thread that makes files.
        let umask = rustix::process::umask(Mode::empty());
        rustix::process::umask(umask);
        let mode = mode & 0o777 & !umask.bits();
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.persist(to).map(drop).map_err(|error| error.error)
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Beside(file, _) => file.write(bytes),
            Self::There(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_sandboxs_a_file_or_a_stream() {
        let of_sandbox = Side::Sandbox {
            id: "sb1",
            path: "/a:b",
        };
        assert_eq!(side("sb1:/a:b").unwrap(), of_sandbox);
        assert_eq!(side("-").unwrap(), Side::Standard);
        for file in ["./a:b", "/a:/b", "a", ":/a"] {
            assert_eq!(side(file).unwrap(), Side::File(Path::new(file)));
        }
        assert!(side("sb1:a").is_err());
        assert!(side("sb1:").is_err());
    }

    #[test]
    fn a_directory_in_a_sandbox_gets_the_files_own_name() {
        assert_eq!(inside("/opt/", Path::new("/x/a")), "/opt/a");
        assert_eq!(inside("/opt", Path::new("/x/a")), "/opt");
    }

    #[test]
    fn a_file_is_there_when_it_is_whole_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("file");
        std::fs::write(&to, "old").unwrap();
        let mut target = Target::new(&to).unwrap();
        target.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
        target.keep(0o4755).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"new");
        // Nothing that a guest says makes a file here set-user-id.
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o7000, 0);
        drop(Target::new(&to).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_and_a_device_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut target = Target::new(&link).unwrap();
        target.write_all(b"new").unwrap();
        target.keep(0o644).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert!(matches!(
            Target::new(Path::new("/dev/null")).unwrap(),
            Target::There(_)
        ));
    }
}
