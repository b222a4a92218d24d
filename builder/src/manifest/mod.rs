//! What a user wants built: parse, don't validate.
//!
//! Bytes from a stranger become a [`Manifest`], of which every part is of a type that can only hold what a
//! build can carry out, or a [`ManifestError`] that names one field and the rule it broke. There is no
//! half-checked manifest in between.
//!
//! What is decided here, where JSON and the design leave room:
//! - Unknown fields, duplicate keys and NULs are refused everywhere.
//! - `base`, `steps`, and each step's `type` and `args` are required. An optional field is left out; `null` is
//!   refused, so that one meaning has one spelling and equal manifests have equal hashes.
//! - A `mode` is a string of octal digits. So no number occurs in what is hashed.
//! - Lists may be empty; such a step does nothing (`add_dir` still makes its directory).
//! - Memory and disk are JSON integers: `4096.0`, `4e3` and `"4096"` are refused.
//! - A directory's path may end with one slash; otherwise a path has one spelling.

mod field;
mod json;
mod name;
mod object;
mod package;
mod path;
mod rule;
mod step;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::hash::{ContentHash, ContentHasher, StepDigest};
use crate::memory::{
    DEFAULT_BUILDER_MEMORY, DEFAULT_RUNTIME_MEMORY, HostMemory, MAX_DISK, MIN_DISK, MemoryRange, MiB,
};

use field::Field;
use json::Json;
use object::{Object, array, parsed};

pub(crate) use json::Json as JsonTree;
pub use name::{BaseName, EnvName, FileMode, ImageName};
pub use package::{AptPackage, PipRequirement};
pub use path::{AbsoluteGuestPath, RelativePath};
pub use rule::{ManifestError, PathProblem, Rule};
pub use step::{
    DirFile, FileContent, MAX_ARGUMENT, MAX_COMMANDS, MAX_FILES, MAX_PACKAGES, ShellCommand, Step, StepType,
};

/// The most bytes a manifest may have: 64 MiB.
pub const MAX_BYTES: u64 = 64 << 20;
/// The most steps a manifest may have; each can become a layer.
pub const MAX_STEPS: usize = 1_000;
/// The most bytes all `NAME=value`s of a manifest may have together, so that programs can still be started.
pub const MAX_ENVIRONMENT: usize = 512 << 10;

/// What this host allows a manifest to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The host's memory, the end of what either phase can have.
    pub host_memory: HostMemory,
}

/// A manifest that can be built as far as can be known without looking at its base.
///
/// ```
/// use spore_builder::{HostMemory, Limits, Manifest, MiB};
///
/// let limits = Limits { host_memory: HostMemory::new(MiB::new(16000)) };
/// let text = r#"{"base": "busybox", "steps": [{"type": "workdir", "args": {"path": "app"}}]}"#;
/// let refused = Manifest::parse(text.as_bytes(), &limits).unwrap_err();
/// assert_eq!(
///     refused.to_string(),
///     "steps[0].args.path is \"app\"; it must be an absolute path, beginning with /"
/// );
/// let manifest = Manifest::parse(text.replace("app", "/app").as_bytes(), &limits)?;
/// assert_eq!(manifest.builder_memory().get(), 4096);
/// # Ok::<(), spore_builder::ManifestError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Manifest {
    base: BaseName,
    steps: Vec<Step>,
    step_digests: Vec<StepDigest>,
    content_hash: ContentHash,
    name: Option<ImageName>,
    builder_memory: MiB,
    runtime_memory: MiB,
    disk: Option<MiB>,
}

