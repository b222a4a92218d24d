//! What an image wants done in every fork of it: the programs in `/etc/spore/on-fork.d`.
//!
//! They are looked for before the machine goes to sleep, so that a fork of an image without any
//! pays nothing. They run one after the other, in the order of their names' bytes, with the
//! environment of a command and their output on the console; the fork is not handed out before
//! the last has ended, and not at all if one failed.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use spore_protocol::{ExecDefaults, ExecRequest};

use crate::exec::{Stdio, kill_session, prepare, spawn};
use crate::reaper::{Child, Exit, Reaper};

/// Where they are.
pub const DIRECTORY: &str = "/etc/spore/on-fork.d";
/// How long a killed hook may take to end before we stop waiting: it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Why a fork's hooks did not all succeed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Nobody knows which there are.
    #[error("cannot be listed: {0}")]
    List(String),
    /// It could not be started.
    #[error("{0} could not be run: {1}")]
    Start(String, String),
    /// It exited with this code.
    #[error("{0} exited with {1}")]
    Code(String, i32),
    /// It was killed by this signal.
    #[error("{0} was killed by signal {1}")]
    Signal(String, i32),
    /// It was killed at the time limit.
    #[error("{0} was killed: all hooks together may take {1:?}")]
    Limit(String, Duration),
}

/// The hooks in `directory`, whose absence means that there are none: every file that can be
/// executed. Others, a README say, are left alone.
pub fn list(directory: &Path) -> Result<Vec<String>, HookError> {
    let failed = |error: io::Error| HookError::List(error.to_string());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // Of what a link points at.
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed)?,
        };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            let path = path.into_os_string().into_string();
            hooks.push(path.map_err(|path| HookError::List(format!("{path:?} is not UTF-8")))?);
        }
    }
    // All have the same directory, and strings are ordered by their bytes.
    hooks.sort_unstable();
    Ok(hooks)
}

/// Runs hooks one after the other until one fails. `console` is where their output goes, `limit` is
/// for all of them together.
pub fn run(
    hooks: &[String],
    reaper: &Reaper,
    defaults: &ExecDefaults,
    console: BorrowedFd<'_>,
    limit: Duration,
) -> Result<(), HookError> {
    let deadline = Instant::now() + limit;
    hooks
        .iter()
        .try_for_each(|hook| run_one(hook, reaper, defaults, console, deadline, limit))
}

fn run_one(
    hook: &str,
    reaper: &Reaper,
    defaults: &ExecDefaults,
    console: BorrowedFd<'_>,
    deadline: Instant,
    limit: Duration,
) -> Result<(), HookError> {
    let name = || hook.rsplit('/').next().unwrap_or(hook).to_owned();
    let failed = |why: String| HookError::Start(name(), why);
    let request = ExecRequest {
        cwd: Some("/".to_owned()),
        ..ExecRequest::new([hook])
    };
    // Whoever the image's programs run as, a hook is root's.
    let prepared = prepare(&request, defaults, None).map_err(|failure| failed(failure.message))?;
    let stdio = stdio(console).map_err(|error| failed(error.to_string()))?;
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| failed(error.to_string()))?;
    let wake = Arc::new(wake);
    let child = reaper
        .spawn(&wake, || spawn(&prepared, &stdio))
        .map_err(|error| failed(error.into_io().to_string()))?;
    match wait(&child, &wake, deadline) {
        Some(exit) => match exit.wait_status {
            status if libc::WIFSIGNALED(status) => Err(HookError::Signal(name(), libc::WTERMSIG(status))),
            status => match libc::WEXITSTATUS(status) {
                0 => Ok(()),
                code => Err(HookError::Code(name(), code)),
            },
        },
        None => {
            child.signal_group(libc::SIGKILL);
            kill_session(child.pid());
            wait(&child, &wake, Instant::now() + KILL_PATIENCE);
            Err(HookError::Limit(name(), limit))
        }
    }
}

fn stdio(console: BorrowedFd<'_>) -> io::Result<Stdio> {
    // Above 2, as the spawn wants it.
    let console = || rustix::io::fcntl_dupfd_cloexec(console, 3);
    Ok(Stdio::Apart {
        stdin: rustix::fs::open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
        stdout: console()?,
        stderr: console()?,
    })
}

