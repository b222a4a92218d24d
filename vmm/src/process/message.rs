//! What a VM process and its owner say to each other: a length (`u32`, little-endian) and JSON.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spore_protocol::fork_port::Repair;
use spore_snapshot::checkpoint::{MemoryRecord, StateRecord};

use crate::disk::DiskSpec;
use crate::exit::Ended;
use crate::machine::Identity;

/// Largest message, in bytes.
const MAX_MESSAGE: u32 = 16 << 20;

/// What a VM process is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Make a machine by cold boot and let it run.
    Boot(BootSpec),
    /// Make a machine from a checkpoint; it stands still.
    Restore(RestoreSpec),
    /// Let it run. A machine that was saved at its fork port wakes as this.
    Resume {
        /// Who it is to be.
        identity: Identity,
    },
    /// Want the guest's next visit to its fork port to be a stop.
    ArmForkPort,
    /// Wait until it stands there and stop the machine, at most so many milliseconds.
    PauseAtForkPort(u64),
    /// Wait until a fork has said it is ready, at most so many milliseconds.
    AwaitReady(u64),
    /// Stop all its threads.
    Pause,
    /// Write memory and state of the paused machine into a directory and seal its disk.
    Save(SaveSpec),
    /// Seal the disk of a machine that has ended; answered with [`Reply::Sealed`].
    SealDisk,
    /// Ask the guest to have this much memory beyond boot RAM, in bytes.
    RequestMemory(u64),
    /// Sizes and times.
    Stats,
    /// Tell (later, as [`Reply::Ended`]) when the VM ends by itself.
    AwaitEnd,
}

/// What it answers. Only [`Reply::Ended`] may come unasked, after [`Request::AwaitEnd`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Done.
    Done,
    /// Saved.
    Saved(Box<Saved>),
    /// Files that are layers of the disk now and were not before, bottom first.
    Sealed(Vec<PathBuf>),
    /// What a fork reported.
    Woke(Woke),
    /// Sizes and times.
    Stats(VmStats),
    /// The VM ended by itself.
    Ended(Ended),
    /// It could not be done.
    Failed(Failure),
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
    /// Root disk.
    pub disk: DiskSpec,
    /// Where the serial console is logged.
    pub console: PathBuf,
    /// Unix socket for clients of the guest's vsock ports.
    pub vsock: PathBuf,
}

/// A restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// State payload file of a verified checkpoint.
    pub state: PathBuf,
    /// What the checkpoint's manifest says of it.
    pub state_record: StateRecord,
    /// Its memory file.
    pub memory: PathBuf,
    /// Root disk.
    pub disk: DiskSpec,
    /// Where the serial console is logged.
    pub console: PathBuf,
    /// Unix socket for clients of the guest's vsock ports.
    pub vsock: PathBuf,
}

/// A save.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SaveSpec {
    /// Where `memory` and `state` are made.
    pub directory: PathBuf,
    /// Where the disk goes on: the overlay until now becomes a layer.
    pub next_overlay: PathBuf,
}

/// What a save made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// The memory file.
    pub memory: MemoryRecord,
    /// The state file.
    pub state: StateRecord,
    /// Files that are layers of the disk now and were not before, bottom first.
    pub layers: Vec<PathBuf>,
    /// Size of the disk, in bytes.
    pub disk_bytes: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Guest memory held: boot RAM and what is plugged, in bytes.
    pub memory_bytes: u64,
    /// CPU features the guest was shown, one a register.
    pub cpu_features: Vec<String>,
    /// How long the machine stood still for this, in microseconds.
    pub paused_us: u64,
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
    /// Time from the request to the machine ready to run, in microseconds.
    pub prepared_us: u64,
}

/// What a fork reported at its fork port; times in microseconds since it was let run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Woke {
    /// The machine was saved at its fork port; everything else is absent if not.
    pub at_port: bool,
    /// Its first own act (T2).
    pub woke_us: Option<u64>,
    /// It is who it should be, or could not become so.
    pub ready_us: Option<u64>,
    /// The repair that failed.
    pub failed: Option<Repair>,
    /// Why, in the guest's words; empty if it did not say.
    pub why: String,
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

/// Writes one message.
///
/// # Errors
/// What the stream reports.
pub fn send<T: Serialize>(mut stream: impl Write, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other("message too large"))?;
    let mut framed = length.to_le_bytes().to_vec();
    framed.extend(body);
    stream.write_all(&framed)
}

/// Reads one message; `None` when the stream ended between two.
///
/// # Errors
/// What the stream reports, or a message that is too large or malformed.
pub fn receive<T: DeserializeOwned>(mut stream: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("message too large"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    serde_json::from_slice(&body).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_the_end_is_the_end() {
        let mut wire = Vec::new();
        send(&mut wire, &Request::RequestMemory(7)).unwrap();
        let mut stream = &wire[..];
        assert!(matches!(
            receive(&mut stream).unwrap(),
            Some(Request::RequestMemory(7))
        ));
        assert!(receive::<Request>(&mut stream).unwrap().is_none());
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(receive::<Request>(&[0xFF; 8][..]).is_err());
        assert!(receive::<Request>(&[2, 0, 0, 0, b'{', b'}'][..]).is_err());
    }
}
