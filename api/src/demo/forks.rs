//! The forks, one after the other: each is made, looked at, grown, filled, shrunk and destroyed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use spore_builder::Host;
use spore_protocol::{ClientError, ExecOutput, ExecRequest};
use spore_snapshot::CheckpointId;
use spore_snapshot::store::Checkpoint;
use spore_vmm::guest::{Agent, Guest, GuestError};

use super::DemoError;
use super::fill;
use super::proofs::{Failed, Proofs};
use super::recipe::Recipe;
use super::report::{ForkReport, millis};
use crate::ui;

const MIB: u64 = 1 << 20;
/// What is written to grown memory unless all of it is to be filled, in MiB.
const WRITTEN_MB: u32 = 256;
/// How far MemTotal may be from what it should be.
const MEM_TOTAL_TOLERANCE: u64 = 2 * MIB;
/// How far a fork's clock may be from the host's.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);
/// No fork is waited for longer, from its making to its agent's first answer.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// No answer is waited for longer: filling takes minutes on a slow host.
const ANSWER_LIMIT: Duration = Duration::from_secs(1200);

/// Makes forks, and knows of the ones before what the next must be compared with.
pub(super) struct Forks<'a> {
    host: &'a Host,
    checkpoint: Checkpoint,
    recipe: &'a Recipe,
    full: bool,
    /// MemTotal at the floor, as the first fork had it.
    at_floor: Option<u64>,
    /// Random numbers that forks have drawn.
    drawn: Vec<String>,
}

/// What the guest of one fork is asked over.
struct Fork {
    guest: Guest,
    agent: Agent,
}

impl Fork {
    fn explain<T>(&mut self, result: Result<T, ClientError>) -> Result<T, GuestError> {
        result.map_err(|error| self.guest.explain(error))
    }

    fn exec(&mut self, request: &ExecRequest) -> Result<ExecOutput, GuestError> {
        let output = self.agent.exec_collect(request, b"");
        self.explain(output)
    }

    /// A file's content and permission bits, or why it cannot be read.
    fn read(&mut self, path: &str) -> Result<Result<(Vec<u8>, u32), String>, GuestError> {
        let mut content = Vec::new();
        match self.agent.read_file(path, &mut content) {
            Ok(info) => Ok(Ok((content, info.mode))),
            Err(ClientError::Refused(why)) => Ok(Err(why.to_string())),
            Err(error) => Err(self.guest.explain(error)),
        }
    }

    /// What a file says on one line, or why it cannot be read.
    fn line(&mut self, path: &str) -> Result<String, GuestError> {
        let read = self.read(path)?;
        Ok(read.map_or_else(
            |why| why,
            |(content, _)| String::from_utf8_lossy(&content).trim().to_owned(),
        ))
    }
}

impl<'a> Forks<'a> {
    /// Forks of `checkpoint`, which was built from `recipe`.
    pub(super) fn new(
        host: &'a Host,
        checkpoint: &CheckpointId,
        recipe: &'a Recipe,
        full: bool,
    ) -> Result<Self, DemoError> {
        Ok(Self {
            host,
            checkpoint: host.store().open_checkpoint(checkpoint)?,
            recipe,
            full,
            at_floor: None,
            drawn: Vec::new(),
        })
    }

    /// One fork that asks for `requested_mb`. One that cannot be made or driven is a proof that does not hold.
    pub(super) fn try_one(&mut self, requested_mb: u32, say: &mut dyn FnMut(&str)) -> ForkReport {
        let mut report = ForkReport {
            requested_mb,
            ..ForkReport::default()
        };
        let mut proofs = Proofs::default();
        let result = self.one(&mut report, &mut proofs, say);
        (report.proofs, report.failed) = proofs.into_parts();
        report.proofs.insert("works".to_owned(), result.is_ok());
        if let Err(error) = result {
            report.failed.push(Failed {
                proof: "works".to_owned(),
                expected: "a fork that can be made and driven".to_owned(),
                found: error.to_string(),
            });
        }
        report
    }

    fn one(
        &mut self,
        report: &mut ForkReport,
        proofs: &mut Proofs,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), GuestError> {
        let started = Instant::now();
        let mut guest = Guest::fork(self.host.store(), &self.checkpoint)?;
        let mut agent = guest.agent(READY_LIMIT)?;
        agent.ping().map_err(|error| guest.explain(error))?;
        report.ready_ms = millis(started.elapsed());
        report.id = guest.id().to_owned();
        say(&format!(
            "  up in {} ms; looking at what was built",
            report.ready_ms
        ));
        let limited = agent.stream().set_read_timeout(Some(ANSWER_LIMIT));
        limited.map_err(|source| GuestError::Host {
            what: guest.console(),
            source,
        })?;

        let mut fork = Fork { guest, agent };
        self.identity(&mut fork, proofs)?;
        self.what_was_built(&mut fork, proofs)?;
        self.memory(&mut fork, report, proofs, say)
    }

