//! What every exec starts from: a small JSON file, read once and kept.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use spore_protocol::{ExecDefaults, Failure, FailureKind};

use crate::files::Replacement;
use crate::sys::lock;

/// The defaults and where they are kept.
#[derive(Debug)]
pub struct Defaults {
    file: PathBuf,
    current: Mutex<Arc<ExecDefaults>>,
}

impl Defaults {
    /// Reads the defaults. A missing file is empty defaults; a broken one too, with a word on the
    /// console: the guest must come up.
    pub fn load(file: PathBuf) -> Self {
        let current = match fs::read(&file) {
            Ok(json) => serde_json::from_slice(&json)
                .map_err(|error| error.to_string())
                .and_then(|defaults: ExecDefaults| {
                    check(&defaults).map_err(|failure| failure.message)?;
                    Ok(defaults)
                }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ExecDefaults::default()),
            Err(error) => Err(error.to_string()),
        };
        let current = current.unwrap_or_else(|reason| {
            eprintln!("spore-agent: {}: {reason}; ignored", file.display());
            ExecDefaults::default()
        });
        Self {
            file,
            current: Mutex::new(Arc::new(current)),
        }
    }

    /// The current defaults.
    pub fn get(&self) -> Arc<ExecDefaults> {
        Arc::clone(&lock(&self.current))
    }

    /// Replaces them, first on disk, where they are durable when this returns.
    pub fn set(&self, defaults: ExecDefaults) -> Result<(), Failure> {
        check(&defaults)?;
        let json = serde_json::to_vec_pretty(&defaults)
            .map_err(|error| Failure::new(FailureKind::Io, error.to_string()))?;
        // Held during the write, so that memory and disk change in the same order.
        let mut current = lock(&self.current);
        let mut file = Replacement::begin(&self.file, Some(0o644))?;
        file.write(&json)?;
        file.sync()?;
        file.commit()?;
        *current = Arc::new(defaults);
        Ok(())
    }
}

fn check(defaults: &ExecDefaults) -> Result<(), Failure> {
    check_env(&defaults.env)?;
    defaults.workdir.as_deref().map_or(Ok(()), check_workdir)
}

/// Whether these can be environment variables.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), Failure> {
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(Failure::new(
                FailureKind::InvalidArgument,
                format!(
                    "environment variable {key:?}: its name must not be empty or have '=', and neither NUL"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether this can be a working directory; it need not exist.
pub fn check_workdir(path: &str) -> Result<(), Failure> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::InvalidArgument,
        format!("working directory {path:?} is not an absolute path"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ExecDefaults {
        ExecDefaults {
            env: BTreeMap::from([("A".into(), "1".into())]),
            workdir: Some("/srv".into()),
        }
    }

    #[test]
    fn what_was_set_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("etc/exec.json");
        Defaults::load(file.clone()).set(sample()).unwrap();
        assert_eq!(*Defaults::load(file).get(), sample());
    }

    #[test]
    fn bad_defaults_are_refused_and_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let defaults = Defaults::load(directory.path().join("exec.json"));
        defaults.set(sample()).unwrap();
        for bad in [
            ExecDefaults {
                workdir: Some("relative".into()),
                ..sample()
            },
            ExecDefaults {
                env: BTreeMap::from([("A=B".into(), String::new())]),
                ..sample()
            },
        ] {
            assert_eq!(defaults.set(bad).unwrap_err().kind, FailureKind::InvalidArgument);
        }
        assert_eq!(*defaults.get(), sample());
    }

    #[test]
    fn a_broken_file_does_not_keep_the_guest_down() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("exec.json");
        fs::write(&file, "{").unwrap();
        assert_eq!(*Defaults::load(file).get(), ExecDefaults::default());
    }
}