impl Manifest {
    /// Parses a manifest.
    ///
    /// # Errors
    /// A [`ManifestError`] for the first thing found wrong.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Manifest, ManifestError> {
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
            return Err(Rule::TooLarge.at(&Field::ROOT));
        }
        let root = &Field::ROOT;
        let known = &[
            "base",
            "steps",
            "name",
            "builderMemoryMB",
            "runtimeMemoryMB",
            "diskMB",
        ];
        let mut object = Object::open(Json::parse(bytes)?, root, known)?;

        let base = parsed(object.required("base", root)?, &root.key("base"), BaseName::parse)?;
        let mut hasher = ContentHasher::new(&base);
        let mut step_digests = Vec::new();
        let steps = array(
            object.required("steps", root)?,
            &root.key("steps"),
            MAX_STEPS,
            |json, field| {
                // Hashed as the user wrote it, not as we understood it.
                let digest = hasher
                    .step(&json)
                    .map_err(|detail| Rule::NotCanonical { detail }.at(field))?;
                step_digests.push(digest);
                Step::parse(json, field)
            },
        )?;
        check_environment(&steps, &root.key("steps"))?;

        let name = match object.optional("name") {
            None => None,
            Some(json) => Some(parsed(json, &root.key("name"), ImageName::parse)?),
        };
        let host = limits.host_memory;
        let mut memory = |key: &str, range: MemoryRange, default: MiB| match object.optional(key) {
            None => Ok(range.default_of(default)),
            Some(json) => parse_memory(&json, range).map_err(|rule| rule.at(&root.key(key))),
        };
        let builder_memory = memory(
            "builderMemoryMB",
            MemoryRange::builder(host),
            DEFAULT_BUILDER_MEMORY,
        )?;
        let runtime_memory = memory(
            "runtimeMemoryMB",
            MemoryRange::runtime(host),
            DEFAULT_RUNTIME_MEMORY,
        )?;
        let disk = match object.optional("diskMB") {
            None => None,
            Some(json) => Some(parse_disk(&json).map_err(|rule| rule.at(&root.key("diskMB")))?),
        };

        let content_hash = hasher.finish();
        Ok(Manifest {
            base,
            steps,
            step_digests,
            content_hash,
            name,
            builder_memory,
            runtime_memory,
            disk,
        })
    }

    /// Reads and parses a manifest. Of a source that does not end, only a little more than [`MAX_BYTES`] is
    /// read. `path` is what messages call it.
    ///
    /// # Errors
    /// A [`ManifestFileError`], which names `path`.
    pub fn read(source: impl Read, path: &Path, limits: &Limits) -> Result<Manifest, ManifestFileError> {
        let mut bytes = Vec::new();
        let unreadable = |cause| ManifestFileError::Unreadable {
            path: path.to_owned(),
            cause,
        };
        source
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Manifest::parse(&bytes, limits).map_err(|cause| ManifestFileError::Refused {
            path: path.to_owned(),
            cause,
        })
    }

    /// Reads and parses the manifest in the file `path`.
    ///
    /// # Errors
    /// A [`ManifestFileError`], which names the file.
    pub fn read_file(path: &Path, limits: &Limits) -> Result<Manifest, ManifestFileError> {
        match std::fs::File::open(path) {
            Ok(file) => Manifest::read(file, path, limits),
            Err(cause) => Err(ManifestFileError::Unreadable {
                path: path.to_owned(),
                cause,
            }),
        }
    }

    /// The base to start from.
    pub fn base(&self) -> &BaseName {
        &self.base
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The digest of each step, in the steps' order; see [`crate::hash::layer_keys`].
    pub fn step_digests(&self) -> &[StepDigest] {
        &self.step_digests
    }

    /// The hash of `base` and `steps` as written. See [`crate::hash`].
    pub fn content_hash(&self) -> ContentHash {
        self.content_hash
    }

    /// The name for the image, if it should have one.
    pub fn name(&self) -> Option<&ImageName> {
        self.name.as_ref()
    }

    /// `builderMemoryMB`, or its default: 4096, or the host's memory where that is less.
    pub fn builder_memory(&self) -> MiB {
        self.builder_memory
    }

    /// `runtimeMemoryMB`, or its default: 1024, or the host's memory where that is less.
    pub fn runtime_memory(&self) -> MiB {
        self.runtime_memory
    }

    /// `diskMB`, if it is given: the size of the image's disk. Else that is its base's.
    pub fn disk(&self) -> Option<MiB> {
        self.disk
    }
}

/// A manifest in a file was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ManifestFileError {
    /// The file could not be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The file was read and its manifest refused.
    #[error("{}: {cause}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: ManifestError,
    },
}

fn parse_memory(json: &Json, range: MemoryRange) -> Result<MiB, Rule> {
    let number = match json {
        Json::Number(number) => number.as_u64(),
        _ => None,
    };
    number
        .and_then(|mib| range.check(mib))
        .ok_or_else(|| Rule::BadMemory {
            found: json.describe(),
            range,
        })
}

fn parse_disk(json: &Json) -> Result<MiB, Rule> {
    let number = match json {
        Json::Number(number) => number.as_u64(),
        _ => None,
    };
    number
        .and_then(|mib| u32::try_from(mib).ok())
        .map(MiB::new)
        .filter(|mib| (MIN_DISK..=MAX_DISK).contains(mib))
        .ok_or_else(|| Rule::BadDisk {
            found: json.describe(),
        })
}

/// Refuses the step that brings the environment over [`MAX_ENVIRONMENT`].
fn check_environment(steps: &[Step], field: &Field<'_>) -> Result<(), ManifestError> {
    let mut lengths = BTreeMap::new();
    let mut total = 0;
    for (index, step) in steps.iter().enumerate() {
        let Step::Env { vars } = step else { continue };
        for (name, value) in vars {
            let length = name.as_str().len() + 1 + value.len();
            total = total + length - lengths.insert(name, length).unwrap_or(0);
        }
        if total > MAX_ENVIRONMENT {
            let hint = " for all variables of all steps";
            let rule = Rule::TooLong {
                found: total,
                limit: MAX_ENVIRONMENT,
                hint,
            };
            return Err(rule.at(&field.index(index).key("args").key("vars")));
        }
    }
    Ok(())
}