    /// Restored, not booted; and yet somebody of its own.
    fn identity(&mut self, fork: &mut Fork, proofs: &mut Proofs) -> Result<(), GuestError> {
        let before = SystemTime::now();
        let status = fork.agent.status();
        let status = fork.explain(status)?;
        let annotations = &self.checkpoint.manifest.annotations;
        let kept = annotations.get("bootNonce").cloned().unwrap_or_default();
        let nonce = status.boot_nonce.iter().map(|byte| format!("{byte:02x}"));
        proofs.equal("nonceInMemory", kept, nonce.collect());

        let clock = UNIX_EPOCH + Duration::from_nanos(status.realtime_ns);
        let right = before - CLOCK_TOLERANCE..SystemTime::now() + CLOCK_TOLERANCE;
        proofs.check("clock", right.contains(&clock), before, clock);

        let id = fork.guest.id().to_owned();
        proofs.equal("hostname", id, fork.line("/proc/sys/kernel/hostname")?);

        let drawn = fork.line("/proc/sys/kernel/random/uuid")?;
        let new = drawn.len() == 36 && !self.drawn.contains(&drawn);
        proofs.check("random", new, "a UUID that no fork before has drawn", &drawn);
        self.drawn.push(drawn);
        Ok(())
    }

    /// Everything that the steps of the build left.
    fn what_was_built(&self, fork: &mut Fork, proofs: &mut Proofs) -> Result<(), GuestError> {
        for file in self.recipe.files() {
            match fork.read(&file.path)? {
                Ok((content, mode)) => {
                    let expected = (&*file.path, String::from_utf8_lossy(&file.content));
                    let found = (&*file.path, String::from_utf8_lossy(&content));
                    proofs.check(file.proof, file.content == content, expected, found);
                    let mode = mode & 0o7777;
                    let expected = file.mode.unwrap_or(mode);
                    proofs.check(
                        file.proof,
                        expected == mode,
                        format_args!("{} of mode {expected:04o}", file.path),
                        format_args!("{mode:04o}"),
                    );
                }
                Err(why) => proofs.check(file.proof, false, &file.path, why),
            }
        }

        let mut names = String::new();
        for (name, _) in self.recipe.env() {
            names += &format!(" \"${name}\"");
        }
        let script = format!("printf '%s\\n' \"$(pwd)\"{names}");
        let output = fork.exec(&ExecRequest::new(["/bin/sh", "-c", &script]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut lines = text.lines();
        proofs.equal("workdir", self.recipe.workdir(), lines.next().unwrap_or_default());
        for (name, value) in self.recipe.env() {
            let found = lines.next().unwrap_or_default();
            proofs.equal("env", (&**name, &**value), (&**name, found));
        }

        let held = fork.line(&format!("{}/held.txt", self.recipe.workdir()))?;
        let (expected, holds) = built_big(&held, self.recipe.builder_mb());
        proofs.check("builtBig", holds, expected, &held);
        Ok(())
    }

    /// Grows the fork, uses what it got, and takes it back.
    fn memory(
        &mut self,
        fork: &mut Fork,
        report: &mut ForkReport,
        proofs: &mut Proofs,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), GuestError> {
        let floor_total = total(fork)?;
        let at_floor = *self.at_floor.get_or_insert(floor_total);
        let floor_mb = self.checkpoint.manifest.floor_mb;
        let requested_mb = report.requested_mb;
        let wanted_mb = requested_mb.max(floor_mb);
        let kept = (u64::from(floor_mb) * MIB).saturating_sub(at_floor);

        let started = Instant::now();
        let granted = fork.guest.resize(&mut fork.agent, requested_mb)?;
        report.grow_ms = millis(started.elapsed());
        report.floor_mb = granted.floor_mb;
        report.granted_mb = granted.granted_mb;
        report.mem_total_mb = granted.mem_total_mb;
        proofs.equal("granted", wanted_mb, granted.granted_mb);
        let right = u64::from(wanted_mb) * MIB - kept;
        proofs.near("memTotal", right, total(fork)?, MEM_TOTAL_TOLERANCE);

        let grown_mb = granted.granted_mb.saturating_sub(granted.floor_mb);
        if grown_mb > 0 {
            say(&format!("  grown by {grown_mb} MiB in {}", took(report.grow_ms)));
            self.fill(fork, grown_mb, report, proofs, say)?;
        }
        report.resident_before_bytes = peak_bytes(fork.guest.pid());

        let started = Instant::now();
        let shrunk = fork.guest.resize(&mut fork.agent, floor_mb)?;
        report.shrink_ms = millis(started.elapsed());
        report.shrunk_mb = shrunk.granted_mb;
        report.resident_after_bytes = fork.guest.resident_bytes();
        proofs.equal("shrunk", floor_mb, shrunk.granted_mb);
        proofs.near("shrunk", floor_total, total(fork)?, MEM_TOTAL_TOLERANCE);
        let given_back = report
            .resident_before_bytes
            .saturating_sub(report.resident_after_bytes);
        let written = u64::from(report.written_mb) * MIB;
        proofs.check(
            "givenBack",
            given_back >= most_of(written),
            format_args!("{written} bytes less resident, or most of them"),
            format_args!("{given_back}"),
        );
        if grown_mb > 0 {
            say(&format!("  shrunk in {}", took(report.shrink_ms)));
        }
        Ok(())
    }

    fn fill(
        &self,
        fork: &mut Fork,
        grown_mb: u32,
        report: &mut ForkReport,
        proofs: &mut Proofs,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), GuestError> {
        let most = grown_mb / 10 * 9;
        let written_mb = if self.full { most } else { WRITTEN_MB.min(most) };
        let seed = report.requested_mb;
        let started = Instant::now();
        let output = fork.exec(&fill::command(written_mb, seed))?;
        report.fill_ms = millis(started.elapsed());
        match fill::parse(&output) {
            Ok(filled) => {
                report.written_mb = written_mb;
                proofs.equal("grownMemory", 0, filled.wrong);
                proofs.equal("grownMemory", fill::checksum(written_mb, seed), filled.sum);
                let taken = filled.free_mb.saturating_sub(filled.full_mb);
                proofs.check(
                    "grownMemory",
                    taken >= most_of(written_mb.into()),
                    format_args!("{written_mb} MiB of it taken, or most of them"),
                    format_args!("{taken}"),
                );
            }
            Err(said) => proofs.check("grownMemory", false, "memory written and read back", said),
        }
        say(&format!(
            "  {written_mb} MiB of it written and read back in {}",
            took(report.fill_ms)
        ));
        Ok(())
    }
}

/// The kernel puts a little of everything elsewhere.
fn most_of(amount: u64) -> u64 {
    amount / 10 * 9
}

fn took(millis: f64) -> String {
    ui::took(Duration::from_secs_f64(millis.max(0.0) / 1e3))
}

/// MemTotal, in bytes.
fn total(fork: &mut Fork) -> Result<u64, GuestError> {
    let report = fork.agent.memory(false);
    Ok(fork.explain(report)?.total_bytes)
}

/// Whether what `hold` said during the build shows that it had the build VM's memory, and what that would be.
fn built_big(said: &str, builder_mb: u32) -> (String, bool) {
    // The kernel keeps a few percent for itself.
    let least = builder_mb / 10 * 9;
    let expected = format!("held 300 MiB at once where MemTotal is {least} to {builder_mb} MiB");
    let total = said
        .strip_prefix("held 300 MiB at once where MemTotal is ")
        .and_then(|rest| rest.strip_suffix(" MiB"))
        .and_then(|number| number.parse::<u32>().ok());
    (
        expected,
        total.is_some_and(|total| (least..=builder_mb).contains(&total)),
    )
}

/// The most of a process's memory that was ever resident, in bytes; 0 when it cannot be read.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    });
    kib.unwrap_or(0u64).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_with_less_memory_is_not_taken_for_a_big_one() {
        let said = "held 300 MiB at once where MemTotal is 1996 MiB";
        assert!(built_big(said, 2048).1);
        assert!(!built_big(said, 4096).1);
        assert!(!built_big(said, 1024).1);
        assert!(!built_big("held 200 MiB at once where MemTotal is 1996 MiB", 2048).1);
        assert!(!built_big("", 2048).1);
    }

    #[test]
    fn a_process_has_had_memory() {
        assert!(peak_bytes(std::process::id()) > 1 << 20);
        assert_eq!(peak_bytes(u32::MAX), 0);
    }
}
