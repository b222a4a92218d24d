//! Phase one: the steps, in a VM with the memory they need.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use spore_network::Policy;
use spore_protocol::{ClientError, ExecRequest, ExitStatus, FailureKind};
use spore_snapshot::Digest;
use spore_snapshot::store::StepEntry;
use spore_vmm::exit::Ended;
use spore_vmm::guest::{Agent, ColdBoot, Guest, GuestError};
use spore_vmm::process::VmError;

use super::cache::{self, Known};
use crate::cancel::{explain, watch};
use crate::error::BuildError;
use crate::host::Host;
use crate::manifest::Manifest;
use crate::manifest::StepType;
use crate::memory::MiB;
use crate::observe::{BuildEvent, Observer};
use crate::options::{BuildNetwork, Options};
use crate::plan::{Action, Plan, PlannedStep};
use crate::plugged::Plugged;

/// How long a booting guest may take to its agent, with a second a GiB for page structures on top.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// The last bytes of a step's output that are kept for its error.
const TAIL_BYTES: usize = 32 << 10;
/// The last lines of a step's output that are in its error.
const TAIL_LINES: usize = 100;

/// How long to wait for the agent of a guest that boots with `memory_mb`.
pub(super) fn boot_limit(memory_mb: u32) -> Duration {
    BOOT_LIMIT + Duration::from_secs(10) * (memory_mb / 1024)
}

/// What the steps are run on.
pub(super) struct Phase<'a> {
    pub host: &'a Host,
    pub manifest: &'a Manifest,
    pub plan: &'a Plan,
    pub options: &'a Options,
}

impl Phase<'_> {
    /// Runs the steps whose disk is not known and returns the layers of the finished disk, bottom first.
    pub(super) fn run(&self, base: Digest, observer: &mut dyn Observer) -> Result<Vec<Digest>, BuildError> {
        let (store, steps) = (self.host.store(), &self.plan.steps);
        let known = cache::look(store, self.manifest, base, self.plan.disk, self.options.no_cache)?;
        for (step, planned) in steps.iter().enumerate().take(known.steps) {
            observer.event(BuildEvent::StepCached {
                step,
                of: steps.len(),
                label: &planned.label,
            });
        }
        if known.steps == steps.len() {
            return Ok(known.layers);
        }
        let result = self.run_rest(&known, observer);
        result.map_err(|error| explain(&self.options.cancel, error))
    }

    /// A place on the network for the steps that have to run, if they are to have one.
    fn plug(&self, done: usize, observer: &mut dyn Observer) -> Result<Option<Plugged>, BuildError> {
        let rest = self.plan.steps.iter().skip(done);
        let installs =
            |step: &&PlannedStep| matches!(step.step_type, StepType::AptInstall | StepType::PipInstall);
        let runs = |step: &PlannedStep| {
            step.actions
                .iter()
                .any(|action| matches!(action, Action::Exec { .. }))
        };
        let (policy, needed) = match &self.options.network {
            BuildNetwork::Off | BuildNetwork::To(Policy::None) => return Ok(None),
            BuildNetwork::To(policy) => (policy, true),
            BuildNetwork::IfPossible if !rest.clone().any(runs) => return Ok(None),
            BuildNetwork::IfPossible => (&Policy::Nat, rest.clone().any(|step| installs(&step))),
        };
        match self.host.plug(policy) {
            Ok(plugged) => Ok(plugged),
            Err(error) if needed => Err(error.into()),
            Err(error) => {
                observer.event(BuildEvent::NoNetwork {
                    why: &error.to_string(),
                });
                Ok(None)
            }
        }
    }

    fn run_rest(&self, known: &Known, observer: &mut dyn Observer) -> Result<Vec<Digest>, BuildError> {
        let (store, steps) = (self.host.store(), &self.plan.steps);
        let memory = self.manifest.builder_memory();
        let plugged = self.plug(known.steps, observer)?;
        observer.event(BuildEvent::Booting {
            memory_mb: memory.get(),
        });
        let started = Instant::now();
        let layer = |digest: &Digest| Ok((*digest, store.layer(digest)?));
        let boot = ColdBoot {
            vcpus: 1,
            memory_mb: memory.get(),
            max_memory_mb: memory.get(),
            kernel: self.host.kernel().to_owned(),
            disk: known
                .layers
                .iter()
                .map(layer)
                .collect::<Result<_, BuildError>>()?,
            durable: false,
        };
        let mut guest = Guest::cold_boot(store, &boot, plugged.as_ref().map(Plugged::plug))?;
        let _watched = watch(&self.options.cancel, &guest)?;
        let (mut agent, _) = guest.wait_agent(boot_limit(memory.get()))?;
        if let Some(plugged) = &plugged {
            let network = &plugged.plug().network;
            agent
                .set_network(Some(network))
                .map_err(|error| guest.explain(error))?;
        }
        if let Some(disk) = self.plan.disk {
            guest.grow_disk(&mut agent, u64::from(disk.get()))?;
        }
        observer.event(BuildEvent::Booted {
            took: started.elapsed(),
        });
        let mut layers = known.layers.clone();
        let mut done_once = HashSet::new();
        let mut replaced = None;
        for (step, planned) in steps.iter().enumerate().skip(known.steps) {
            let started = Instant::now();
            observer.event(BuildEvent::StepStarted {
                step,
                of: steps.len(),
                label: &planned.label,
            });
            let mut runner = Runner {
                guest: &mut guest,
                agent: &mut agent,
                step,
                planned,
                memory,
                done_once: &mut done_once,
                deadline: started + self.options.step_limit,
                limit: self.options.step_limit,
                observer,
            };
            runner.run()?;
            let took = started.elapsed();
            // Now, and not by a guest that boots into something else and never answers.
            replaced = match intact(&mut agent).map_err(|error| guest.explain(error))? {
                Ok(()) => None,
                Err(what) => Some(
                    replaced.unwrap_or_else(|| format!("after steps[{step}] ({}) {what}", planned.label)),
                ),
            };
            agent.sync().map_err(|error| guest.explain(error))?;
            layers = guest.freeze_disk(store)?;
            // What no image can boot from is not where another build goes on.
            if let Some(key) = known.keys.get(step).filter(|_| replaced.is_none()) {
                let entry = StepEntry {
                    layers: layers.clone(),
                    label: planned.label.clone(),
                    took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                };
                // A step that is not remembered runs again.
                if let Err(error) = store.put_step(key, &entry) {
                    tracing::warn!(%error, "a step's disk is not kept for other builds");
                }
            }
            observer.event(BuildEvent::StepDone {
                step,
                took: started.elapsed(),
            });
        }
        match replaced {
            None => Ok(layers),
            Some(what) => Err(BuildError::NotIntact { what }),
        }
    }
}

