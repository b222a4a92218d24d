//! What came of it, as `--json` prints it. Units are in the names.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::proofs::Failed;

/// The whole demonstration.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The build with too little memory.
    pub oom: OomReport,
    /// The build phase.
    pub build: BuildReport,
    /// The finalize phase.
    pub finalize: FinalizeReport,
    /// The forks, in the order they were made.
    pub forks: Vec<ForkReport>,
    /// What was left in the end, one thing an entry.
    pub leftovers: Vec<String>,
    /// Whether every proof held and nothing was left.
    pub ok: bool,
}

impl Report {
    /// Whether every proof held and nothing was left.
    pub(super) fn all_held(&self) -> bool {
        self.oom.as_expected
            && self.leftovers.is_empty()
            && !self.forks.is_empty()
            && self.forks.iter().all(|fork| fork.failed.is_empty())
    }
}

/// The build with too little memory.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OomReport {
    /// What the build VM had.
    #[serde(rename = "builderMemoryMB")]
    pub builder_memory_mb: u32,
    /// How long it took to fail.
    pub seconds: f64,
    /// How it ended.
    pub error: String,
    /// Whether that is running out of memory, with the field to raise in the message.
    pub as_expected: bool,
}

/// The build phase.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildReport {
    /// How long it took.
    pub seconds: f64,
    /// What the build VM had.
    #[serde(rename = "builderMemoryMB")]
    pub builder_memory_mb: u32,
    /// The manifest's content hash.
    pub content_hash: String,
}

/// The finalize phase.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FinalizeReport {
    /// How long it took.
    pub seconds: f64,
    /// Memory at rest.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// What of that was not zero, and so is in the checkpoint's memory file.
    pub memory_file_bytes: u64,
}

/// One fork.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForkReport {
    /// Its id, which is its host name.
    pub id: String,
    /// What it asked for.
    #[serde(rename = "requestedMB")]
    pub requested_mb: u32,
    /// The least it can have.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// What it got.
    #[serde(rename = "grantedMB")]
    pub granted_mb: u32,
    /// MemTotal in the guest then.
    #[serde(rename = "memTotalMB")]
    pub mem_total_mb: u32,
    /// From asking for a fork to its agent's first answer.
    pub ready_ms: f64,
    /// From asking for memory to the guest showing it.
    pub grow_ms: f64,
    /// What was written to grown memory, and read back.
    #[serde(rename = "writtenMB")]
    pub written_mb: u32,
    /// How long writing and reading took.
    pub fill_ms: f64,
    /// What it had after shrinking.
    #[serde(rename = "shrunkMB")]
    pub shrunk_mb: u32,
    /// How long shrinking took.
    pub shrink_ms: f64,
    /// The most of the VM process's memory that was resident.
    pub resident_before_bytes: u64,
    /// What was resident after shrinking.
    pub resident_after_bytes: u64,
    /// Whether each proof held.
    pub proofs: BTreeMap<String, bool>,
    /// Of those that did not hold, what was expected and found.
    pub failed: Vec<Failed>,
}

/// To a thousandth of a second.
pub(super) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

/// To a microsecond.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report {
            oom: OomReport {
                as_expected: true,
                ..OomReport::default()
            },
            forks: vec![ForkReport::default()],
            ..Report::default()
        }
    }

    #[test]
    fn a_proof_that_does_not_hold_or_a_leftover_is_not_ok() {
        assert!(good().all_held());
        let mut report = good();
        report.oom.as_expected = false;
        assert!(!report.all_held());
        let mut report = good();
        report.leftovers.push("mount /x".to_owned());
        assert!(!report.all_held());
        let mut report = good();
        report.forks[0].failed.push(Failed {
            proof: "nonce".to_owned(),
            expected: "1".to_owned(),
            found: "2".to_owned(),
        });
        assert!(!report.all_held());
        assert!(!Report::default().all_held(), "no fork, no proof");
    }

    #[test]
    fn the_names_are_those_that_programs_know() {
        let json = serde_json::to_value(good()).unwrap();
        let has = |value: &serde_json::Value, names: &[&str]| {
            for name in names {
                assert!(value.get(name).is_some(), "{name} in {value}");
            }
        };
        has(&json, &["oom", "build", "finalize", "forks", "leftovers", "ok"]);
        has(&json["oom"], &["builderMemoryMB", "error"]);
        has(&json["build"], &["seconds", "builderMemoryMB", "contentHash"]);
        has(&json["finalize"], &["seconds", "floorMB", "memoryFileBytes"]);
        let fork = [
            "requestedMB",
            "floorMB",
            "grantedMB",
            "memTotalMB",
            "readyMs",
            "growMs",
            "shrunkMB",
            "residentBeforeBytes",
            "residentAfterBytes",
            "proofs",
        ];
        has(&json["forks"][0], &fork);
    }
}
