//! Files of sandboxes.

use std::io::{Read, Write};

use spore_types::{DirEntries, DirEntry, EntryKind};

use super::agent::{Cut, ask, connect, explain};
use super::sandbox::Sandbox;
use crate::error::{Error, Result};

/// The longest path, as Linux has it.
const MAX_PATH: usize = 4096;

/// A path in a guest, checked as far as the host can.
///
/// # Errors
/// `invalid_request`.
pub fn path(text: &str) -> Result<&str> {
    let why = match text {
        "" => "it is empty",
        text if !text.starts_with('/') => "it must be absolute",
        text if text.contains('\0') => "it has a NUL",
        text if text.len() >= MAX_PATH => "it is longer than 4095 bytes",
        text => return Ok(text),
    };
    Err(Error::invalid(format!("path: {why}")))
}

/// Permission bits, written in octal.
///
/// # Errors
/// `invalid_request`.
pub fn mode(text: Option<&str>) -> Result<Option<u32>> {
    let Some(text) = text else { return Ok(None) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(Some(mode)),
        _ => Err(Error::invalid("mode: up to four octal digits, for example 0644")),
    }
}

/// Copies a file into `sink`; `begun` is told its permission bits, and given what cuts it short.
///
/// # Errors
/// `guest_refused` also when the guest could not read on half-way.
pub fn read(sandbox: &Sandbox, path: &str, begun: impl FnOnce(u32, Cut), sink: &mut dyn Write) -> Result<()> {
    let (mut agent, cut) = connect(sandbox)?;
    // Of a link this is the link's own; its target's is not worth a second question.
    let stat = agent.stat(path).map_err(|error| explain(sandbox, error))?;
    begun(stat.mode & 0o7777, cut);
    agent
        .read_file(path, sink)
        .map_err(|error| explain(sandbox, error))?;
    Ok(())
}

/// Writes a file: all of `source`, or nothing.
///
/// # Errors
/// `guest_refused`, `cancelled` if the source failed.
pub fn write(
    sandbox: &Sandbox,
    path: &str,
    mode: Option<u32>,
    begun: impl FnOnce(Cut),
    source: &mut dyn Read,
) -> Result<()> {
    let (mut agent, cut) = connect(sandbox)?;
    begun(cut);
    agent
        .write_file(path, mode, source)
        .map_err(|error| explain(sandbox, error))
}

/// Removes a file or directory.
///
/// # Errors
/// `guest_refused`.
pub fn remove(sandbox: &Sandbox, path: &str, recursive: bool) -> Result<()> {
    let (mut agent, _cut) = ask(sandbox)?;
    agent
        .remove(path, recursive)
        .map_err(|error| explain(sandbox, error))
}

/// Makes a directory with its parents.
///
/// # Errors
/// `guest_refused`.
pub fn make_dir(sandbox: &Sandbox, path: &str, mode: Option<u32>) -> Result<()> {
    let (mut agent, _cut) = ask(sandbox)?;
    agent
        .make_dir(path, mode)
        .map_err(|error| explain(sandbox, error))
}

/// What is in a directory.
///
/// # Errors
/// `guest_refused`.
pub fn list(sandbox: &Sandbox, path: &str) -> Result<DirEntries> {
    let (mut agent, _cut) = ask(sandbox)?;
    let found = agent.list_dir(path).map_err(|error| explain(sandbox, error))?;
    let mut entries: Vec<_> = found.into_iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(DirEntries { entries })
}

fn entry(found: spore_protocol::DirEntry) -> DirEntry {
    DirEntry {
        name: found.name,
        kind: match found.kind {
            spore_protocol::EntryKind::File => EntryKind::File,
            spore_protocol::EntryKind::Directory => EntryKind::Directory,
            spore_protocol::EntryKind::Symlink => EntryKind::Symlink,
            spore_protocol::EntryKind::Other => EntryKind::Other,
        },
        size_bytes: found.size_bytes,
        mode: format!("{:04o}", found.mode & 0o7777),
        modified_at: found.modified_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_modes_are_checked() {
        assert!(path("/a b/../c").is_ok());
        for wrong in ["", "a", "../a", "/a\0b", &"/x".repeat(3000)] {
            assert!(path(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(mode(Some("0755")).unwrap(), Some(0o755));
        assert_eq!(mode(None).unwrap(), None);
        for wrong in ["", "9", "17777", "+755", "-1", "rwx"] {
            assert!(mode(Some(wrong)).is_err(), "{wrong:?}");
        }
    }
}
