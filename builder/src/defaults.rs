//! What programs in the guest start with unless told otherwise: what a container image says of it, and the manifest's
//! `env` and `workdir` on top.

use std::collections::BTreeMap;

use spore_protocol::ExecDefaults;

use crate::base::ImageConfig;
use crate::manifest::{AbsoluteGuestPath, Rule};

/// What programs in the guest start with unless told otherwise. All of it is kept in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Environment variables, on top of the agent's own (`PATH`, `HOME`). Container images have names that a manifest
    /// may not have, with dots in them for example.
    pub env: BTreeMap<String, String>,
    /// The working directory, or the agent's own default.
    pub workdir: Option<AbsoluteGuestPath>,
    /// As whom: `user`, `uid`, `user:group`, `uid:gid`; else as root.
    pub user: Option<String>,
    /// What runs when nothing is named: entry point and arguments.
    pub command: Vec<String>,
}

/// What a container image says of how it is started cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DefaultsError {
    /// Its working directory.
    #[error("the image's WorkingDir {0}")]
    WorkingDir(Rule),
    /// A NUL, which no argument, variable or name can have.
    #[error("the image's {0} has a NUL character in it")]
    Nul(&'static str),
}

impl Defaults {
    /// As a container image wants it. Of its environment, what is no `NAME=value` is left out, as Docker does.
    ///
    /// # Errors
    /// [`DefaultsError`].
    pub fn of(config: &ImageConfig) -> Result<Self, DefaultsError> {
        let words = |what, words: &[String]| match words.iter().any(|word| word.contains('\0')) {
            true => Err(DefaultsError::Nul(what)),
            false => Ok(()),
        };
        words("Env", &config.env)?;
        words("User", config.user.as_slice())?;
        words("Entrypoint", &config.entrypoint)?;
        words("Cmd", &config.cmd)?;
        let pairs = config.env.iter().filter_map(|variable| variable.split_once('='));
        let env = pairs
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let workdir = config.working_dir.as_deref().filter(|path| !path.is_empty());
        Ok(Self {
            env,
            workdir: workdir.map(directory).transpose()?,
            user: config.user.clone().filter(|user| !user.is_empty()),
            command: config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
        })
    }

    /// As the agent keeps them.
    pub(crate) fn to_agent(&self) -> ExecDefaults {
        ExecDefaults {
            env: self.env.clone(),
            workdir: self.workdir.as_ref().map(|path| path.as_str().to_owned()),
            user: self.user.clone(),
            command: self.command.clone(),
        }
    }
}

/// A working directory as images write it: it may be spelled in more ways than a manifest's, and begins at the root
/// whether it says so or not.
fn directory(text: &str) -> Result<AbsoluteGuestPath, DefaultsError> {
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    AbsoluteGuestPath::directory(&format!("/{}", parts.join("/"))).map_err(DefaultsError::WorkingDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_configuration_becomes_defaults() {
        let config = ImageConfig {
            env: ["A=b=c", "dotted.name=1", "A=2", "nothing", "=x", "E="]
                .map(str::to_owned)
                .into(),
            working_dir: Some("srv/./app//../web/".to_owned()),
            user: Some("app:media".to_owned()),
            entrypoint: vec!["/bin/x".to_owned()],
            cmd: vec!["-y".to_owned()],
        };
        let defaults = Defaults::of(&config).unwrap();
        let env: Vec<_> = defaults
            .env
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(env, [("A", "2"), ("E", ""), ("dotted.name", "1")]);
        assert_eq!(defaults.workdir.as_ref().unwrap().as_str(), "/srv/web");
        assert_eq!(defaults.to_agent().user.as_deref(), Some("app:media"));
        assert_eq!(defaults.to_agent().command, ["/bin/x", "-y"]);
        let empty = ImageConfig {
            working_dir: Some(String::new()),
            user: Some(String::new()),
            ..ImageConfig::default()
        };
        assert_eq!(Defaults::of(&empty), Ok(Defaults::default()));
    }

    #[test]
    fn what_no_program_can_be_started_with_is_refused() {
        let nul = || vec!["a\0b".to_owned()];
        let bad = [
            ImageConfig {
                env: nul(),
                ..ImageConfig::default()
            },
            ImageConfig {
                cmd: nul(),
                ..ImageConfig::default()
            },
            ImageConfig {
                entrypoint: nul(),
                ..ImageConfig::default()
            },
            ImageConfig {
                user: nul().pop(),
                ..ImageConfig::default()
            },
            ImageConfig {
                working_dir: nul().pop(),
                ..ImageConfig::default()
            },
            ImageConfig {
                working_dir: Some("/x".repeat(3000)),
                ..ImageConfig::default()
            },
        ];
        for config in bad {
            assert!(Defaults::of(&config).is_err(), "{config:?}");
        }
    }
}
