//! The steps of a build, as types: a [`Step`] that exists can be carried out as it stands.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::field::Field;
use super::json::Json;
use super::name::{EnvName, FileMode};
use super::object::{Object, array, entries, parsed, string};
use super::package::{AptPackage, PipRequirement};
use super::path::{AbsoluteGuestPath, RelativePath};
use super::rule::{ManifestError, Rule, display_as_inner, quoted};

/// Linux passes no argument and no `NAME=value` longer than this (`MAX_ARG_STRLEN` without its NUL).
pub const MAX_ARGUMENT: usize = 131_071;
/// Packages in one step; with the longest names they still fit one command line.
pub const MAX_PACKAGES: usize = 1_000;
/// Commands in one step.
pub const MAX_COMMANDS: usize = 1_000;
/// Files in one `add_dir`.
pub const MAX_FILES: usize = 100_000;

/// One step of a build.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Install Debian packages.
    AptInstall {
        /// Which; none is allowed and does nothing.
        packages: Vec<AptPackage>,
    },
    /// Install Python packages.
    PipInstall {
        /// Which; none is allowed and does nothing.
        packages: Vec<PipRequirement>,
    },
    /// Run commands, each in a shell of its own, until one fails.
    Run {
        /// The commands, in order; none is allowed and does nothing.
        commands: Vec<ShellCommand>,
    },
    /// Set environment variables for every later step and for every program in a sandbox.
    Env {
        /// The variables; they add to and overwrite those of earlier steps.
        vars: BTreeMap<EnvName, String>,
    },
    /// Create a directory, and start every later step and every program in a sandbox in it.
    Workdir {
        /// The directory.
        path: AbsoluteGuestPath,
    },
    /// Write one file.
    AddFile {
        /// Where; missing directories are made.
        path: AbsoluteGuestPath,
        /// What.
        content: FileContent,
        /// Its mode, if one was given.
        mode: Option<FileMode>,
    },
    /// Write a directory of files.
    AddDir {
        /// The directory; made even if it gets no files.
        path: AbsoluteGuestPath,
        /// The files in it; no two at the same path.
        files: Vec<DirFile>,
    },
}

/// A file of an `add_dir` step.
#[derive(Clone, Debug, PartialEq)]
pub struct DirFile {
    /// Where: the step's path and the file's `relativePath`, joined.
    pub path: AbsoluteGuestPath,
    /// What.
    pub content: FileContent,
    /// Its mode, if one was given.
    pub mode: Option<FileMode>,
}

/// A command for `/bin/sh -c`: any text without a NUL of at most [`MAX_ARGUMENT`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellCommand(String);

display_as_inner!(ShellCommand);

/// A file's bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct FileContent(Arc<[u8]>);

/// The types of steps, by the names that manifests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepType {
    /// `apt_install`
    AptInstall,
    /// `pip_install`
    PipInstall,
    /// `run`
    Run,
    /// `env`
    Env,
    /// `workdir`
    Workdir,
    /// `add_file`
    AddFile,
    /// `add_dir`
    AddDir,
}

impl StepType {
    /// All types, in the order of [`StepType::NAMES`].
    pub const ALL: [StepType; 7] = [
        StepType::AptInstall,
        StepType::PipInstall,
        StepType::Run,
        StepType::Env,
        StepType::Workdir,
        StepType::AddFile,
        StepType::AddDir,
    ];
    /// All names, in the order of [`StepType::ALL`].
    pub const NAMES: [&'static str; 7] = [
        "apt_install",
        "pip_install",
        "run",
        "env",
        "workdir",
        "add_file",
        "add_dir",
    ];

    /// The type's name in a manifest.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn parse(text: &str) -> Result<StepType, Rule> {
        let known = Self::ALL.into_iter().find(|step_type| step_type.name() == text);
        known.ok_or_else(|| Rule::UnknownStepType { found: quoted(text) })
    }
}

impl ShellCommand {
    fn new(text: String) -> Result<ShellCommand, Rule> {
        let hint = "; add_file a script and run that";
        if text.len() > MAX_ARGUMENT {
            return Err(Rule::TooLong {
                found: text.len(),
                limit: MAX_ARGUMENT,
                hint,
            });
        }
        Ok(ShellCommand(text))
    }

