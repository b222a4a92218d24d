//! The real `spore` beside a daemon: everything of docs/cli.md that concerns one, on one sandbox.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use spore_tests::host;
use tempfile::TempDir;

use super::{Daemon, socket};
use crate::image::{FLOOR_MB, NAME, image, proofs_text};

/// The command line, and where it is.
struct Spore<'a> {
    daemon: &'a Daemon,
    dir: TempDir,
}

/// What it said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// What it printed when it did what it was told.
    #[track_caller]
    fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    #[track_caller]
    fn is(&self, code: i32, part: &str) {
        assert!(
            self.code == code && self.err.contains(part),
            "{code}, {part}: {self:?}"
        );
    }
}

impl Spore<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(host::spore_program());
        command
            .args(words)
            .current_dir(self.dir.path())
            .env("SPORE_SOCKET", socket(self.daemon.root()))
            // The daemon's own: it is asked all the same.
            .env("SPORE_DATA", self.daemon.root());
        command
    }

    fn fed(&self, words: &[&str], input: &[u8]) -> Said {
        let mut command = self.command(words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn say(&self, words: &[&str]) -> Said {
        self.fed(words, b"")
    }

    /// A line that it printed when it did what it was told.
    #[track_caller]
    fn line(&self, words: &[&str]) -> String {
        let out = self.say(words).good();
        assert_eq!(out.lines().count(), 1, "{words:?}: {out}");
        out.trim_end().to_owned()
    }

    /// Ids of the sandboxes, in no order.
    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self
            .say(&["ps", "-q"])
            .good()
            .lines()
            .map(str::to_owned)
            .collect();
        ids.sort();
        ids
    }

    /// The line of a table that has `part`.
    #[track_caller]
    fn row(&self, words: &[&str], part: &str) -> String {
        let table = self.say(words).good();
        let row = table.lines().find(|line| line.contains(part));
        row.unwrap_or_else(|| panic!("{words:?}: no {part} in {table}"))
            .to_owned()
    }
}

pub fn the_command_line_does_what_its_page_says() {
    let daemon = Daemon::start();
    let spore = Spore {
        daemon: &daemon,
        dir: tempfile::tempdir().unwrap(),
    };
    let id = spore.line(&["create", NAME, "--metadata", "job=7", "-e", "WHO=me"]);
    lists(&spore, &id);
    commands(&spore, &id);
    a_terminal(&spore, &id);
    files(&spore, &id);
    assert_eq!(spore.line(&["resize", &id, "640"]), "640 MiB");
    pauses(&spore, &id);
    spore.say(&["logs", &id]).good();
    let fork = spore.line(&["fork", &id]);
    let mut both = [id.clone(), fork.clone()];
    both.sort();
    assert_eq!(spore.ids(), both);
    checkpoints(&spore, &id);
    the_host(&spore);
    spore.row(&["top", "--once"], &id);
    images(&spore);
    assert_eq!(spore.ids(), both, "`run` leaves nothing");
    errors(&spore);
    assert_eq!(spore.say(&["rm", &id]).good(), format!("{id}\n"));
    assert_eq!(spore.say(&["rm", "--all"]).good(), format!("{fork}\n"));
    assert_eq!(spore.ids(), [""; 0]);
    events(&spore, &id, &fork);
    assert_eq!(spore.line(&["image", "rm", NAME]), format!("{NAME} removed"));
    spore.say(&["create", NAME]).is(2, NAME);
}

fn lists(spore: &Spore, id: &str) {
    assert_eq!(spore.ids(), [id]);
    assert_eq!(spore.line(&["ps", "-q", "--metadata", "job=7"]), id);
    assert_eq!(spore.say(&["ps", "-q", "--metadata", "job=8"]).good(), "");
    let row = spore.row(&["ps"], id);
    let floor = format!("{FLOOR_MB}/");
    assert!(
        [NAME, "running", &floor].iter().all(|part| row.contains(part)),
        "{row}"
    );
}

fn commands(spore: &Spore, id: &str) {
    let script = "read line; echo $WHO $line; echo no >&2; exit 3";
    let said = spore.fed(&["exec", "-i", id, "--", "sh", "-c", script], b"typed\n");
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (3, "me typed\n", "no\n")
    );
    assert_eq!(spore.say(&["exec", id, "--", "no-such-program"]).code, 127);
    let late = spore.say(&["exec", "--timeout", "1", id, "--", "sleep", "1000"]);
    late.is(124, "time limit");
}

/// A terminal of this size: our side of it, and that of programs.
fn terminal(rows: u16, cols: u16) -> (File, File) {
    let main: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&main, size).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let side = options
        .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
        .open(name);
    (main.into(), side.unwrap())
}

