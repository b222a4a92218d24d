//! What is built, and what that must have left in the image.
//!
//! The expectations are read off the manifest itself: there is one place that says what a file holds.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};
use spore_builder::{BuildError, HostMemory, Limits, Manifest};

use super::DemoError;

const MANIFEST: &str = include_str!("manifest.json");

/// A file that must be in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExpectedFile {
    /// The proof it belongs to.
    pub proof: &'static str,
    /// Its path in the guest.
    pub path: String,
    /// What it holds.
    pub content: Vec<u8>,
    /// Its permission bits, where the manifest says.
    pub mode: Option<u32>,
}

/// The manifest with its memory sizes, and what it promises.
pub(super) struct Recipe {
    manifest: Manifest,
    builder_mb: u32,
    files: Vec<ExpectedFile>,
    env: Vec<(String, String)>,
    workdir: String,
}

impl Recipe {
    /// The recipe for a build with `builder_mb` MiB and a floor of `floor_mb`.
    ///
    /// # Errors
    /// When this host cannot have that much memory.
    pub(super) fn new(builder_mb: u32, floor_mb: u32) -> Result<Self, DemoError> {
        let mut json: Value = serde_json::from_str(MANIFEST).map_err(own)?;
        let object = json.as_object_mut().ok_or_else(|| own("no object"))?;
        object.insert("builderMemoryMB".to_owned(), builder_mb.into());
        object.insert("runtimeMemoryMB".to_owned(), floor_mb.into());
        let limits = Limits {
            host_memory: HostMemory::read().map_err(BuildError::from)?,
        };
        let manifest = Manifest::parse(json.to_string().as_bytes(), &limits).map_err(BuildError::from)?;
        let mut recipe = Self {
            manifest,
            builder_mb,
            files: Vec::new(),
            env: Vec::new(),
            workdir: String::new(),
        };
        for step in json["steps"].as_array().into_iter().flatten() {
            recipe.promise(step)?;
        }
        recipe.run_steps();
        Ok(recipe)
    }

    /// The manifest.
    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the build VM has, in MiB.
    pub(super) fn builder_mb(&self) -> u32 {
        self.builder_mb
    }

    /// The files that must be there.
    pub(super) fn files(&self) -> &[ExpectedFile] {
        &self.files
    }

    /// The variables that must be set.
    pub(super) fn env(&self) -> &[(String, String)] {
        &self.env
    }

    /// Where commands must run.
    pub(super) fn workdir(&self) -> &str {
        &self.workdir
    }

    fn promise(&mut self, step: &Value) -> Result<(), DemoError> {
        let args = &step["args"];
        match step["type"].as_str() {
            Some("env") => {
                let vars = args["vars"].as_object().into_iter().flat_map(Map::iter);
                for (name, value) in vars {
                    self.env.push((name.clone(), text(value)?));
                }
            }
            Some("workdir") => self.workdir = text(&args["path"])?,
            Some("add_file") => self.promise_file("addFile", text(&args["path"])?, args)?,
            Some("add_dir") => {
                let below = text(&args["path"])?;
                for file in args["files"].as_array().into_iter().flatten() {
                    let path = format!("{below}/{}", text(&file["relativePath"])?);
                    self.promise_file("addDir", path, file)?;
                }
            }
            // Of commands only a person knows what they do: `run_steps`.
            _ => {}
        }
        Ok(())
    }

    fn promise_file(&mut self, proof: &'static str, path: String, args: &Value) -> Result<(), DemoError> {
        let mode = args["mode"].as_str();
        self.files.push(ExpectedFile {
            proof,
            path,
            content: BASE64_STANDARD.decode(text(&args["content"])?).map_err(own)?,
            mode: mode
                .map(|octal| u32::from_str_radix(octal, 8))
                .transpose()
                .map_err(own)?,
        });
        Ok(())
    }

    /// What the manifest's `run` steps leave: sorted words, and a greeting made of the variable and the
    /// directory.
    fn run_steps(&mut self) {
        let words = self.files.iter().find(|file| file.path.ends_with("/words.txt"));
        let words = words.map(|file| String::from_utf8_lossy(&file.content).into_owned());
        let words = words.unwrap_or_default();
        let mut sorted: Vec<_> = words.lines().collect();
        sorted.sort_unstable();
        let greeting = self.env.iter().find(|(name, _)| name == "DEMO_GREETING");
        let greeting = greeting.map_or("", |(_, value)| value.as_str());
        let results = [
            ("sorted.txt", format!("{}\n", sorted.join("\n"))),
            ("greeting.txt", format!("{greeting} in {}\n", self.workdir)),
        ];
        for (name, content) in results {
            self.files.push(ExpectedFile {
                proof: "run",
                path: format!("{}/{name}", self.workdir),
                content: content.into_bytes(),
                mode: None,
            });
        }
    }
}

fn text(value: &Value) -> Result<String, DemoError> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| own(format!("{value} where a string belongs")))
}

fn own(error: impl std::fmt::Display) -> DemoError {
    DemoError::Recipe(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe::new(512, 256).unwrap()
    }

    fn content<'a>(recipe: &'a Recipe, path: &str) -> &'a [u8] {
        &recipe
            .files
            .iter()
            .find(|file| file.path == path)
            .unwrap()
            .content
    }

    #[test]
    fn the_program_in_the_manifest_is_the_one_beside_it() {
        assert_eq!(
            content(&recipe(), "/opt/demo/bin/hold"),
            include_bytes!("hold.sh")
        );
    }

    #[test]
    fn the_sizes_are_those_asked_for_and_do_not_change_what_is_built() {
        let (small, large) = (recipe(), Recipe::new(1024, 512).unwrap());
        assert_eq!(small.manifest().builder_memory().get(), 512);
        assert_eq!(small.manifest().runtime_memory().get(), 256);
        assert_eq!(large.manifest().builder_memory().get(), 1024);
        assert_eq!(
            small.manifest().content_hash().to_string(),
            large.manifest().content_hash().to_string()
        );
    }

    #[test]
    fn every_kind_of_step_leaves_something_to_look_for() {
        let recipe = recipe();
        for proof in ["addFile", "addDir", "run"] {
            assert!(recipe.files.iter().any(|file| file.proof == proof), "{proof}");
        }
        assert_eq!(recipe.workdir(), "/srv/demo");
        assert!(recipe.env().len() > 1);
        assert_eq!(
            content(&recipe, "/srv/demo/sorted.txt"),
            b"gill\nhypha\nmycelium\nspore\n"
        );
        assert_eq!(
            content(&recipe, "/srv/demo/greeting.txt"),
            b"built big, sleeping small in /srv/demo\n"
        );
    }
}
