//! Limits of a VM process (setrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors: the layers of a disk, and a connection to the guest each.
const DESCRIPTORS: u64 = 4096;
/// The largest file, in bytes: a disk or a checkpoint's memory, of 1 TiB each, and something to spare.
const FILE: u64 = 2 << 40;

pub(super) fn apply() -> Result<(), String> {
    for (what, resource, most) in [
        ("core dumps", Resource::Core, 0),
        ("descriptors", Resource::Nofile, DESCRIPTORS),
        ("file sizes", Resource::Fsize, FILE),
    ] {
        // Lower is fine.
        let now = getrlimit(resource);
        let to = now.maximum.map_or(most, |maximum| maximum.min(most));
        let to = Rlimit {
            current: Some(to),
            maximum: Some(to),
        };
        setrlimit(resource, to).map_err(|error| format!("the limit of {what}: {error}"))?;
    }
    Ok(())
}