/// Whether the disk still has what an image boots with; if not, what became of it.
pub(super) fn intact(agent: &mut Agent) -> Result<Result<(), String>, ClientError> {
    let integrity = agent.integrity()?;
    if integrity.intact {
        return Ok(Ok(()));
    }
    let files = integrity
        .files
        .iter()
        .filter(|file| file.sha256.as_ref() != Some(&integrity.running_sha256))
        .map(|file| match &file.sha256 {
            Some(_) => format!("{} is another program", file.path),
            None => format!("{} cannot be read", file.path),
        })
        .collect::<Vec<_>>();
    Ok(Err(if files.is_empty() {
        "PID 1 is not the agent".into()
    } else {
        files.join(", ")
    }))
}

struct Runner<'a> {
    guest: &'a mut Guest,
    agent: &'a mut Agent,
    step: usize,
    planned: &'a PlannedStep,
    memory: MiB,
    /// What need not be done again in this VM.
    done_once: &'a mut HashSet<Vec<String>>,
    /// When the step must be over, and how long that is from its start.
    deadline: Instant,
    limit: Duration,
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
            Action::Exec { argv, once: true, .. } if self.done_once.contains(argv) => return Ok(()),
            Action::Exec {
                argv,
                env,
                user,
                label,
                once,
            } => {
                self.exec(argv, env, *user, label)?;
                if *once {
                    self.done_once.insert(argv.clone());
                }
                return Ok(());
            }
            Action::WriteFile { path, content, mode } => self
                .agent
                .write_file(path.as_str(), Some(mode.bits()), &mut content.bytes())
                .map(drop),
            Action::MakeDir { path, mode } => self.agent.make_dir(path.as_str(), Some(mode.bits())),
            Action::SetDefaults(defaults) => self.agent.set_defaults(&defaults.to_agent()),
        };
        match result {
            Ok(()) => Ok(()),
            Err(ClientError::Refused(failure)) if failure.kind == FailureKind::NoSpace => {
                Err(self.disk_full(label, format!("\n  {failure}")))
            }
            Err(ClientError::Refused(failure)) => Err(self.failed(label, failure.to_string())),
            Err(error) => Err(self.broken(label, error)),
        }
    }

    fn exec(
        &mut self,
        argv: &[String],
        env: &[(&str, &str)],
        user: Option<&str>,
        label: &str,
    ) -> Result<(), BuildError> {
        let mut request = ExecRequest::new(argv);
        request.user = user.map(str::to_owned);
        request.env = env
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Not none at all: that would be no limit.
        request.time_limit_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1));
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
        if outcome.oom_kills > 0 || reports_lack_of_memory(&tail.0) {
            return Err(self.out_of_memory(label, outcome.oom_kills > 0, &tail));
        }
        if reports_full_disk(&tail.0) {
            return Err(self.disk_full(label, tail.text()));
        }
        let reason = match outcome.status {
            ExitStatus::Code(code) => format!("exit code {code}"),
            ExitStatus::Signal(signal) => format!("killed by signal {signal}"),
            ExitStatus::TimedOut => format!(
                "it took longer than the {} s that a step may take (--step-timeout)",
                self.limit.as_secs()
            ),
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

    fn out_of_memory(&self, label: &str, killed: bool, tail: &Tail) -> BuildError {
        BuildError::OutOfMemory {
            step: self.step,
            label: label.to_owned(),
            memory: self.memory,
            reached_mb: killed.then(|| victim_mb(&self.guest.console_tail())).flatten(),
            tail: tail.text(),
        }
    }

    fn disk_full(&mut self, label: &str, tail: String) -> BuildError {
        // Asking for what it has only looks.
        let disk = self.guest.disk_bytes();
        let disk = disk.and_then(|bytes| self.guest.grow_disk(self.agent, bytes.div_ceil(1 << 20)));
        match disk {
            Ok(disk) => BuildError::DiskFull {
                step: self.step,
                label: label.to_owned(),
                disk_mb: disk.disk_mb,
                free_mb: disk.free_mb,
                tail,
            },
            Err(error) => error.into(),
        }
    }

    /// The connection broke. A guest with nothing left to kill panics, and says why on its console.
    fn broken(&mut self, label: &str, error: ClientError) -> BuildError {
        match self.guest.explain(error) {
            GuestError::Vm(VmError::Ended {
                ended: Ended::Panic | Ended::Reset,
                console,
            }) if console.contains("Out of memory") || console.contains("System is deadlocked on memory") => {
                self.out_of_memory(label, true, &Tail::default())
            }
            error => error.into(),
        }
    }
}

