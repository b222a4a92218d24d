//! Building bases from recipes: finding `build.sh` and the agent, and running them.
//!
//! The recipes and the scripts are files, so that a base is added without touching code. They are found, in
//! this order, in the directories of `SPORE_BASES`, below `share/spore/bases` of where this program is
//! installed, and in `guest/bases` of the source tree it was built in, if it still lies there.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::BaseStore;
use crate::manifest::BaseName;

/// How far above the program a source tree is looked for: `target/<triple>/<profile>/deps/`.
const ABOVE: usize = 5;

/// The scripts that make bases, on this host.
#[derive(Clone, Debug)]
pub struct Recipes {
    scripts: PathBuf,
    agent: Option<PathBuf>,
}

/// A base could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// There are no scripts.
    #[error(
        "the recipes for bases are not here (build.sh was looked for in: {}); say where with SPORE_BASES, \
         which is `guest/bases` of Spore's source",
        list(looked_in)
    )]
    NoScripts {
        /// Where they were looked for.
        looked_in: Vec<PathBuf>,
    },
    /// A script could not be started.
    #[error("cannot run {}: {cause}", script.display())]
    NotStarted {
        /// The script.
        script: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A script failed; it has said why on standard error.
    #[error("{} failed ({status}); it says why above", script.display())]
    Failed {
        /// The script.
        script: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let texts: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    texts.join(", ")
}

impl Recipes {
    /// Those of this host, seen from where this program is.
    ///
    /// # Errors
    /// [`RecipeError::NoScripts`].
    pub fn find() -> Result<Recipes, RecipeError> {
        let program = env::current_exe().unwrap_or_default();
        Self::look(
            env::var_os("SPORE_BASES").as_deref(),
            env::var_os("SPORE_AGENT").map(PathBuf::from),
            &program,
        )
    }

    fn look(bases: Option<&OsStr>, agent: Option<PathBuf>, program: &Path) -> Result<Recipes, RecipeError> {
        let prefix = program.ancestors().nth(2);
        let mut looked_in: Vec<PathBuf> = bases
            .map(|list| {
                env::split_paths(list)
                    .filter(|path| !path.as_os_str().is_empty())
                    .collect()
            })
            .unwrap_or_default();
        looked_in.extend(prefix.map(|prefix| prefix.join("share/spore/bases")));
        let above = program.ancestors().skip(2).take(ABOVE);
        let tree = above
            .map(|directory| directory.join("guest/bases"))
            .find(|path| path.is_dir());
        looked_in.extend(tree);
        match looked_in
            .iter()
            .find(|directory| directory.join("build.sh").is_file())
        {
            Some(scripts) => Ok(Recipes {
                scripts: scripts.clone(),
                agent: agent.or_else(|| {
                    let installed = prefix?.join("lib/spore/agent");
                    installed.is_file().then_some(installed)
                }),
            }),
            None => Err(RecipeError::NoScripts { looked_in }),
        }
    }

    /// Builds the base called `name`, or finds it built. What the scripts say goes to standard error.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn build(&self, store: &BaseStore, name: &BaseName, refresh: bool) -> Result<PathBuf, RecipeError> {
        let cache = store.directory().parent().unwrap_or(store.directory());
        let mut arguments: Vec<OsString> = Vec::new();
        if refresh {
            arguments.push("--refresh".into());
        }
        arguments.push(name.as_str().into());
        self.run("build.sh", &arguments, Some(cache))
    }

    /// The agent, for a base that no recipe makes: the one installed with this program, or built now.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn agent(&self) -> Result<PathBuf, RecipeError> {
        match &self.agent {
            Some(agent) => Ok(agent.clone()),
            None => self.run("agent.sh", &[], None),
        }
    }

    /// Runs a script; the last line it prints is a path.
    fn run(
        &self,
        script: &str,
        arguments: &[OsString],
        cache: Option<&Path>,
    ) -> Result<PathBuf, RecipeError> {
        let script = self.scripts.join(script);
        let mut command = Command::new(&script);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        if let Some(cache) = cache {
            command.env("SPORE_CACHE", cache);
        }
        if let Some(agent) = &self.agent {
            command.env("SPORE_AGENT", agent);
        }
        let output = command.output().map_err(|cause| RecipeError::NotStarted {
            script: script.clone(),
            cause,
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().last() {
            Some(path) if output.status.success() => Ok(PathBuf::from(path)),
            _ => Err(RecipeError::Failed {
                script,
                status: output.status,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(directory: &Path, text: &str) {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join("build.sh");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_environment_is_over_the_installation_which_is_over_the_source_tree() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("target/debug/spore");
        let look = |bases: Option<&OsStr>| Recipes::look(bases, None, &program);
        let message = look(Some(OsStr::new("/nowhere"))).unwrap_err().to_string();
        assert!(
            message.contains("/nowhere, ") && message.contains("share/spore/bases"),
            "{message}"
        );
        let tree = root.path().join("guest/bases");
        script(&tree, "");
        assert_eq!(look(None).unwrap().scripts, tree);
        let installed = root.path().join("target/share/spore/bases");
        script(&installed, "");
        assert_eq!(look(None).unwrap().scripts, installed);
        let mine = root.path().join("mine");
        let list = env::join_paths([Path::new("/nowhere"), &mine]).unwrap();
        assert_eq!(look(Some(&list)).unwrap().scripts, installed);
        script(&mine, "");
        assert_eq!(look(Some(&list)).unwrap().scripts, mine);
    }

    #[test]
    fn a_recipe_is_run_with_the_cache_and_its_last_line_is_the_path() {
        let root = tempfile::tempdir().unwrap();
        let bases = root.path().join("guest/bases");
        script(&bases, r#"echo noise; echo "$SPORE_CACHE/$SPORE_AGENT/$*""#);
        let recipes = Recipes::look(
            None,
            Some("agent".into()),
            &root.path().join("target/debug/spore"),
        )
        .unwrap();
        let store = BaseStore::new("/cache/bases");
        let name = BaseName::parse("debian").unwrap();
        let path = recipes.build(&store, &name, true).unwrap();
        assert_eq!(path, Path::new("/cache/agent/--refresh debian"));
        assert_eq!(recipes.agent().unwrap(), Path::new("agent"));
        script(&bases, "echo path; exit 3");
        let message = recipes.build(&store, &name, false).unwrap_err().to_string();
        assert!(
            message.ends_with("failed (exit status: 3); it says why above"),
            "{message}"
        );
    }
}
