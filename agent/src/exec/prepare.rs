//! From a request to what `execve` takes, with everything checked.

use std::collections::BTreeMap;
use std::ffi::CString;

use spore_protocol::{ExecDefaults, ExecRequest, Failure, FailureKind, TtySize};

use super::registers;
use super::user::User;
use crate::defaults::{check_env, check_workdir};

/// Where commands are looked up, unless the defaults or the request say otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The home directory of a command that runs as the agent, unless the defaults or the request say otherwise.
const HOME: &str = "/root";

/// What a terminal is to a command that has one, unless the defaults or the request say otherwise.
const TERM: &str = "xterm-256color";

/// The longest single string the kernel takes (`MAX_ARG_STRLEN`, with its NUL).
const MAX_STRING_BYTES: usize = 128 * 1024;
/// A quarter of the usual 8 MiB stack is what the kernel takes in all; half of that is ours.
const MAX_TOTAL_BYTES: usize = 1024 * 1024;

/// What to execute, where.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Paths to try in this order.
    pub candidates: Vec<CString>,
    /// Arguments, with the command's name first.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub envp: Vec<CString>,
    /// Working directory; absent: the agent's own, which is `/`.
    pub cwd: Option<CString>,
    /// As whom; absent: as the agent.
    pub user: Option<User>,
}

/// Checks a request and puts it over the defaults. Who `user` is has been found out already.
pub fn prepare(
    request: &ExecRequest,
    defaults: &ExecDefaults,
    user: Option<User>,
) -> Result<Prepared, Failure> {
    let argv = command(request, defaults);
    let Some(name) = argv.first() else {
        return Err(invalid("argv is empty, and the image has no command of its own"));
    };
    if name.is_empty() {
        return Err(invalid("the command is an empty string"));
    }
    check_env(&request.env)?;
    request.tty.map_or(Ok(()), TtySize::check)?;
    let home = user.as_ref().map_or(HOME, |user| &user.home);
    let mut env: BTreeMap<&str, &str> = BTreeMap::from([("PATH", PATH), ("HOME", home)]);
    env.extend(registers::defaults());
    if request.tty.is_some() {
        env.insert("TERM", TERM);
    }
    for (key, value) in defaults.env.iter().chain(&request.env) {
        env.insert(key, value);
    }
    let path = env.get("PATH").copied().unwrap_or(PATH);
    let candidates = candidates(name, path)?;
    let argv = strings("argument", argv.iter().cloned())?;
    let envp = strings(
        "environment variable",
        env.iter().map(|(key, value)| format!("{key}={value}")),
    )?;
    // Each string costs its bytes, a NUL and a pointer.
    let total: usize = argv
        .iter()
        .chain(&envp)
        .map(|string| string.as_bytes().len() + 9)
        .sum();
    if total > MAX_TOTAL_BYTES {
        return Err(Failure::new(
            FailureKind::TooLarge,
            format!("arguments and environment are {total} bytes; {MAX_TOTAL_BYTES} is the most"),
        ));
    }
    let cwd = request
        .cwd
        .as_deref()
        .or(defaults.workdir.as_deref())
        .unwrap_or("/");
    check_workdir(cwd)?;
    let cwd = (cwd != "/")
        .then(|| c_string("working directory", cwd.to_owned()))
        .transpose()?;
    Ok(Prepared {
        candidates,
        argv,
        envp,
        cwd,
        user,
    })
}

/// What a request runs: what it names, or the image's own.
pub fn command<'a>(request: &'a ExecRequest, defaults: &'a ExecDefaults) -> &'a [String] {
    match request.argv.is_empty() {
        true => &defaults.command,
        false => &request.argv,
    }
}

fn candidates(name: &str, path: &str) -> Result<Vec<CString>, Failure> {
    if name.contains('/') {
        return Ok(vec![c_string("argument", name.to_owned())?]);
    }
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| c_string("PATH", format!("{directory}/{name}")))
        .collect()
}

fn strings(what: &str, strings: impl Iterator<Item = String>) -> Result<Vec<CString>, Failure> {
    strings.map(|string| c_string(what, string)).collect()
}

fn c_string(what: &str, string: String) -> Result<CString, Failure> {
    if string.len() >= MAX_STRING_BYTES {
        return Err(Failure::new(
            FailureKind::TooLarge,
            format!(
                "{what} of {} bytes; {} is the most",
                string.len(),
                MAX_STRING_BYTES - 1
            ),
        ));
    }
    CString::new(string).map_err(|_| invalid(&format!("{what} with a NUL byte")))
}

