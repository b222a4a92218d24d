//! An agent run as an ordinary process, and clients for it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use spore_protocol::{AgentClient, ExecOutput, ExecRequest};
use tempfile::TempDir;

pub struct TestAgent {
    process: Child,
    directory: TempDir,
}

impl TestAgent {
    pub fn start() -> Self {
        Self::start_in(TempDir::new().unwrap(), &[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), arguments)
    }

    fn start_in(directory: TempDir, arguments: &[&str]) -> Self {
        let socket = directory.path().join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        let process = Command::new(env!("CARGO_BIN_EXE_spore-agent"))
            .arg("--test")
            .arg(&socket)
            .arg("--defaults")
            .arg(directory.path().join("exec.json"))
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, directory };
        eventually("the agent listens", || UnixStream::connect(&socket).is_ok());
        agent
    }

    pub fn restart(mut self) -> Self {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let directory = std::mem::replace(&mut self.directory, TempDir::new().unwrap());
        Self::start_in(directory, &[])
    }

    pub fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("agent.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub fn client(&self) -> AgentClient<UnixStream> {
        AgentClient::new(self.stream(), "test")
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// A directory of the test's own.
    pub fn files(&self) -> PathBuf {
        let files = self.directory.path().join("files");
        std::fs::create_dir_all(&files).unwrap();
        files
    }

    /// Runs `script` in a shell and collects what it writes.
    pub fn sh(&self, script: &str) -> ExecOutput {
        self.client().exec_collect(&shell(script), b"").unwrap()
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn shell(script: &str) -> ExecRequest {
    ExecRequest::new(["bash", "-c", script])
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "not within ten seconds: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn pids(text: &[u8]) -> Vec<i32> {
    String::from_utf8_lossy(text)
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
