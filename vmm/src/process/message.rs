//! What a VM process and its owner say to each other.

use std::path::PathBuf;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use spore_protocol::fork_port::Repair;
use spore_protocol::network::Network;
use spore_snapshot::checkpoint::{MemoryRecord, StateRecord};

use crate::clock::Trace;
use crate::confine::Confinement;
use crate::disk::{DiskSpec, StackSpec};
use crate::exit::Ended;
use crate::machine::Identity;
use crate::wake_set::WakeSet;

use super::keep::Token;

/// What a VM process is asked.
///
/// The process opens no files. Those of a request come along with it, in the order they are named in; paths are what
/// errors call them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Make a machine by cold boot and let it run.
    Boot(BootSpec),
    /// Become a template of a checkpoint.
    Load(LoadSpec),
    /// Fork: the child is a template too, and its control stream is the descriptor that comes along. Answered with
    /// [`Reply::Forked`], by the parent.
    Fork,
    /// Give machines made of this template these pages in advance.
    UseWakeSet(WakeSet),
    /// Make the template's machine, one step short of running. Answered with [`Reply::Armed`].
    Arm(ArmSpec),
    /// Let an armed machine run, and tell when it is ready. Answered with [`Reply::Woke`].
    Wake(WakeSpec),
    /// Which pages the machine has touched. The process's page table comes along. Answered with [`Reply::WakeSet`].
    WakeSet,
    /// Write the template's memory and state into the files that come along; after them comes the process's page table.
    /// Answered with [`Reply::Saved`].
    Save(SaveSpec),
    /// Want the guest's next visit to its fork port to be a stop.
    ArmForkPort,
    /// Want no such stop any more, and let the guest go on that has come to it, or does within so many milliseconds.
    LeaveForkPort(u64),
    /// Stop the machine for a moment and fork: the child is a template of that instant. Its control stream,
    /// the file of the machine's next overlay, and that of its present one, open for reading only, come along. Answered with [`Reply::Split`], by the parent, which runs on.
    Split(SplitSpec),
    /// Stop all its threads.
    Pause,
    /// Let a paused machine run.
    Resume,
    /// Seal what splits have frozen of the disk; answered with [`Reply::Sealed`].
    SealFrozen,
    /// Go on with the disk in a new overlay, called this, in the file that comes along (the one it has, open for
    /// reading only, comes after it), and seal what it was until then; answered with [`Reply::Sealed`]. The
    /// guest runs on: to what is sealed it is as if the power had failed, so it should have synced.
    FreezeDisk(PathBuf),
    /// Seal the disk of a machine that has ended; answered with [`Reply::Sealed`].
    SealDisk,
    /// Ask the guest to have this much memory beyond boot RAM, in bytes.
    RequestMemory(u64),
    /// Make the disk this large, in bytes, and tell the guest's driver. Answered with [`Reply::Done`]; that its file
    /// system fills it is the agent's doing.
    GrowDisk(u64),
    /// Sizes and times.
    Stats,
    /// Outlive the owner: listen for the next one on the socket that comes along, bound, and hold the lock that comes
    /// after it. Whoever knows the token is the next. With a machine that is armed: from when the owner has been told
    /// that it woke.
    Keep(Token),
    /// Hold what comes along for the next owner, instead of what was held before, in a process that is kept.
    Hold,
    /// Answered with [`Reply::Done`].
    Ping,
    /// How the process is confined. Answered with [`Reply::Confined`].
    Confinement,
    /// Tell (later, as [`Reply::Ended`]) when the VM ends by itself.
    AwaitEnd,
}

/// What it answers. Only [`Reply::Ended`] may come unasked, after [`Request::AwaitEnd`], and [`Reply::Born`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Done.
    Done,
    /// The first word of a forked process, on its own control stream: by it the kernel says who it is.
    Born,
    /// The process id of the fork.
    Forked(i32),
    /// One step short of running.
    Armed(Trace),
    /// What a fork reported.
    Woke(Woke),
    /// The pages that were touched.
    WakeSet(WakeSet),
    /// The fork, and how long the machine stood still for it.
    Split(Split),
    /// Saved.
    Saved(Box<Saved>),
    /// The numbers of the overlays that are layers of the disk now and were not before, bottom first.
    Sealed(Vec<u32>),
    /// Sizes and times.
    Stats(VmStats),
    /// How the process is confined.
    Confined(Box<Confinement>),
    /// The VM ended by itself.
    Ended(Ended),
    /// It could not be done.
    Failed(Failure),
}

/// The first word of who wants to own a process that outlived its owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// That it may.
    pub token: Token,
}

/// What the process answers to that.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Greeting {
    /// Requests may follow. Its run directory's lock comes along.
    Welcome(Welcome),
    /// It has an owner.
    Owned,
    /// The token is another.
    WrongToken,
}

/// What a new owner must be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// Layers that the machine's overlay lies on.
    pub layers: usize,
    /// The numbers of those which were its overlays themselves, bottom first: the uppermost.
    pub own: Vec<u32>,
}

