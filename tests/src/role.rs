//! Parts of tests that need a process of their own: because they are about its limits, about what it has open, or
//! about its end.
//!
//! The test program starts itself again with the name of a role; its `main` hands it to [`play`] first of all.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

/// Which role.
const ROLE: &str = "SPORE_TESTS_ROLE";
/// The store it is about.
const STORE: &str = "SPORE_TESTS_STORE";

/// A role: its name, and what is done with the store at a path. What it prints is for the test.
pub type Role = (&'static str, fn(&Path));

/// If this process was started for a role, plays it.
pub fn play(roles: &[Role]) -> Option<ExitCode> {
    let name = std::env::var(ROLE).ok()?;
    let store = std::env::var_os(STORE).unwrap();
    let (_, role) = roles.iter().find(|(role, _)| *role == name).expect(&name);
    role(store.as_ref());
    Some(ExitCode::SUCCESS)
}

/// A process that plays a role. It is killed when dropped.
pub struct Player {
    child: Child,
    says: BufReader<ChildStdout>,
}

/// Starts a process that plays a role.
pub fn start(name: &str, store: &Path) -> Player {
    begin(Command::new(std::env::current_exe().unwrap()), name, store)
}

/// The same, through a command that ends with running what follows it.
pub fn start_through(command: &[&str], name: &str, store: &Path) -> Player {
    let mut through = Command::new(command[0]);
    through.args(&command[1..]).arg(std::env::current_exe().unwrap());
    begin(through, name, store)
}

fn begin(mut command: Command, name: &str, store: &Path) -> Player {
    command.env(ROLE, name).env(STORE, store);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let says = BufReader::new(child.stdout.take().unwrap());
    Player { child, says }
}

impl Player {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Waits until it has done all, and says what else it printed. What failed in it fails here.
    pub fn finish(mut self) -> String {
        let mut rest = String::new();
        self.says.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "its process: {status}; it said {rest:?}");
        rest
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}
