//! Phase one: the steps, in a VM with the memory they need.

use std::time::{Duration, Instant};

use spore_protocol::{ClientError, ExecDefaults, ExecRequest, ExitStatus};
use spore_snapshot::Digest;
use spore_vmm::exit::Ended;
use spore_vmm::guest::{Agent, ColdBoot, Guest, GuestError};
use spore_vmm::process::VmError;

use crate::error::BuildError;
use crate::host::Host;
use crate::manifest::Manifest;
use crate::memory::MiB;
use crate::observe::{BuildEvent, Observer};
use crate::plan::{Action, Defaults, Plan, PlannedStep};

/// How long a booting guest may take to its agent, with a second a GiB for page structures on top.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a guest may take to power off.
const OFF_LIMIT: Duration = Duration::from_secs(120);
/// The last bytes of a step's output that are kept for its error.
const TAIL_BYTES: usize = 8 << 10;
/// The last lines of a step's output that are in its error.
const TAIL_LINES: usize = 20;

/// How long to wait for the agent of a guest that boots with `memory_mb`.
pub(super) fn boot_limit(memory_mb: u32) -> Duration {
    BOOT_LIMIT + Duration::from_secs(10) * (memory_mb / 1024)
}

/// Runs all steps and returns the layers of the finished disk, bottom first.
pub(super) fn run(
    host: &Host,
    manifest: &Manifest,
    plan: &Plan,
    base: Digest,
    observer: &mut dyn Observer,
) -> Result<Vec<Digest>, BuildError> {
    let memory = manifest.builder_memory();
    observer.event(BuildEvent::Booting {
        memory_mb: memory.get(),
    });
    let started = Instant::now();
    let boot = ColdBoot {
        vcpus: 1,
        memory_mb: memory.get(),
        max_memory_mb: memory.get(),
        kernel: host.kernel().to_owned(),
        disk: vec![(base, host.store().layer(&base)?)],
        durable: false,
    };
    let mut guest = Guest::cold_boot(host.store(), &boot)?;
    let (mut agent, _) = guest.wait_agent(boot_limit(memory.get()))?;
    observer.event(BuildEvent::Booted {
        took: started.elapsed(),
    });
    for (step, planned) in plan.steps.iter().enumerate() {
        let started = Instant::now();
        observer.event(BuildEvent::StepStarted {
            step,
            of: plan.steps.len(),
            label: &planned.label,
        });
        let mut runner = Runner {
            guest: &mut guest,
            agent: &mut agent,
            step,
            planned,
            memory,
            observer,
        };
        runner.run()?;
        observer.event(BuildEvent::StepDone {
            step,
            took: started.elapsed(),
        });
    }
    agent.sync().map_err(|error| guest.explain(error))?;
    drop(agent);
    guest.power_off(OFF_LIMIT)?;
    Ok(guest.seal_disk(host.store())?)
}

struct Runner<'a> {
    guest: &'a mut Guest,
    agent: &'a mut Agent,
    step: usize,
    planned: &'a PlannedStep,
    memory: MiB,
    observer: &'a mut dyn Observer,
}

impl Runner<'_> {
    fn run(&mut self) -> Result<(), BuildError> {
        for action in &self.planned.actions {
            self.act(action)?;
        }
        Ok(())
    }

    fn act(&mut self, action: &Action) -> Result<(), BuildError> {
        let label = &self.planned.label;
        let result = match action {
            Action::Exec { argv, env, label } => return self.exec(argv, env, label),
            Action::WriteFile { path, content, mode } => self
                .agent
                .write_file(path.as_str(), Some(mode.bits()), &mut content.bytes())
                .map(drop),
            Action::MakeDir { path, mode } => self.agent.make_dir(path.as_str(), Some(mode.bits())),
            Action::SetDefaults(defaults) => self.agent.set_defaults(&exec_defaults(defaults)),
        };
        match result {
            Ok(()) => Ok(()),
            Err(ClientError::Refused(failure)) => Err(self.failed(label, failure.to_string())),
            Err(error) => Err(self.broken(label, error)),
        }
    }

    fn exec(&mut self, argv: &[String], env: &[(&str, &str)], label: &str) -> Result<(), BuildError> {
        let mut request = ExecRequest::new(argv);
        request.env = env
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut tail = Tail::default();
        let observer = &mut *self.observer;
        let outcome = self.agent.exec(&request, &mut std::io::empty(), &mut |_, bytes| {
            tail.push(bytes);
            observer.event(BuildEvent::Output(bytes));
            Ok(())
        });
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(ClientError::Refused(failure)) => return Err(self.failed(label, failure.to_string())),
            Err(error) => return Err(self.broken(label, error)),
        };
        if outcome.status.success() {
            return Ok(());
        }
        // Any process of the step may have been the victim, and the step the one to report it.
        if outcome.oom_kills > 0 {
            return Err(self.out_of_memory(label));
        }
        let reason = match outcome.status {
            ExitStatus::Code(code) => format!("exit code {code}"),
            ExitStatus::Signal(signal) => format!("killed by signal {signal}"),
            ExitStatus::TimedOut => "time limit".to_owned(),
        };
        Err(self.failed(label, format!("{reason}{}", tail.text())))
    }

    fn failed(&self, label: &str, reason: String) -> BuildError {
        BuildError::StepFailed {
            step: self.step,
            label: label.to_owned(),
            reason,
        }
    }

    fn out_of_memory(&self, label: &str) -> BuildError {
        BuildError::OutOfMemory {
            step: self.step,
            label: label.to_owned(),
            memory: self.memory,
        }
    }

    /// The connection broke. A guest with nothing left to kill panics, and says why on its console.
    fn broken(&mut self, label: &str, error: ClientError) -> BuildError {
        match self.guest.explain(error) {
            GuestError::Vm(VmError::Ended {
                ended: Ended::Panic | Ended::Reset,
                console,
            }) if console.contains("Out of memory") || console.contains("System is deadlocked on memory") => {
                self.out_of_memory(label)
            }
            error => error.into(),
        }
    }
}

fn exec_defaults(defaults: &Defaults) -> ExecDefaults {
    ExecDefaults {
        env: defaults
            .env
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.clone()))
            .collect(),
        workdir: defaults.workdir.as_ref().map(|path| path.as_str().to_owned()),
    }
}

/// The end of a step's output.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..surplus);
    }

    /// Its last lines on lines of their own, or nothing.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..]
            .iter()
            .map(|line| format!("\n  {line}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_output_is_kept() {
        let mut tail = Tail::default();
        for line in 0..10_000 {
            tail.push(format!("line {line}\n").as_bytes());
        }
        let text = tail.text();
        assert_eq!(text.lines().count(), TAIL_LINES + 1);
        assert!(text.ends_with("  line 9999"));
        assert_eq!(Tail::default().text(), "");
    }
}