/// How it ended; `None` if it did not until then.
fn wait(child: &Child<'_>, wake: &OwnedFd, deadline: Instant) -> Option<Exit> {
    loop {
        if let Some(exit) = child.exit() {
            return Some(exit);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let left = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        // Woken for nothing, we look again.
        let _ = poll(&mut [PollFd::new(wake, PollFlags::IN)], Some(&left));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::OnceLock;

    use tempfile::TempDir;

    use super::*;

    fn hook(directory: &TempDir, name: &str, script: &str) {
        let path = directory.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Waits for all children of this process: nothing else in these tests has any.
    fn reaper() -> &'static Reaper {
        static REAPER: OnceLock<&'static Reaper> = OnceLock::new();
        REAPER.get_or_init(|| {
            let reaper: &'static Reaper = Box::leak(Box::default());
            std::thread::spawn(|| reaper.run());
            reaper
        })
    }

    /// How the hooks of a directory ended, and what they wrote.
    fn run_all(directory: &TempDir, limit: Duration) -> (Result<(), String>, String) {
        let output = directory.path().join("output");
        let console = File::options().create(true).append(true).open(&output).unwrap();
        let defaults = ExecDefaults {
            user: Some("nobody".into()),
            env: BTreeMap::from([("GIVEN".into(), "to the fork".into())]),
            workdir: Some("/no/such/directory".into()),
            ..ExecDefaults::default()
        };
        let hooks = list(directory.path()).unwrap();
        let ended = run(&hooks, reaper(), &defaults, console.as_fd(), limit);
        let said = fs::read_to_string(output).unwrap();
        (ended.map_err(|error| error.to_string()), said)
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn hooks_are_the_programs_of_the_directory_by_the_bytes_of_their_names() {
        let directory = TempDir::new().unwrap();
        assert_eq!(list(&directory.path().join("none")).unwrap(), [""; 0]);
        for name in ["b", "a", "10", "9", "Z", "é"] {
            hook(&directory, name, "");
        }
        fs::write(directory.path().join("README"), "not a program").unwrap();
        fs::create_dir(directory.path().join("directory")).unwrap();
        symlink("b", directory.path().join("link")).unwrap();
        symlink("nowhere", directory.path().join("dangling")).unwrap();
        let names: Vec<_> = list(directory.path())
            .unwrap()
            .into_iter()
            .map(|path| path.rsplit('/').next().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["10", "9", "Z", "a", "b", "link", "é"]);
        let file = directory.path().join("README");
        assert!(matches!(list(&file), Err(HookError::List(_))));
    }

    #[test]
    fn hooks_run_one_after_the_other_with_the_forks_environment_and_nothing_to_read() {
        let directory = TempDir::new().unwrap();
        hook(&directory, "2", "echo second $GIVEN; cat");
        hook(&directory, "1", "sleep 0.2; echo first >&2; echo $HOME");
        let (ended, said) = run_all(&directory, LIMIT);
        assert_eq!(ended, Ok(()));
        assert_eq!(said, "first\n/root\nsecond to the fork\n");
    }

    #[test]
    fn the_first_that_fails_is_named_and_the_last_that_runs() {
        let directory = TempDir::new().unwrap();
        hook(&directory, "1", "exit 3");
        hook(&directory, "2", "echo not reached");
        let (ended, said) = run_all(&directory, LIMIT);
        assert_eq!(
            (ended.unwrap_err().as_str(), said.as_str()),
            ("1 exited with 3", "")
        );
        hook(&directory, "1", "kill -9 $$");
        assert_eq!(
            run_all(&directory, LIMIT).0.unwrap_err(),
            "1 was killed by signal 9"
        );
        fs::write(directory.path().join("1"), "no program").unwrap();
        let ended = run_all(&directory, LIMIT).0.unwrap_err();
        assert!(ended.starts_with("1 could not be run: "), "{ended}");
    }

    #[test]
    fn the_limit_is_for_all_and_kills_the_group_of_the_one_that_runs() {
        let directory = TempDir::new().unwrap();
        hook(&directory, "1", "sleep 0.3");
        hook(
            &directory,
            "2",
            "echo begun; sleep 1234 & sleep 1234; echo not reached",
        );
        let started = Instant::now();
        let (ended, said) = run_all(&directory, Duration::from_secs(3));
        let took = started.elapsed();
        assert_eq!(ended.unwrap_err(), "2 was killed: all hooks together may take 3s");
        assert_eq!(said, "begun\n");
        assert!((3..20).contains(&took.as_secs()), "{took:?}");
    }
}
