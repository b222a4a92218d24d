//! `spore create`, `ps`, `resize`, `fork`, `pause`, `resume`, `rm`, `logs`.

use std::collections::BTreeMap;

use serde_json::json;
use spore_network::Policy;
use spore_types::{
    CreateSandbox, CreatedSandbox, ErrorBody, ForkRequest, Forked, Images, NetworkPolicy, Sandbox,
    SandboxState, SandboxUpdate, Sandboxes,
};

use super::Daemon;
use crate::cli::remote::{Create, Fork, Ps};
use crate::client::{ClientError, path};
use crate::failure::Failure;
use crate::{terminal, ui};

/// A network as the daemon is asked for it.
pub fn network(policy: &Policy) -> NetworkPolicy {
    match policy {
        Policy::None => NetworkPolicy::None,
        Policy::Nat => NetworkPolicy::Nat,
        Policy::Allow(list) => NetworkPolicy::Allow(list.entries().iter().map(ToString::to_string).collect()),
    }
}

fn map(pairs: &[(String, String)]) -> BTreeMap<String, String> {
    pairs.iter().cloned().collect()
}

/// Makes sandboxes and prints their ids.
pub fn create(daemon: &Daemon, args: &Create) -> Result<(), Failure> {
    let request = CreateSandbox {
        image: args.image.clone(),
        checkpoint: args.checkpoint.clone(),
        memory_mb: args.memory,
        cpus: args.cpus,
        disk_mb: args.disk,
        env: map(&args.common.env),
        metadata: map(&args.common.metadata),
        timeout_seconds: args.common.timeout,
        idle_timeout_seconds: args.common.idle_timeout,
        network: args.common.network.as_ref().map(network).unwrap_or_default(),
        count: args.count,
        partial: false,
        exec: None,
    };
    if args.count.is_some() {
        let made = daemon.client.post::<Forked>("/v1/sandboxes", &request)?;
        return daemon.tell(&made, |made| told(daemon, &made));
    }
    let made = daemon.client.post::<CreatedSandbox>("/v1/sandboxes", &request)?;
    daemon.tell(&made, |made| told_one(daemon, &made.sandbox))
}

/// Forks a sandbox and prints the forks' ids.
pub fn fork(daemon: &Daemon, args: &Fork) -> Result<(), Failure> {
    let request = ForkRequest {
        count: args.count,
        memory_mb: args.memory,
        env: map(&args.common.env),
        metadata: map(&args.common.metadata),
        timeout_seconds: args.common.timeout,
        idle_timeout_seconds: args.common.idle_timeout,
        network: args.common.network.as_ref().map(network),
        partial: false,
    };
    let made = daemon
        .client
        .post::<Forked>(&path::of_sandbox(&args.id, "fork"), &request)?;
    daemon.tell(&made, |made| told(daemon, &made))
}

fn told(daemon: &Daemon, made: &Forked) -> Result<(), Failure> {
    if let Some(us) = made.paused_us.filter(|_| daemon.verbose) {
        ui::tell(format_args!("it stood still for {}", ui::took(ui::micros(us))));
    }
    for one in &made.sandboxes {
        told_one(daemon, &one.sandbox)?;
    }
    match made.errors.first() {
        Some(ErrorBody { message, .. }) => Err(Failure::internal(message)),
        None => Ok(()),
    }
}

fn told_one(daemon: &Daemon, sandbox: &Sandbox) -> Result<(), Failure> {
    if daemon.verbose {
        say_times(sandbox);
    }
    ui::line(format_args!("{}", sandbox.id))
}

/// How its making went, on standard error.
pub fn say_times(sandbox: &Sandbox) {
    let (times, memory) = (&sandbox.times, &sandbox.memory);
    ui::tell(format_args!(
        "{}: state set (T1) {}, first act (T2) {}, READY {}; {} MiB of {} asked, floor {}",
        sandbox.id,
        ui::took(ui::micros(times.released_us)),
        ui::took(ui::micros(times.woke_us)),
        ui::took(ui::micros(times.ready_us)),
        memory.granted_mb,
        memory.requested_mb,
        memory.floor_mb,
    ));
}