    /// The command.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FileContent {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn from_base64(text: &str) -> Result<FileContent, Rule> {
        match STANDARD.decode(text) {
            Ok(bytes) => Ok(FileContent(bytes.into())),
            Err(error) => Err(Rule::BadBase64 {
                detail: error.to_string(),
            }),
        }
    }
}

impl From<Vec<u8>> for FileContent {
    fn from(bytes: Vec<u8>) -> FileContent {
        FileContent(bytes.into())
    }
}

impl std::fmt::Debug for FileContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileContent({} bytes)", self.0.len())
    }
}

impl Step {
    /// The step's type.
    pub fn step_type(&self) -> StepType {
        match self {
            Step::AptInstall { .. } => StepType::AptInstall,
            Step::PipInstall { .. } => StepType::PipInstall,
            Step::Run { .. } => StepType::Run,
            Step::Env { .. } => StepType::Env,
            Step::Workdir { .. } => StepType::Workdir,
            Step::AddFile { .. } => StepType::AddFile,
            Step::AddDir { .. } => StepType::AddDir,
        }
    }

    /// Parses the step that stands at `field`.
    pub(crate) fn parse(json: Json, field: &Field<'_>) -> Result<Step, ManifestError> {
        let mut step = Object::open(json, field, &["type", "args"])?;
        let step_type = parsed(step.required("type", field)?, &field.key("type"), StepType::parse)?;
        let json = step.required("args", field)?;
        let field = &field.key("args");
        match step_type {
            StepType::AptInstall => {
                let packages = list(json, field, &["packages"], MAX_PACKAGES, |json, field| {
                    parsed(json, field, AptPackage::parse)
                })?;
                Ok(Step::AptInstall { packages })
            }
            StepType::PipInstall => {
                let packages = list(json, field, &["packages"], MAX_PACKAGES, |json, field| {
                    parsed(json, field, PipRequirement::parse)
                })?;
                Ok(Step::PipInstall { packages })
            }
            StepType::Run => {
                let commands = list(json, field, &["commands"], MAX_COMMANDS, |json, field| {
                    ShellCommand::new(string(json, field)?).map_err(|rule| rule.at(field))
                })?;
                Ok(Step::Run { commands })
            }
            StepType::Env => parse_env(json, field),
            StepType::Workdir => {
                let mut args = Object::open(json, field, &["path"])?;
                let path = args.required("path", field)?;
                Ok(Step::Workdir {
                    path: parsed(path, &field.key("path"), AbsoluteGuestPath::directory)?,
                })
            }
            StepType::AddFile => {
                let mut args = Object::open(json, field, &["path", "content", "mode"])?;
                let path = parsed(
                    args.required("path", field)?,
                    &field.key("path"),
                    AbsoluteGuestPath::file,
                )?;
                let (content, mode) = parse_content(&mut args, field)?;
                Ok(Step::AddFile { path, content, mode })
            }
            StepType::AddDir => parse_add_dir(json, field),
        }
    }
}

/// Arguments that are one list called `known[0]`.
fn list<T>(
    json: Json,
    field: &Field<'_>,
    known: &'static [&'static str; 1],
    limit: usize,
    item: impl FnMut(Json, &Field<'_>) -> Result<T, ManifestError>,
) -> Result<Vec<T>, ManifestError> {
    let mut args = Object::open(json, field, known)?;
    array(args.required(known[0], field)?, &field.key(known[0]), limit, item)
}

fn parse_env(json: Json, field: &Field<'_>) -> Result<Step, ManifestError> {
    let mut args = Object::open(json, field, &["vars"])?;
    let vars = args.required("vars", field)?;
    let field = &field.key("vars");
    let parse_var = |(key, json): (String, Json)| {
        let field = &field.key(&key);
        let name = EnvName::parse(&key).map_err(|rule| rule.at(field))?;
        let value = string(json, field)?;
        // `NAME=value` is one string to the kernel.
        let found = key.len() + 1 + value.len();
        if found > MAX_ARGUMENT {
            return Err(Rule::TooLong {
                found,
                limit: MAX_ARGUMENT,
                hint: " with the name and `=`",
            }
            .at(field));
        }
        Ok((name, value))
    };
    let vars = entries(vars, field)?
        .into_iter()
        .map(parse_var)
        .collect::<Result<_, _>>()?;
    Ok(Step::Env { vars })
}

