//! The daemon, over its socket, with real guests.

mod calls;
mod cli;
mod hang_up;
mod online;
mod pressed;
mod recovery;
mod refusals;
mod scarce;
mod short;
mod soak;
mod streams;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use spore_daemon::{Config, Limits};
use spore_tests::harness::Test;
use spore_tests::http::Http;
use spore_tests::{left, role, tests};
use spore_vmm::pool::Budget;

use crate::image::{Copy, NAME, image};

/// The tests of the group.
pub fn tests() -> Vec<Test> {
    tests! {
        in "daemon::":
        calls:
            a_sandbox_is_made_worked_with_and_deleted,
            many_are_made_at_once_and_forked_and_checkpointed,
            a_call_with_a_key_is_made_once;
        cli:
            the_command_line_does_what_its_page_says;
        streams:
            a_command_is_driven_over_a_websocket,
            clients_that_stop_in_the_middle_are_hung_up_on,
            a_build_tells_what_it_does_and_ends_with_who_wanted_it,
            a_build_whose_daemon_or_vm_is_killed_leaves_nothing;
        hang_up:
            who_hangs_up_ends_what_takes_long_and_who_does_not_is_told_at_the_limit;
        pressed:
            what_can_be_is_given_back_in_order_and_then_work_is_refused_until_it_is_over;
        refusals:
            what_is_wrong_is_refused_with_a_code_and_nothing_is_left,
            a_host_promises_no_more_than_it_may,
            two_daemons_do_not_share_a_directory_or_a_socket;
        recovery:
            sandboxes_outlive_a_killed_daemon_and_one_that_was_stopped,
            a_sandbox_that_nobody_uses_is_ended_and_one_that_is_used_is_not,
            a_sandbox_that_ends_by_itself_or_by_its_time_is_told;
        scarce:
            descriptors_that_run_out_are_told_and_nothing_is_lost;
        short:
            whatever_the_host_lacks_is_told_and_nothing_is_lost;
        online:
            a_place_on_the_network_is_adopted_and_given_back;
        soak:
            clients_have_what_they_were_told_whatever_happens_to_the_host;
    }
}

/// Roles of its processes.
pub fn roles() -> [role::Role; 3] {
    [
        ("daemon", serve),
        ("daemon online", online::host),
        ("short daemon", short::serve),
    ]
}

fn socket(root: &Path) -> PathBuf {
    root.join("d.sock")
}

/// Serves until it is stopped. A file `overcommit` in the store says by how much it promises, `stalled` for how many
/// seconds a client may stop.
pub fn serve(root: &Path) {
    let said = |name: &str| std::fs::read_to_string(root.join(name)).ok();
    let config = Config {
        socket: socket(root),
        data: root.to_owned(),
        // That of the tests, whose process this is not.
        cache: root.parent().unwrap().join("cache"),
        kernel: None,
        network_range: "172.30.0.0/16".parse().unwrap(),
        cgroup: None,
        limits: Limits {
            overcommit: said("overcommit").map_or(4.0, |text| text.parse().unwrap()),
            stalled: Duration::from_secs(said("stalled").map_or(600, |text| text.parse().unwrap())),
            ..Limits::default()
        },
        budget: Budget {
            templates: 2,
            shells_per_template: 1,
            shells: 1,
        },
    };
    spore_daemon::serve(config, || println!("ready")).unwrap();
}

/// What there is but for the store's own notes, which begin with a dot.
fn entries(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// A daemon on a copy of the image.
pub struct Daemon {
    pub http: Http,
    player: Option<role::Player>,
    role: &'static str,
    /// What it is started through.
    command: &'static [&'static str],
    root: PathBuf,
    _copy: Option<Copy>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::on(image().copy())
    }

    pub fn on(copy: Copy) -> Self {
        Self::start_as("daemon", copy)
    }

    /// In one of our [`roles`].
    pub fn start_as(role: &'static str, copy: Copy) -> Self {
        let mut daemon = Self::stopped(copy.store().root());
        daemon.role = role;
        daemon.with(copy)
    }

    /// Started through a command that ends with running what follows it.
    pub fn through(copy: Copy, command: &'static [&'static str]) -> Self {
        let mut daemon = Self::stopped(copy.store().root());
        daemon.command = command;
        daemon.with(copy)
    }

    fn with(mut self, copy: Copy) -> Self {
        self._copy = Some(copy);
        self.again();
        self
    }

    /// On a store that is somebody else's to remove.
    pub fn at(root: &Path) -> Self {
        let mut daemon = Self::stopped(root);
        daemon.again();
        daemon
    }

    fn stopped(root: &Path) -> Self {
        Self {
            http: Http::at(&socket(root)),
            player: None,
            role: "daemon",
            command: &[],
            root: root.to_owned(),
            _copy: None,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts another daemon after the first.
    pub fn again(&mut self) {
        let mut player = match self.command {
            [] => role::start(self.role, self.root()),
            command => role::start_through(command, self.role, self.root()),
        };
        assert_eq!(player.line(), "ready");
        self.player = Some(player);
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.player.as_ref().unwrap().pid()
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        self.player = None;
    }

    /// As systemd stops it.
    pub fn stop(&mut self) {
        let player = self.player.take().unwrap();
        let pid = rustix::process::Pid::from_raw(player.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        player.finish();
    }

    /// A sandbox of the image, with what else is asked for.
    pub fn create(&self, more: Value) -> Value {
        let mut body = json!({"image": NAME});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.http.json("POST /v1/sandboxes", &body).expect(201)
    }

    /// What a shell in a sandbox says.
    pub fn sh(&self, sandbox: &Value, script: &str) -> String {
        let id = sandbox["id"].as_str().unwrap();
        let body = json!({"cmd": ["sh", "-c", script]});
        let result = self
            .http
            .json(&format!("POST /v1/sandboxes/{id}/exec"), &body)
            .expect(200);
        assert_eq!(result["exitCode"], 0, "{script}: {result}");
        result["stdout"].as_str().unwrap().trim().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let root = self.root().to_owned();
        if std::thread::panicking() {
            // Kept sandboxes would outlive the tests.
            self.kill();
            left::vms_using(&root).into_iter().for_each(left::kill_if_there);
            return;
        }
        // What tests left to the daemon ends with this; kept sandboxes would outlive it.
        if self.player.is_some() {
            for sandbox in self.http.call("GET /v1/sandboxes").json()["sandboxes"]
                .as_array()
                .unwrap()
            {
                let id = sandbox["id"].as_str().unwrap();
                self.http.call(&format!("DELETE /v1/sandboxes/{id}")).expect(204);
            }
            self.stop();
        }
        left::soon_nothing(std::time::Duration::from_secs(20), || left::vms_using(&root));
    }
}