/// Lists sandboxes.
pub fn list(daemon: &Daemon, args: &Ps) -> Result<(), Failure> {
    let selectors = args
        .metadata
        .iter()
        .map(|(key, value)| format!("metadata.{}={}", path::escape(key), path::escape(value)));
    let query = selectors.collect::<Vec<_>>().join("&");
    let answer = daemon
        .client
        .get::<Sandboxes>(&format!("/v1/sandboxes?{query}"))?;
    daemon.tell(&answer, |all| {
        if args.quiet {
            return all
                .sandboxes
                .iter()
                .try_for_each(|sandbox| ui::line(format_args!("{}", sandbox.id)));
        }
        let names = Names::new(daemon)?;
        let rows: Vec<_> = all.sandboxes.iter().map(|sandbox| row(sandbox, &names)).collect();
        ui::table(
            &[
                "ID", "IMAGE", "STATE", "MEMORY", "CPUS", "NETWORK", "AGE", "EXPIRES",
            ],
            &rows,
        )
    })
}

fn row(sandbox: &Sandbox, names: &Names) -> Vec<String> {
    vec![
        sandbox.id.clone(),
        names.origin(sandbox),
        match sandbox.state {
            SandboxState::Running => "running".to_owned(),
            SandboxState::Paused => "paused".to_owned(),
        },
        format!("{}/{} MiB", sandbox.memory.granted_mb, sandbox.memory.max_mb),
        sandbox.cpus.to_string(),
        match &sandbox.network.policy {
            NetworkPolicy::None => "-".to_owned(),
            policy => {
                let kind = if *policy == NetworkPolicy::Nat {
                    "nat"
                } else {
                    "allow"
                };
                match &sandbox.network.address {
                    Some(address) => format!("{kind} {address}"),
                    None => kind.to_owned(),
                }
            }
        },
        ui::age(sandbox.created_at),
        sandbox.expires_at.map_or_else(|| "-".to_owned(), ui::until),
    ]
}

/// The names that images have now, by id.
pub struct Names(BTreeMap<String, String>);

impl Names {
    /// As the daemon knows them.
    pub fn new(daemon: &Daemon) -> Result<Self, Failure> {
        let images = daemon.client.get::<Images>("/v1/images")?.value()?.images;
        let named = images.into_iter().filter_map(|image| {
            let name = image.names.into_iter().next()?;
            Some((image.id, name))
        });
        Ok(Self(named.collect()))
    }

