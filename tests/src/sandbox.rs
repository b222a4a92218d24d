//! A guest with its agent, for tests: whatever should work and does not is a panic.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use spore_protocol::{ExecOutput, ExecRequest};
use spore_snapshot::CheckpointId;
use spore_snapshot::store::Store;
use spore_vmm::guest::{Agent, Granted, Guest, LiveFork, Someone};
use spore_vmm::machine::Identity;

/// No test waits longer for one answer: a guest may have to fill memory while sixteen of another test have the two
/// processors.
pub const LIMIT: Duration = Duration::from_secs(300);

/// A guest and a connection to its agent.
pub struct Sandbox {
    /// The connection.
    pub agent: Agent,
    guest: Guest,
}

impl Deref for Sandbox {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Sandbox {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// A request to run `script` in a shell.
pub fn shell(script: &str) -> ExecRequest {
    ExecRequest::new(["/bin/sh", "-c", script])
}

impl Sandbox {
    /// A fork of a checkpoint.
    pub fn fork(store: &Store, checkpoint: &CheckpointId) -> Self {
        let checkpoint = store.open_checkpoint(checkpoint).unwrap();
        Self::new(Guest::fork(store, &checkpoint).unwrap())
    }

    /// A fork of a checkpoint that has this environment.
    pub fn fork_with(store: &Store, checkpoint: &CheckpointId, env: &[(&str, &str)]) -> Self {
        let checkpoint = store.open_checkpoint(checkpoint).unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env = env.iter().map(owned).collect();
        let identity = Identity {
            env,
            ..Identity::default()
        };
        Self::new(Guest::fork_as(store, &checkpoint, &identity).unwrap())
    }

    /// Forks it while it runs.
    pub fn live_fork(&mut self, store: &Store, count: usize) -> Vec<Self> {
        let forked = self.live_fork_as(store, &vec![Identity::default(); count]);
        forked
            .forks
            .into_iter()
            .map(|fork| Self::new(fork.unwrap()))
            .collect()
    }

    /// The same, as these, each on its network if it has one.
    pub fn live_fork_anyone(&mut self, store: &Store, who: &[Someone]) -> LiveFork {
        self.guest.live_fork(store, who).unwrap()
    }

    /// The same, as these.
    pub fn live_fork_as(&mut self, store: &Store, identities: &[Identity]) -> LiveFork {
        self.guest.live_fork(store, identities).unwrap()
    }

    /// Brings it to so much memory.
    pub fn resize(&mut self, total_mb: u32) -> Granted {
        self.guest.resize(&mut self.agent, total_mb).unwrap()
    }

    /// Of a guest that runs.
    pub fn new(mut guest: Guest) -> Self {
        let agent = connect(&mut guest);
        Self { agent, guest }
    }

    /// Another connection to the agent, for what goes on at the same time.
    pub fn another_agent(&mut self) -> Agent {
        connect(&mut self.guest)
    }

    /// Where this guest's files are while it lives.
    pub fn run_dir(&self) -> PathBuf {
        self.guest.console().parent().unwrap().to_owned()
    }

    /// The guest and the connection apart.
    pub fn parts(&mut self) -> (&mut Guest, &mut Agent) {
        (&mut self.guest, &mut self.agent)
    }

    /// The guest alone.
    pub fn into_guest(self) -> Guest {
        self.guest
    }

    /// Runs a command.
    pub fn exec(&mut self, request: &ExecRequest) -> ExecOutput {
        self.agent.exec_collect(request, b"").unwrap()
    }

    /// Runs a script that must succeed, and says what it wrote to its standard output, without white space
    /// around it.
    pub fn sh(&mut self, script: &str) -> String {
        let output = self.exec(&shell(script));
        assert!(
            output.outcome.status.success(),
            "{script}: {:?}, {}",
            output.outcome.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file.
    pub fn put(&mut self, path: &str, bytes: impl AsRef<[u8]>) {
        self.agent.write_file(path, None, &mut bytes.as_ref()).unwrap();
    }

    /// Writes a file that can be executed.
    pub fn put_program(&mut self, path: &str, bytes: impl AsRef<[u8]>) {
        let put = self.agent.write_file(path, Some(0o755), &mut bytes.as_ref());
        put.unwrap();
    }

    /// Reads a file that may not be there.
    pub fn get(&mut self, path: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.agent.read_file(path, &mut bytes) {
            Ok(_) => Some(bytes),
            Err(spore_protocol::ClientError::Refused(failure))
                if failure.kind == spore_protocol::FailureKind::NotFound =>
            {
                None
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

fn connect(guest: &mut Guest) -> Agent {
    let agent = guest.agent(LIMIT).unwrap();
    agent.stream().set_read_timeout(Some(LIMIT)).unwrap();
    agent.stream().set_write_timeout(Some(LIMIT)).unwrap();
    agent
}