fn invalid(message: &str) -> Failure {
    Failure::new(FailureKind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|string| string.to_str().unwrap()).collect()
    }

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_request_overrides_the_defaults_and_those_what_is_built_in() {
        let defaults = ExecDefaults {
            env: env(&[("A", "1"), ("B", "1"), ("HOME", "/h")]),
            workdir: Some("/w".into()),
            ..ExecDefaults::default()
        };
        let request = ExecRequest {
            env: env(&[("B", "2")]),
            ..ExecRequest::new(["x"])
        };
        let prepared = prepare(&request, &defaults, None).unwrap();
        assert_eq!(
            text(&prepared.envp),
            ["A=1", "B=2", "HOME=/h", &format!("PATH={PATH}")]
        );
        assert_eq!(prepared.cwd.unwrap().to_str().unwrap(), "/w");
        let request = ExecRequest {
            cwd: Some("/".into()),
            ..ExecRequest::new(["x"])
        };
        assert_eq!(prepare(&request, &defaults, None).unwrap().cwd, None);
    }

    #[test]
    fn a_users_home_is_known_unless_somebody_says_another() {
        let user = || {
            Some(User {
                uid: 1,
                gid: 1,
                groups: vec![1],
                home: "/home/u".into(),
            })
        };
        let prepared = prepare(&ExecRequest::new(["x"]), &ExecDefaults::default(), user()).unwrap();
        assert_eq!(text(&prepared.envp)[0], "HOME=/home/u");
        assert_eq!(prepared.user, user());
        let defaults = ExecDefaults {
            env: env(&[("HOME", "/h")]),
            ..ExecDefaults::default()
        };
        let prepared = prepare(&ExecRequest::new(["x"]), &defaults, user()).unwrap();
        assert_eq!(text(&prepared.envp)[0], "HOME=/h");
    }

    #[test]
    fn a_command_with_a_terminal_knows_one_unless_somebody_says_another() {
        let mut request = ExecRequest {
            tty: Some(TtySize { rows: 1, cols: 4096 }),
            ..ExecRequest::new(["x"])
        };
        let term = |request: &ExecRequest, defaults: &ExecDefaults| {
            let prepared = prepare(request, defaults, None).unwrap();
            text(&prepared.envp).last().copied().unwrap().to_owned()
        };
        let mut defaults = ExecDefaults::default();
        assert_eq!(term(&request, &defaults), "TERM=xterm-256color");
        defaults.env = env(&[("TERM", "vt100")]);
        assert_eq!(term(&request, &defaults), "TERM=vt100");
        request.env = env(&[("TERM", "dumb")]);
        assert_eq!(term(&request, &defaults), "TERM=dumb");
        let without = ExecRequest::new(["x"]);
        assert!(term(&without, &ExecDefaults::default()).starts_with("PATH="));
    }

    #[test]
    fn a_terminal_of_no_size_or_too_large_is_refused() {
        for (rows, cols) in [(0, 80), (24, 0), (4097, 80), (24, u16::MAX)] {
            let request = ExecRequest {
                tty: Some(TtySize { rows, cols }),
                ..ExecRequest::new(["x"])
            };
            let failure = prepare(&request, &ExecDefaults::default(), None).unwrap_err();
            assert_eq!(failure.kind, FailureKind::InvalidArgument, "{rows}x{cols}");
            assert!(failure.message.contains("4096"), "{failure}");
        }
    }

    #[test]
    fn without_a_command_the_images_own_runs() {
        let defaults = ExecDefaults {
            command: vec!["/entry".into(), "-a".into()],
            ..ExecDefaults::default()
        };
        let prepared = prepare(&ExecRequest::default(), &defaults, None).unwrap();
        assert_eq!(text(&prepared.argv), ["/entry", "-a"]);
        let prepared = prepare(&ExecRequest::new(["x"]), &defaults, None).unwrap();
        assert_eq!(text(&prepared.argv), ["x"]);
    }

    #[test]
    fn a_bare_name_is_looked_up_in_the_path_it_will_see() {
        let request = ExecRequest {
            env: env(&[("PATH", "/a::/b")]),
            ..ExecRequest::new(["x"])
        };
        let prepared = prepare(&request, &ExecDefaults::default(), None).unwrap();
        assert_eq!(text(&prepared.candidates), ["/a/x", "./x", "/b/x"]);
        let prepared = prepare(&ExecRequest::new(["./x", "y"]), &ExecDefaults::default(), None).unwrap();
        assert_eq!(text(&prepared.candidates), ["./x"]);
    }

    #[test]
    fn nonsense_is_refused_before_anything_runs() {
        let kind = |request| {
            prepare(&request, &ExecDefaults::default(), None)
                .unwrap_err()
                .kind
        };
        let plain = ExecRequest::new(["x"]);
        assert_eq!(kind(ExecRequest::default()), FailureKind::InvalidArgument);
        assert_eq!(kind(ExecRequest::new([""])), FailureKind::InvalidArgument);
        assert_eq!(
            kind(ExecRequest::new(["x", "a\0b"])),
            FailureKind::InvalidArgument
        );
        for name in ["", "A=B", "A\0"] {
            let request = ExecRequest {
                env: env(&[(name, "")]),
                ..plain.clone()
            };
            assert_eq!(kind(request), FailureKind::InvalidArgument, "{name:?}");
        }
        for cwd in ["", "relative", "/a\0"] {
            let request = ExecRequest {
                cwd: Some(cwd.into()),
                ..plain.clone()
            };
            assert_eq!(kind(request), FailureKind::InvalidArgument, "{cwd:?}");
        }
        assert_eq!(
            kind(ExecRequest::new(["x".to_owned(), "y".repeat(MAX_STRING_BYTES)])),
            FailureKind::TooLarge
        );
        assert_eq!(
            kind(ExecRequest::new(vec!["y".repeat(1000); 1100])),
            FailureKind::TooLarge
        );
    }
}