    /// What a sandbox was made of, for people.
    pub fn origin(&self, sandbox: &Sandbox) -> String {
        match (&sandbox.image, &sandbox.checkpoint) {
            (Some(image), _) => self
                .0
                .get(image)
                .cloned()
                .unwrap_or_else(|| ui::short(image).to_owned()),
            (None, Some(checkpoint)) => format!("checkpoint {}", ui::short(checkpoint)),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Gives it other memory.
pub fn resize(daemon: &Daemon, id: &str, memory_mb: u32) -> Result<(), Failure> {
    let update = SandboxUpdate {
        memory_mb: Some(memory_mb),
        ..SandboxUpdate::default()
    };
    let answer = daemon.client.patch::<Sandbox>(&path::sandbox(id), &update)?;
    daemon.tell(&answer, |sandbox| {
        ui::line(format_args!("{} MiB", sandbox.memory.granted_mb))
    })
}

/// Pauses or resumes it.
pub fn act(daemon: &Daemon, id: &str, what: &str) -> Result<(), Failure> {
    let answer = daemon.client.act::<Sandbox>(&path::of_sandbox(id, what))?;
    daemon.tell(&answer, |sandbox| ui::line(format_args!("{}", sandbox.id)))
}

/// Ends sandboxes. One that cannot be ended keeps the others from nothing.
pub fn remove(daemon: &Daemon, ids: &[String], all: bool) -> Result<(), Failure> {
    let ids = if all {
        let answer = daemon.client.get::<Sandboxes>("/v1/sandboxes")?.value()?;
        answer.sandboxes.into_iter().map(|sandbox| sandbox.id).collect()
    } else {
        ids.to_vec()
    };
    each(daemon, &ids, |id| {
        match daemon.client.delete(&path::sandbox(id)) {
            // Its time ran out between the list and now.
            Err(ClientError::Refused(refusal)) if all && refusal.code == "not_found" => Ok(()),
            done => done,
        }
    })
}

/// Does something to each, says which it was done to, and fails with the first failure after all of them.
pub fn each(
    daemon: &Daemon,
    names: &[String],
    remove: impl Fn(&str) -> Result<(), ClientError>,
) -> Result<(), Failure> {
    let mut removed = Vec::new();
    let mut failed: Option<Failure> = None;
    for name in names {
        match remove(name) {
            Ok(()) => {
                removed.push(name.as_str());
                if !daemon.json {
                    ui::line(format_args!("{name}"))?;
                }
            }
            // There is no daemon: what is true of one is true of all.
            Err(error @ ClientError::NoDaemon(_)) => return Err(error.into()),
            Err(error) => {
                if let Some(earlier) = failed.replace(error.into()) {
                    earlier.report(daemon.json);
                }
            }
        }
    }
    if daemon.json {
        ui::line(format_args!("{}", json!({"removed": removed})))?;
    }
    failed.map_or(Ok(()), Err)
}

/// Prints the end of its console.
pub fn logs(daemon: &Daemon, id: &str) -> Result<(), Failure> {
    let text = daemon.client.get::<()>(&path::of_sandbox(id, "logs"))?.text;
    if daemon.json {
        return ui::line(format_args!("{}", json!({"logs": text})));
    }
    // What a guest wrote must not drive the terminal of who reads it.
    let tame = terminal::is_one(std::io::stdout());
    text.lines().try_for_each(|line| match tame {
        true => ui::line(format_args!("{}", ui::harmless(line))),
        false => ui::line(format_args!("{line}")),
    })
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// A sandbox as a daemon describes it.
    pub fn sandbox(change: serde_json::Value) -> Sandbox {
        let mut shown = json!({
            "id": "sb1", "state": "running", "image": "0123456789abcdef", "origin": "fork",
            "memory": {"floorMB": 1024, "requestedMB": 2048, "grantedMB": 2048, "maxMB": 16384},
            "cpus": 2, "network": {"policy": "none"}, "metadata": {}, "createdAt": 0, "lastUsedAt": 0,
            "times": {"releasedUs": 1, "wokeUs": 2, "readyUs": 3}, "somethingNewer": true,
        });
        for (key, value) in change.as_object().unwrap() {
            shown[key] = value.clone();
        }
        serde_json::from_value(shown).unwrap()
    }

    fn names() -> Names {
        Names(BTreeMap::from([("ffff".to_owned(), "hello".to_owned())]))
    }

    #[test]
    fn a_row_says_what_a_sandbox_is() {
        let row = row(&sandbox(json!({})), &names());
        assert_eq!(
            row[..6],
            ["sb1", "0123456789ab", "running", "2048/16384 MiB", "2", "-"]
        );
        assert!(row[6].ends_with("d ago"));
        assert_eq!(row[7], "-");
    }

    #[test]
    fn names_are_shown_where_there_are_some() {
        assert_eq!(names().origin(&sandbox(json!({"image": "ffff"}))), "hello");
        let of_checkpoint = sandbox(json!({"image": null, "checkpoint": "0123456789abcdef"}));
        assert_eq!(names().origin(&of_checkpoint), "checkpoint 0123456789ab");
        assert_eq!(names().origin(&sandbox(json!({"image": null}))), "-");
    }

    #[test]
    fn a_network_is_shown_with_its_address() {
        let of = |policy| {
            let network = json!({"policy": policy, "address": "172.30.0.2"});
            row(
                &sandbox(json!({"network": network, "state": "paused", "expiresAt": 1})),
                &names(),
            )
        };
        let nat = of(json!("nat"));
        assert_eq!(
            (nat[2].as_str(), nat[5].as_str(), nat[7].as_str()),
            ("paused", "nat 172.30.0.2", "in 0s")
        );
        assert_eq!(of(json!({"allow": ["example.com:443"]}))[5], "allow 172.30.0.2");
    }

    #[test]
    fn a_list_of_what_may_be_reached_goes_to_the_daemon_as_it_was_written() {
        let policy = crate::network::parse("198.51.100.0/24,example.com:443").unwrap();
        let expected = ["198.51.100.0/24".to_owned(), "example.com:443".to_owned()];
        assert_eq!(network(&policy), NetworkPolicy::Allow(expected.to_vec()));
    }
}