/// A cold boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BootSpec {
    /// vCPUs, 1 to 16.
    pub vcpus: u8,
    /// Boot RAM, in bytes.
    pub boot_bytes: u64,
    /// Length of the virtio-mem region, in bytes.
    pub hotplug_bytes: u64,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Kernel command line.
    pub cmdline: String,
    /// Root disk: its layers, its overlay. After them come where the serial console is logged, and the socket for clients
    /// of the guest's vsock ports.
    pub disk: DiskSpec,
    /// Its network card, connected to the TAP device whose descriptor comes along.
    pub network: Option<Network>,
}

/// A checkpoint to become a template of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadSpec {
    /// State payload file of a verified checkpoint.
    pub state: PathBuf,
    /// What the checkpoint's manifest says of it.
    pub state_record: StateRecord,
    /// Its memory file.
    pub memory: PathBuf,
    /// Root disk's layers.
    pub disk: StackSpec,
}

/// What a template's machine is connected to on the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmSpec {
    /// Where the root disk's private overlay is. After it come where the serial console is logged, and the socket for
    /// clients of the guest's vsock ports.
    pub overlay: PathBuf,
}

/// Letting an armed machine run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WakeSpec {
    /// Who it is to be. If it is to have a network, the descriptor of the TAP device comes along.
    pub identity: Identity,
    /// How long it may take to become that, in milliseconds.
    pub limit_ms: u64,
}

/// Stopping a machine and forking.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitSpec {
    /// How long to wait at most until it stands at its fork port, in milliseconds.
    pub at_port_ms: u64,
    /// Where the machine's disk goes on.
    pub next_overlay: PathBuf,
}

/// Writing a template to files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SaveSpec {
    /// Where its memory goes.
    pub memory: PathBuf,
    /// Where its state goes.
    pub state: PathBuf,
    /// Resident memory of the process, in bytes: a bound on what is written.
    pub resident_bytes: u64,
}

/// A machine was split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    /// The process id of the fork.
    pub pid: i32,
    /// When the guest was stopped, in monotonic nanoseconds.
    pub stopped_ns: u64,
    /// When its vCPUs were let go on.
    pub resumed_ns: u64,
    /// What happened in between.
    pub trace: Trace,
}

/// What a save made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The memory file.
    pub memory: MemoryRecord,
    /// The state file.
    pub state: StateRecord,
    /// Size of the disk, in bytes.
    pub disk_bytes: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Guest memory held: boot RAM and what is plugged, in bytes.
    pub memory_bytes: u64,
    /// CPU features the guest was shown, one a register.
    pub cpu_features: Vec<String>,
}

/// Sizes and times of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmStats {
    /// Boot RAM, in bytes.
    pub boot_bytes: u64,
    /// Length of the virtio-mem region, in bytes.
    pub region_bytes: u64,
    /// What the guest is asked to have plugged, in bytes.
    pub requested_bytes: u64,
    /// What it has plugged, in bytes.
    pub plugged_bytes: u64,
    /// Size of the root disk, in bytes.
    pub disk_bytes: u64,
    /// Whether the machine stands still because its owner wanted it to.
    pub paused: bool,
}

/// What a fork reported at its fork port. Times are monotonic nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Woke {
    /// When all its state was set, and it was let run (T1).
    pub released_ns: u64,
    /// Its first own act (T2).
    pub woke_ns: Option<u64>,
    /// It is who it should be, or could not become so (T3).
    pub ready_ns: Option<u64>,
    /// The repair that failed.
    pub failed: Option<Repair>,
    /// Why, in the guest's words; empty if it did not say.
    pub why: String,
    /// The steps before.
    pub trace: Trace,
}

impl Woke {
    /// Whether it is who it should be.
    pub fn is_ready(&self) -> bool {
        self.ready_ns.is_some() && self.failed.is_none()
    }
}

/// Why a request failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// For a person.
    pub message: String,
    /// What the operating system said, if that was it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "errno")]
    #[source]
    pub errno: Option<Errno>,
}

impl Failure {
    /// What was being done, before the reason.
    pub(super) fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// An error number on the wire.
mod errno {
    use rustix::io::Errno;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(errno: &Option<Errno>, to: S) -> Result<S::Ok, S::Error> {
        errno.map(Errno::raw_os_error).serialize(to)
    }

    /// # Errors
    /// What the format reports. A number that is none comes to none.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Errno>, D::Error> {
        let number = Option::<i32>::deserialize(from)?;
        // `from_raw_os_error` panics beyond these, and the number is a process's that a guest may have taken over.
        let number = number.filter(|number| (1..4096).contains(number));
        Ok(number.map(Errno::from_raw_os_error))
    }
}

/// Kinds of failure that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// KVM is not usable.
    Kvm,
    /// The kernel file cannot be booted.
    Kernel,
    /// A checkpoint's content is refused.
    Checkpoint,
    /// A disk.
    Disk,
    /// The host ran out of something.
    Host,
    /// The request does not fit the state the VM is in.
    Conflict,
    /// The guest did not do its part in time.
    Guest,
}
