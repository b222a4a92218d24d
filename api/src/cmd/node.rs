//! `spore host`.

use spore_types::{Drain, HostInfo};

use super::Daemon;
use crate::cli::remote::Host as Action;
use crate::failure::Failure;
use crate::ui;

/// Shows the host, after it was told to take new work or none.
pub fn run(daemon: &Daemon, action: Option<&Action>) -> Result<(), Failure> {
    let answer = match action {
        None => daemon.client.get::<HostInfo>("/v1/host")?,
        Some(action) => {
            let draining = matches!(action, Action::Drain);
            daemon.client.post("/v1/host/drain", &Drain { draining })?
        }
    };
    daemon.tell(&answer, |host| match action {
        None => lines(&host)
            .iter()
            .try_for_each(|line| ui::line(format_args!("{line}"))),
        Some(_) => ui::line(format_args!("{}", state(&host))),
    })
}

fn state(host: &HostInfo) -> &'static str {
    if host.draining {
        "draining: no new sandboxes and builds"
    } else {
        "taking work"
    }
}

fn lines(host: &HostInfo) -> Vec<String> {
    let mib = |mb: u64| ui::bytes(mb.saturating_mul(1 << 20));
    let memory = &host.memory;
    let [one, five, fifteen] = host.load;
    let mut rows = vec![
        ("state", state(host).to_owned()),
        (
            "memory",
            format!(
                "{}, {} available, {} kept for the host",
                mib(memory.total_mb),
                mib(memory.available_mb),
                mib(memory.reserve_mb)
            ),
        ),
        (
            "promised",
            format!(
                "{} of {} (overcommit {}), {} of it plugged",
                mib(memory.committed_mb),
                mib(memory.limit_mb),
                memory.overcommit,
                mib(memory.plugged_mb)
            ),
        ),
        ("used", format!("{} by VMs alone", mib(memory.unique_mb))),
        ("largest fit", mib(memory.largest_fit_mb)),
        (
            "sandboxes",
            format!("{} of {}", host.sandboxes, host.max_sandboxes),
        ),
        ("builds", format!("{} of {}", host.builds, host.max_builds)),
        ("commands", format!("{} of {}", host.execs, host.max_execs)),
        (
            "kept warm",
            format!("{} templates, {} shells", host.templates, host.shells),
        ),
        (
            "images",
            format!("{}, checkpoints {}", host.images.len(), host.checkpoints.len()),
        ),
        ("data", ui::harmless(&host.data_dir)),
        (
            "disk",
            format!(
                "{} free of {}",
                ui::bytes(host.disk_free_bytes),
                ui::bytes(host.disk_total_bytes)
            ),
        ),
        (
            "processors",
            format!("{}, load {one:.2} {five:.2} {fifteen:.2}", host.cpus),
        ),
    ];
    if let Some(pressure) = &host.pressure {
        let said = format!(
            "memory {:.1} %, processors {:.1} %, io {:.1} %",
            pressure.memory_some, pressure.cpu_some, pressure.io_some
        );
        rows.push(("pressure", said));
    }
    rows.push(("kvm", host.kvm.clone()));
    rows.push(("confinement", host.confinement.join(", ")));
    rows.push((
        "version",
        format!("{} on Linux {}", host.versions.spore, host.versions.kernel),
    ));
    rows.push(("up", ui::age(host.started_at).replace(" ago", "")));
    rows.iter()
        .map(|(name, value)| format!("{name:<12} {value}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_is_told_in_lines() {
        let host: HostInfo = serde_json::from_value(json!({
            "draining": true,
            "memory": {"totalMB": 24576, "availableMB": 20480, "reserveMB": 1024, "limitMB": 94208,
                       "committedMB": 3072, "pluggedMB": 1024, "uniqueMB": 120, "overcommit": 4.0,
                       "largestFitMB": 16384},
            "cpus": 2, "load": [1.0, 0.5, 0.25], "dataDir": "/data",
            "diskTotalBytes": 1u64 << 40, "diskFreeBytes": 1u64 << 39,
            "sandboxes": 2, "maxSandboxes": 2048, "builds": 0, "maxBuilds": 4,
            "execs": 3, "maxExecs": 1024, "images": ["a"], "checkpoints": ["b", "c"],
            "templates": 1, "shells": 4, "kvm": "hardware", "confinement": ["seccomp", "no cgroups"],
            "versions": {"spore": "0.1.0", "api": "1", "kernel": "6.1"}, "startedAt": 0,
        }))
        .unwrap();
        let lines = lines(&host);
        for expected in [
            "state        draining: no new sandboxes and builds",
            "promised     3.0 GiB of 92.0 GiB (overcommit 4), 1.0 GiB of it plugged",
            "sandboxes    2 of 2048",
            "images       1, checkpoints 2",
            "data         /data",
            "confinement  seccomp, no cgroups",
        ] {
            assert!(
                lines.iter().any(|line| line == expected),
                "{expected}: {lines:#?}"
            );
        }
        assert!(!lines.iter().any(|line| line.starts_with("pressure")));
    }
}
