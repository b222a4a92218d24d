//! What every exec starts from: a small JSON file, read once and kept, and over it what this fork was
//! given, which is kept in memory only: it goes on into forks of the fork, and into no image.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use spore_protocol::{ExecDefaults, Failure, FailureKind, fork_port};

use crate::files::Replacement;
use crate::sys::lock;

/// The defaults and where they are kept.
#[derive(Debug)]
pub struct Defaults {
    file: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    /// As the file has them.
    image: Arc<ExecDefaults>,
    /// What this fork was given.
    fork: BTreeMap<String, String>,
    /// Both.
    merged: Arc<ExecDefaults>,
}

impl Current {
    fn merge(&mut self) {
        let mut merged = (*self.image).clone();
        merged.env.extend(self.fork.clone());
        self.merged = Arc::new(merged);
    }
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
        let image = Arc::new(current);
        Self {
            file,
            current: Mutex::new(Current {
                merged: Arc::clone(&image),
                image,
                fork: BTreeMap::new(),
            }),
        }
    }

    /// The image's defaults.
    pub fn get(&self) -> Arc<ExecDefaults> {
        Arc::clone(&lock(&self.current).image)
    }

    /// What an exec starts from: the image's defaults and over them what this fork was given.
    pub fn for_exec(&self) -> Arc<ExecDefaults> {
        Arc::clone(&lock(&self.current).merged)
    }

    /// Gives this fork an environment, over what the one it is a fork of was given.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn give(&self, env: BTreeMap<String, String>) -> Result<(), Failure> {
        if env.is_empty() {
            return Ok(());
        }
        check_env(&env)?;
        let mut current = lock(&self.current);
        current.fork.extend(env);
        current.merge();
        Ok(())
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
        current.image = Arc::new(defaults);
        current.merge();
        Ok(())
    }
}

fn check(defaults: &ExecDefaults) -> Result<(), Failure> {
    check_env(&defaults.env)?;
    // Whether there is such a user shows when somebody is to become it.
    if defaults.user.as_deref() == Some("") || defaults.command.iter().any(|word| word.contains('\0')) {
        return Err(Failure::new(
            FailureKind::InvalidArgument,
            "a user without a name, or a NUL in a command",
        ));
    }
    defaults.workdir.as_deref().map_or(Ok(()), check_workdir)
}

/// Whether these can be environment variables.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), Failure> {
    fork_port::check_env(env).map_err(|error| Failure::new(FailureKind::InvalidArgument, error.to_string()))
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
            user: Some("app:media".into()),
            command: vec!["/bin/x".into()],
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
    fn what_a_fork_is_given_goes_over_the_images_defaults_and_on_into_its_forks() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("exec.json");
        let defaults = Defaults::load(file.clone());
        let env = |pairs: &[(&str, &str)]| {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect::<BTreeMap<_, _>>()
        };
        defaults.set(sample()).unwrap();
        defaults.give(env(&[("A", "fork"), ("B", "fork")])).unwrap();
        defaults
            .give(env(&[("B", "its fork"), ("C", "its fork")]))
            .unwrap();
        assert!(defaults.give(env(&[("A=", "")])).is_err());
        let expected = env(&[("A", "fork"), ("B", "its fork"), ("C", "its fork")]);
        assert_eq!(defaults.for_exec().env, expected);
        assert_eq!(defaults.for_exec().workdir, sample().workdir);
        // The image's are what they were, in memory and on disk.
        assert_eq!(*defaults.get(), sample());
        assert_eq!(*Defaults::load(file).get(), sample());
        // And may change below it.
        let changed = ExecDefaults {
            env: env(&[("A", "2"), ("D", "2")]),
            workdir: None,
            ..sample()
        };
        defaults.set(changed).unwrap();
        assert_eq!(defaults.for_exec().env["A"], "fork");
        assert_eq!(defaults.for_exec().env["D"], "2");
        assert_eq!(defaults.for_exec().workdir, None);
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
            ExecDefaults {
                user: Some(String::new()),
                ..sample()
            },
        ] {
            assert_eq!(defaults.set(bad).unwrap_err().kind, FailureKind::InvalidArgument);
        }
        assert_eq!(*defaults.get(), sample());
    }

    #[test]
    fn a_file_need_not_say_everything() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("exec.json");
        fs::write(&file, r#"{"user": "app"}"#).unwrap();
        let expected = ExecDefaults {
            user: Some("app".into()),
            ..ExecDefaults::default()
        };
        assert_eq!(*Defaults::load(file).get(), expected);
    }

    #[test]
    fn a_broken_file_does_not_keep_the_guest_down() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("exec.json");
        fs::write(&file, "{").unwrap();
        assert_eq!(*Defaults::load(file).get(), ExecDefaults::default());
    }
}