fn a_terminal(spore: &Spore, id: &str) {
    let (mut main, side) = terminal(33, 44);
    let mut child = spore
        .command(&[
            "exec",
            "-it",
            id,
            "--",
            "sh",
            "-c",
            "stty size; echo ready; exec sleep 1000",
        ])
        .stdin(side.try_clone().unwrap())
        .stdout(side.try_clone().unwrap())
        .stderr(side)
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("ready") {
        // An error is the end of all who had its other side.
        let count = main
            .read(&mut buffer)
            .unwrap_or_else(|error| panic!("{error} after {text}"));
        text += &String::from_utf8_lossy(&buffer[..count]);
    }
    assert!(text.contains("33 44"), "{text}");
    // Ctrl-C is a key like any other: the terminal in the guest makes a signal of it.
    main.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

fn files(spore: &Spore, id: &str) {
    let here = |name: &str| spore.dir.path().join(name);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let bytes: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(here("data"), &bytes).unwrap();
    std::fs::set_permissions(here("data"), PermissionsExt::from_mode(0o750)).unwrap();
    spore.say(&["cp", "data", &format!("{id}:/srv/")]).good();
    spore.say(&["cp", &format!("{id}:/srv/data"), "back"]).good();
    assert_eq!(std::fs::read(here("back")).unwrap(), bytes);
    assert_eq!(mode(&here("back")), 0o750);
    spore
        .fed(&["cp", "-", &format!("{id}:/srv/said")], b"words\n")
        .good();
    assert_eq!(spore.line(&["cp", &format!("{id}:/srv/said"), "-"]), "words");
    let missing = spore.say(&["cp", &format!("{id}:/srv/none"), "-"]);
    assert!(
        missing.code != 0 && missing.err.contains("/srv/none"),
        "{missing:?}"
    );
}

fn pauses(spore: &Spore, id: &str) {
    assert_eq!(spore.line(&["pause", id]), id);
    assert!(spore.row(&["ps"], id).contains("paused"));
    // It is of its own, not the command's.
    spore.say(&["exec", id, "--", "true"]).is(125, "paused");
    assert_eq!(spore.line(&["resume", id]), id);
    assert!(spore.row(&["ps"], id).contains("running"));
}

fn checkpoints(spore: &Spore, id: &str) {
    let checkpoint = spore.line(&["checkpoint", id, "--name", "ready"]);
    let row = spore.row(&["checkpoints"], "ready");
    assert!(
        row.contains(&checkpoint[..12]) && row.contains("sandbox"),
        "{row}"
    );
    spore.say(&["checkpoint", id, "--name", "ready"]).is(2, "ready");
    assert_eq!(spore.line(&["checkpoints", "rm", "ready"]), "ready");
    assert!(!spore.say(&["checkpoints"]).good().contains("ready"));
}

fn the_host(spore: &Spore) {
    let root = spore.daemon.root().canonicalize().unwrap();
    let row = spore.row(&["host"], "data ");
    assert!(row.ends_with(root.to_str().unwrap()), "{row}");
    assert!(spore.row(&["host"], "sandboxes").contains("2 of "));
    assert!(spore.line(&["host", "drain"]).starts_with("draining"));
    spore.say(&["create", NAME]).is(1, "draining");
    spore.say(&["run", NAME, "--", "true"]).is(125, "draining");
    assert_eq!(spore.line(&["host", "undrain"]), "taking work");
}

fn images(spore: &Spore) {
    let expected = image().builds[0].image.record.id.as_str();
    assert!(spore.row(&["images"], NAME).contains(&expected[..12]));
    let shown: Value = serde_json::from_str(&spore.say(&["image", "show", NAME]).good()).unwrap();
    assert_eq!(shown["id"], expected);
    // It is there already: no VM is needed to say so.
    let built = spore.fed(
        &["build", "-", "--network", "none"],
        proofs_text(FLOOR_MB).as_bytes(),
    );
    assert!(built.good().starts_with(&format!("{NAME}: cached\n")));
    let words = [
        "run",
        "-i",
        NAME,
        "--env",
        "A=b",
        "--",
        "sh",
        "-c",
        "read it; echo $it $A $LEVEL; pwd; exit 4",
    ];
    let ran = spore.fed(&words, b"typed\n");
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (4, "typed b 2\n/srv/work\n", "")
    );
}

fn errors(spore: &Spore) {
    for (words, code) in [
        (&["pause", "nope"][..], 2),
        (&["rm", "nope"], 2),
        (&["exec", "nope", "--", "true"], 125),
        (&["create", "nope"], 2),
        (&["run", "nope", "--", "true"], 2),
        (&["image", "show", "nope"], 2),
        (&["image", "rm", NAME, "nope"], 2),
        (&["checkpoints", "rm", "nope"], 2),
    ] {
        spore.say(words).is(code, "nope");
    }
    spore.row(&["images"], NAME);
    let told: Value = serde_json::from_str(&spore.say(&["pause", "nope", "--json"]).err).unwrap();
    assert_eq!(told["error"]["code"], "not_found");
}

/// All that happened, from the first event to the end of the last sandbox: also what was done for `build` and `run`.
fn events(spore: &Spore, id: &str, last: &str) {
    let mut child = spore
        .command(&["events", "--after", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        told.push(line.unwrap());
        if told
            .last()
            .is_some_and(|line| line.contains("sandboxEnded") && line.contains(last))
        {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut lines = told.iter();
    for wanted in [
        &format!("sandboxCreated sandbox={id}"),
        "sandboxResized",
        "checkpointDeleted",
        "draining draining=true",
        "buildEnded",
        "sandboxCreated",
        "sandboxEnded",
        &format!("sandbox={id}"),
    ] {
        assert!(
            lines.any(|line| line.contains(wanted)),
            "{wanted} is not told in its order: {told:#?}"
        );
    }
}
