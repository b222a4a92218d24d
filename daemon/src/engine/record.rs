//! What the daemon writes down of a sandbox, beside its VM's files, for the daemon after it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sandbox::{Changing, Fixed, Sandbox};

/// The form of the record. One of another form is not read.
const VERSION: u32 = 1;
/// The longest record, in bytes: metadata and environment are bounded, so none is longer.
const MAX_RECORD: u64 = 4 << 20;
const FILE: &str = "sandbox.json";

/// A sandbox on paper.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// What does not change.
    pub fixed: Fixed,
    /// What does.
    pub changing: Changing,
}

fn place(run: &Path) -> PathBuf {
    run.join(FILE)
}

impl Record {
    /// Of a sandbox as it is now.
    pub fn of(sandbox: &Sandbox) -> Self {
        Self {
            version: VERSION,
            fixed: sandbox.fixed.clone(),
            changing: sandbox.changing().clone(),
        }
    }

    /// Makes the record of a shell: that of nobody yet.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn of_nobody(run: &Path) -> std::io::Result<()> {
        std::fs::File::create_new(place(run)).map(drop)
    }

    /// Writes the first of a sandbox, which nobody has been told of, over that of nobody. Half of it may be there if
    /// this process ends.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write_first(&self, run: &Path) -> std::io::Result<()> {
        // Not truncated: it is empty, and ext4 would begin to write back what is closed after that (auto_da_alloc).
        let mut file = std::fs::File::options();
        let mut file = file.write(true).create(true).truncate(false).open(place(run))?;
        file.write_all(&serde_json::to_vec(self)?)
    }

    /// Writes it into a run directory, whole or not at all. Not synced: no VM survives the end of the host.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, run: &Path) -> std::io::Result<()> {
        let new = run.join("sandbox.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, place(run))
    }

    /// Reads that of a run directory; `None` if there is none, or that of nobody.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn read(run: &Path) -> Result<Option<Self>, String> {
        let mut bytes = Vec::new();
        match std::fs::File::open(place(run)).and_then(|file| file.take(MAX_RECORD).read_to_end(&mut bytes)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        }
        let record: Self = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!(
                "its record has version {}, not {VERSION}",
                record.version
            ));
        }
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_damaged_or_of_another_version_is_refused() {
        let run = tempfile::tempdir().unwrap();
        assert!(Record::read(run.path()).unwrap().is_none());
        Record::of_nobody(run.path()).unwrap();
        assert!(Record::read(run.path()).unwrap().is_none());
        for wrong in [" ", "{", r#"{"version":2}"#] {
            std::fs::write(run.path().join(FILE), wrong).unwrap();
            assert!(Record::read(run.path()).is_err(), "{wrong}");
        }
    }
}