fn parse_add_dir(json: Json, field: &Field<'_>) -> Result<Step, ManifestError> {
    let mut args = Object::open(json, field, &["path", "files"])?;
    let path = parsed(
        args.required("path", field)?,
        &field.key("path"),
        AbsoluteGuestPath::directory,
    )?;
    let mut taken = HashSet::new();
    let files = array(
        args.required("files", field)?,
        &field.key("files"),
        MAX_FILES,
        |json, field| {
            let mut file = Object::open(json, field, &["relativePath", "content", "mode"])?;
            let relative = file.required("relativePath", field)?;
            let joined = parsed(relative, &field.key("relativePath"), |text| {
                let joined = path.join(&RelativePath::parse(text)?)?;
                if taken.insert(joined.clone()) {
                    Ok(joined)
                } else {
                    Err(Rule::FileTwice { found: quoted(text) })
                }
            })?;
            let (content, mode) = parse_content(&mut file, field)?;
            Ok(DirFile {
                path: joined,
                content,
                mode,
            })
        },
    )?;
    Ok(Step::AddDir { path, files })
}

/// The `content` and `mode` of the object at `field`.
fn parse_content(
    object: &mut Object,
    field: &Field<'_>,
) -> Result<(FileContent, Option<FileMode>), ManifestError> {
    let content = parsed(
        object.required("content", field)?,
        &field.key("content"),
        FileContent::from_base64,
    )?;
    let mode = match object.optional("mode") {
        None => None,
        Some(Json::String(text)) => Some(FileMode::parse(&text).map_err(|rule| rule.at(&field.key("mode")))?),
        Some(other) => {
            return Err(Rule::BadMode {
                found: other.describe(),
            }
            .at(&field.key("mode")));
        }
    };
    Ok((content, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Result<Step, ManifestError> {
        let json = Json::parse(text.as_bytes()).unwrap();
        let steps = Field::ROOT.key("steps");
        Step::parse(json, &steps.index(0))
    }

    #[test]
    fn every_type_has_its_own_name() {
        for (step_type, name) in StepType::ALL.into_iter().zip(StepType::NAMES) {
            assert_eq!(StepType::parse(name).unwrap(), step_type);
            assert_eq!(step_type.name(), name);
        }
    }

    #[test]
    fn a_file_is_decoded_and_its_mode_is_octal() {
        let text = r#"{"type":"add_file","args":{"path":"/a","content":"AP8=","mode":"0755"}}"#;
        let Step::AddFile { path, content, mode } = step(text).unwrap() else {
            panic!("not a file")
        };
        assert_eq!((path.as_str(), content.bytes()), ("/a", &[0, 255][..]));
        assert_eq!(mode.unwrap().bits(), 0o755);
    }

    #[test]
    fn files_of_a_directory_are_where_both_paths_say_and_nowhere_twice() {
        let text = r#"{"type":"add_dir","args":{"path":"/d/","files":[
            {"relativePath":"x/y","content":""},{"relativePath":"z","content":"","mode":"600"}]}}"#;
        let Step::AddDir { files, .. } = step(text).unwrap() else {
            panic!("not a directory")
        };
        assert_eq!(files[0].path.as_str(), "/d/x/y");
        assert_eq!(files[1].path.as_str(), "/d/z");
        let twice = text.replace("x/y", "z");
        assert_eq!(
            step(&twice).unwrap_err().to_string(),
            r#"steps[0].args.files[1].relativePath is "z", which an earlier file of this step has already"#
        );
    }

    #[test]
    fn what_linux_cannot_pass_to_a_program_is_refused_before_it_tries() {
        let run = |n: usize| {
            step(&format!(
                r#"{{"type":"run","args":{{"commands":["{}"]}}}}"#,
                "x".repeat(n)
            ))
        };
        assert!(run(MAX_ARGUMENT).is_ok());
        assert_eq!(
            run(MAX_ARGUMENT + 1).unwrap_err().to_string(),
            "steps[0].args.commands[0] is 131072 bytes long; it may be 131071; add_file a script and run that"
        );
        let env = |n: usize| {
            step(&format!(
                r#"{{"type":"env","args":{{"vars":{{"A":"{}"}}}}}}"#,
                "x".repeat(n)
            ))
        };
        assert!(env(MAX_ARGUMENT - 2).is_ok());
        assert!(env(MAX_ARGUMENT - 1).is_err());
    }
}