/// Whether a program that failed said that it could not have memory: the kernel refused it rather than kill anything.
fn reports_lack_of_memory(output: &[u8]) -> bool {
    /// As the C library, C++, Python, the JVM, Node and GCC say it.
    const SAYINGS: [&str; 7] = [
        "Cannot allocate memory",
        "std::bad_alloc",
        "MemoryError",
        "java.lang.OutOfMemoryError",
        "JavaScript heap out of memory",
        "virtual memory exhausted",
        "out of memory allocating",
    ];
    let output = String::from_utf8_lossy(output);
    SAYINGS.iter().any(|saying| output.contains(saying))
}

/// Whether a program that failed said that there was no room for a file.
fn reports_full_disk(output: &[u8]) -> bool {
    /// As the C library says it, and apt, which looks before it downloads.
    const SAYINGS: [&str; 2] = ["No space left on device", "You don't have enough free space in"];
    let output = String::from_utf8_lossy(output);
    SAYINGS.iter().any(|saying| output.contains(saying))
}

/// How much the process had that the kernel killed last, in MiB, from its message (mm/oom_kill.c).
fn victim_mb(console: &str) -> Option<u64> {
    let (_, after) = console.rsplit_once("anon-rss:")?;
    let digits = after.split_once("kB")?.0;
    digits.parse::<u64>().ok().map(|kib| kib >> 10)
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
    fn the_kernels_victim_is_found_on_the_console() {
        let console = "[  9.1] Out of memory: Killed process 41 (awk) total-vm:300000kB, anon-rss:196608kB, \
                       file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:400kB oom_score_adj:0\n/ #";
        assert_eq!(victim_mb(console), Some(192));
        assert_eq!(victim_mb("anon-rss:lots"), None);
        assert_eq!(victim_mb(""), None);
    }

    #[test]
    fn a_program_that_could_not_have_memory_says_so_in_many_ways() {
        assert!(reports_lack_of_memory(
            b"x\nterminate called after throwing an instance of 'std::bad_alloc'\n"
        ));
        assert!(reports_lack_of_memory(b"sh: fork: Cannot allocate memory\n"));
        assert!(!reports_lack_of_memory(b"memory: 12 tests passed\n"));
    }

    #[test]
    fn a_program_that_found_the_disk_full_says_so() {
        assert!(reports_full_disk(
            b"dpkg: error processing archive x.deb (--unpack):\n failed to write (No space left on device)\n"
        ));
        assert!(reports_full_disk(
            b"E: You don't have enough free space in /var/cache/apt/archives/.\n"
        ));
        assert!(!reports_full_disk(b"Filesystem Size Used\n"));
    }

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
