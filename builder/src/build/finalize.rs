//! Phase two: the finished disks, cold-booted at the floor and checkpointed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spore_protocol::{ClientError, ExecRequest, Status};
use spore_snapshot::checkpoint::{CheckpointKind, KernelRecord};
use spore_snapshot::{CheckpointId, Digest};
use spore_vmm::exit::Ended;
use spore_vmm::guest::{Agent, CheckpointPlan, ColdBoot, Guest, GuestError, default_max_mb};
use spore_vmm::process::{VmError, serial};

use super::Variant;
use super::steps::{boot_limit, intact};
use crate::cancel::{Cancel, explain, watch};
use crate::error::BuildError;
use crate::hash::ContentHash;
use crate::host::Host;
use crate::memory::MiB;
use crate::observe::{BuildEvent, Observer};

/// Free page reporting runs two seconds after pages are freed (mm/page_reporting.c).
const REPORTING_DELAY: Duration = Duration::from_millis(2500);
/// The memory of a guest that does not settle is checkpointed as it is.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// What the finished disks are booted with.
pub(super) struct Finalize<'a> {
    pub host: &'a Host,
    /// Of the host's kernel.
    pub kernel: Digest,
    /// What is said of the checkpoint, beside what its guest is known by.
    pub annotations: BTreeMap<String, String>,
    pub kind: CheckpointKind,
    /// What the disk is grown to, where the steps did not do that: there were none.
    pub disk: Option<MiB>,
    pub cancel: &'a Cancel,
}

impl Finalize<'_> {
    /// Cold-boots `layers` as `variant` says, and checkpoints the guest when it is at rest.
    pub(super) fn run(
        &self,
        layers: &[Digest],
        variant: Variant,
        observer: &mut dyn Observer,
    ) -> Result<CheckpointId, BuildError> {
        let result = self.boot_and_checkpoint(layers, variant, observer);
        result.map_err(|error| explain(self.cancel, error))
    }

    fn boot_and_checkpoint(
        &self,
        layers: &[Digest],
        variant: Variant,
        observer: &mut dyn Observer,
    ) -> Result<CheckpointId, BuildError> {
        observer.event(BuildEvent::Finalizing {
            floor_mb: variant.floor_mb,
        });
        let started = Instant::now();
        let store = self.host.store();
        let disk = layers
            .iter()
            .map(|digest| Ok((*digest, store.layer(digest)?)))
            .collect::<Result<_, BuildError>>()?;
        let boot = ColdBoot {
            vcpus: variant.vcpus,
            memory_mb: variant.floor_mb,
            max_memory_mb: default_max_mb().max(variant.floor_mb),
            kernel: self.host.kernel().to_owned(),
            disk,
            durable: false,
        };
        let mut guest = Guest::cold_boot(store, &boot, None)?;
        let _watched = watch(self.cancel, &guest)?;
        let (mut agent, status) = guest
            .wait_agent(boot_limit(variant.floor_mb))
            .map_err(not_booting)?;
        // The build VM looked too; this is the one that counts.
        let intact = intact(&mut agent).map_err(|error| guest.explain(error))?;
        intact.map_err(|what| BuildError::NotIntact { what })?;
        if let Some(disk) = self.disk {
            guest.grow_disk(&mut agent, u64::from(disk.get()))?;
        }
        agent.settle().map_err(|error| guest.explain(error))?;
        warm_up(&mut guest, &mut agent)?;
        drop(agent);
        settle(&guest);
        observer.event(BuildEvent::Settled {
            took: started.elapsed(),
        });

        let started = Instant::now();
        let plan = CheckpointPlan {
            kind: self.kind,
            kernel: KernelRecord {
                release: status.kernel_release.clone(),
                blake3: self.kernel,
                cmdline: spore_vmm::guest::cmdline(),
            },
            annotations: annotations(&status, self.annotations.clone()),
        };
        let (id, _) = guest.checkpoint_timed(store, plan, self.cancel)?;
        let memory_bytes = store.manifest(&id)?.memory.data_bytes;
        observer.event(BuildEvent::Checkpointed {
            took: started.elapsed(),
            memory_bytes,
        });
        Ok(id)
    }
}

/// What an image's checkpoint is annotated with.
pub(super) fn of_content(content: &ContentHash) -> BTreeMap<String, String> {
    BTreeMap::from([("contentHash".to_owned(), content.to_string())])
}

fn annotations(status: &Status, mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let nonce = status
        .boot_nonce
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // Kept only in the guest's memory: a fork that has it was restored, not booted.
    annotations.insert("bootNonce".to_owned(), nonce);
    annotations.insert("monotonicNs".to_owned(), status.monotonic_ns.to_string());
    annotations
}

/// A kernel that boots and finds no agent panics: most likely a step has replaced it.
fn not_booting(error: GuestError) -> BuildError {
    match error {
        GuestError::Vm(VmError::Ended {
            ended: ended @ (Ended::Panic | Ended::Reset),
            console,
        }) => BuildError::NotIntact {
            what: format!("{ended} at boot{}", serial(&console)),
        },
        error => error.into(),
    }
}

/// The pages that running a command touches are in memory in every fork then, not read from its disk
/// first. What the command says does not matter.
fn warm_up(guest: &mut Guest, agent: &mut Agent) -> Result<(), BuildError> {
    match agent.exec_collect(&ExecRequest::new(["true"]), b"") {
        Ok(_) | Err(ClientError::Refused(_)) => Ok(()),
        Err(error) => Err(guest.explain(error).into()),
    }
}

/// Waits until the guest has told us all the memory it does not use.
fn settle(guest: &Guest) {
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut least = guest.resident_bytes();
    let mut since = Instant::now();
    while since.elapsed() < REPORTING_DELAY && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        let now = guest.resident_bytes();
        if now < least {
            (least, since) = (now, Instant::now());
        }
    }
}
