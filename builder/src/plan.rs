//! What must happen in the guest, step by step, without a word about how to get it there.
//!
//! A [`Plan`] is made before any VM starts; what a base cannot do is refused here. Whoever runs it carries out
//! the [`Action`]s of one step after the other and may seal the disk after each step. What a user wrote
//! becomes an argument or a file and never a part of a shell script, but for `run`, whose commands are shell.

use crate::base::{Base, PackageManager};
use crate::defaults::{Defaults, DefaultsError};
use crate::manifest::{
    AbsoluteGuestPath, AptPackage, BaseName, EnvName, FileContent, FileMode, Manifest, PipRequirement, Step,
    StepType,
};
use crate::memory::MiB;

/// The mode of a file that was not given one.
pub const DEFAULT_FILE_MODE: FileMode = FileMode::from_bits(0o644);
/// The mode of every directory that is made, also those made on the way to a file.
pub const DIRECTORY_MODE: FileMode = FileMode::from_bits(0o755);

/// A whole build, ready to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The manifest's steps, all of them and in order.
    pub steps: Vec<PlannedStep>,
    /// What the image's programs start with in the end.
    pub defaults: Defaults,
    /// The size that the base's disk is brought to, where it does not have it already.
    pub disk: Option<MiB>,
}

/// What one step of the manifest comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStep {
    /// The step's type.
    pub step_type: StepType,
    /// The step on one short line, for people: `run`, `add_file /etc/motd`.
    pub label: String,
    /// What to do, in order. The step has succeeded when all of it has; empty for a step that does nothing.
    pub actions: Vec<Action>,
}

/// One thing to do in the guest.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run a program to its end, in the defaults' working directory and environment. Any exit code but 0
    /// fails the step.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Variables for this program only, on top of the defaults.
        env: Vec<(&'static str, &'static str)>,
        /// As whom; absent: as the defaults say.
        user: Option<&'static str>,
        /// What it does on one short line, for people.
        label: String,
        /// Once is enough for as long as the build VM runs, also if several steps want it: what it does is in the VM's
        /// memory and not on its disk.
        once: bool,
    },
    /// Write a file, replacing what is there; make directories that are missing on the way.
    WriteFile {
        /// Where.
        path: AbsoluteGuestPath,
        /// What.
        content: FileContent,
        /// Its mode, also when the file was there before.
        mode: FileMode,
    },
    /// Make a directory, and those on the way to it. One that exists stays as it is.
    MakeDir {
        /// Where.
        path: AbsoluteGuestPath,
        /// The mode of each directory that is made.
        mode: FileMode,
    },
    /// Set what every later program starts with, in the build and in each sandbox. It is kept on the guest's
    /// disk, and it is all of it and not a change: whoever resumes after this step needs nothing earlier.
    SetDefaults(Defaults),
}

/// A manifest cannot be built on its base.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A step installs packages, and the base has nothing to install them with.
    #[error(
        "steps[{step}].type is \"{}\", but base `{base}` has no package manager; use a base that has one, or \
         bring the files in with add_file or add_dir",
        step_type.name()
    )]
    NoPackageManager {
        /// The step, from 0.
        step: usize,
        /// Its type.
        step_type: StepType,
        /// The base.
        base: BaseName,
    },
    /// The base was made of a container image that cannot be started as it says.
    #[error("base is {base}, and {cause}; build it with another image")]
    BaseConfig {
        /// The base.
        base: BaseName,
        /// What cannot be.
        cause: DefaultsError,
    },
    /// The disk would be smaller than the base's.
    #[error("diskMB is {asked}, and the disk of base `{base}` has {least} MiB; it must be at least {least}")]
    DiskTooSmall {
        /// What was asked for.
        asked: MiB,
        /// The base.
        base: BaseName,
        /// The size of its disk, in MiB.
        least: u64,
    },
}

impl Plan {
    /// Lays out how `manifest` is built on `base`.
    ///
    /// # Errors
    /// A [`PlanError`] if the base cannot do what a step needs, even of a step whose list is empty: whether a
    /// manifest fits a base should not hang on a list's length.
    pub fn new(manifest: &Manifest, base: &Base) -> Result<Plan, PlanError> {
        let disk = disk(manifest, base)?;
        let mut defaults = Defaults::of(base.config()).map_err(|cause| PlanError::BaseConfig {
            base: base.name().clone(),
            cause,
        })?;
        let mut steps = Vec::with_capacity(manifest.steps().len());
        for (index, step) in manifest.steps().iter().enumerate() {
            let step_type = step.step_type();
            let package_manager = || {
                base.package_manager().ok_or_else(|| PlanError::NoPackageManager {
                    step: index,
                    step_type,
                    base: base.name().clone(),
                })
            };
            let actions = match step {
                Step::AptInstall { packages } => match package_manager()? {
                    PackageManager::Apt => apt_install(packages),
                },
                Step::PipInstall { packages } => match package_manager()? {
                    PackageManager::Apt => pip_install(packages),
                },
                other => plain_step(other, &mut defaults),
            };
            steps.push(PlannedStep {
                step_type,
                label: label(step),
                actions,
            });
        }
        Ok(Plan {
            steps,
            defaults,
            disk,
        })
    }
}

/// What the base's disk has to grow to, if anything.
fn disk(manifest: &Manifest, base: &Base) -> Result<Option<MiB>, PlanError> {
    match manifest.disk() {
        Some(asked) if asked.bytes() < base.size_bytes() => Err(PlanError::DiskTooSmall {
            asked,
            base: base.name().clone(),
            least: base.size_bytes().div_ceil(1 << 20),
        }),
        asked => Ok(asked.filter(|asked| asked.bytes() > base.size_bytes())),
    }
}

/// The steps that need nothing of the base.
fn plain_step(step: &Step, defaults: &mut Defaults) -> Vec<Action> {
    match step {
        Step::AptInstall { .. } | Step::PipInstall { .. } => Vec::new(),
        Step::Run { commands } => commands.iter().map(|command| shell(command.as_str())).collect(),
        Step::Env { vars } => {
            let vars = vars
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.clone()));
            defaults.env.extend(vars);
            vec![Action::SetDefaults(defaults.clone())]
        }
        Step::Workdir { path } => {
            defaults.workdir = Some(path.clone());
            vec![make_dir(path), Action::SetDefaults(defaults.clone())]
        }
        Step::AddFile { path, content, mode } => vec![write_file(path, content, *mode)],
        Step::AddDir { path, files } => {
            let files = files
                .iter()
                .map(|file| write_file(&file.path, &file.content, file.mode));
            std::iter::once(make_dir(path)).chain(files).collect()
        }
    }
}

/// Debian's installers ask questions unless told that nobody is there to answer.
const APT_ENV: (&str, &str) = ("DEBIAN_FRONTEND", "noninteractive");
/// A Debian base lets pip write to the system's packages only if it is told to; the image is ours to write.
const PIP_ENV: (&str, &str) = ("PIP_BREAK_SYSTEM_PACKAGES", "1");
/// Where apt's indexes and what it makes of them are while a build VM runs: in memory (`/run` is), in huge pages if
/// that can be had, and so in no layer. On the disk every page of them would be dear to write.
const APT_MEMORY: &str = "mkdir -p /run/spore-apt; \
    mount -t tmpfs -o mode=0755,huge=always spore-apt /run/spore-apt 2>/dev/null; mkdir -p /run/spore-apt/lists/partial";
const APT_OPTIONS: [&str; 11] = [
    "-oDir::State::lists=/run/spore-apt/lists",
    "-oDir::Cache::pkgcache=/run/spore-apt/pkgcache.bin",
    // Room for all of Debian in the cache while it is made: it grows by a mebibyte at a time else, and each time all of
    // it is mapped to another place, and no longer in huge pages.
    "-oAPT::Cache-Start=134217728",
    // To write 50 MiB of text is dearer than to unpack it (lz4) whenever somebody reads it.
    "-oAcquire::GzipIndexes=true",
    // No archive stays of a package that is installed.
    "-oAPT::Keep-Downloaded-Packages=false",
    // Everything in a build VM is the image's own; another user for downloads only costs.
    "-oAPT::Sandbox::User=root",
    // A mirror that does not answer is an error, and within a minute: apt-get would go on with what it has.
    "-oAPT::Update::Error-Mode=any",
    "-oAcquire::http::Timeout=20",
    "-oAcquire::https::Timeout=20",
    "-oAcquire::Retries=1",
    // A package that does not exist is an error: without this apt-get takes a name with a `.` for a regular expression
    // and installs whatever matches.
    "-oAPT::Cmd::Pattern-Only=true",
];

// Asked without loading it: that takes as long as what it is then to do.
const PIP_BOOTSTRAP: &str = "python3 -c 'import importlib.util as util, sys; sys.exit(util.find_spec(\"pip\") is None)' 2>/dev/null || \
    { apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip; }";

fn apt_install(packages: &[AptPackage]) -> Vec<Action> {
    if packages.is_empty() {
        return Vec::new();
    }
    let names = packages.iter().map(AptPackage::as_str);
    let apt = || ["apt-get"].into_iter().chain(APT_OPTIONS);
    let install = ["install", "--yes", "--no-install-recommends", "--"];
    let exec = |argv: Vec<&str>, label| as_root(argv, vec![APT_ENV], label);
    vec![
        once(exec(vec!["/bin/sh", "-c", APT_MEMORY], "room for apt's indexes")),
        // Those of an earlier build may be weeks old, and are in no layer anyway.
        once(exec(apt().chain(["update"]).collect(), "apt-get update")),
        exec(apt().chain(install).chain(names).collect(), "apt-get install"),
    ]
}

fn pip_install(packages: &[PipRequirement]) -> Vec<Action> {
    if packages.is_empty() {
        return Vec::new();
    }
    let requirements = packages.iter().map(PipRequirement::as_str);
    let options = [
        "--no-input",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--",
    ];
    let install = ["python3", "-m", "pip", "install"]
        .into_iter()
        .chain(options)
        .chain(requirements);
    vec![
        as_root(
            ["/bin/sh", "-c", PIP_BOOTSTRAP],
            vec![APT_ENV],
            "find or install pip",
        ),
        as_root(install, vec![PIP_ENV], "pip install"),
    ]
}

/// As the image's user, as a RUN of a Dockerfile: who wants something else in a step names it there.
fn shell(command: &str) -> Action {
    exec(["/bin/sh", "-c", command], Vec::new(), None, &first_line(command))
}

/// Whoever an image's programs run as, packages are installed by root.
fn as_root<'a>(
    argv: impl IntoIterator<Item = &'a str>,
    env: Vec<(&'static str, &'static str)>,
    label: &str,
) -> Action {
    exec(argv, env, Some("root"), label)
}

fn exec<'a>(
    argv: impl IntoIterator<Item = &'a str>,
    env: Vec<(&'static str, &'static str)>,
    user: Option<&'static str>,
    label: &str,
) -> Action {
    Action::Exec {
        argv: argv.into_iter().map(str::to_owned).collect(),
        env,
        user,
        label: label.to_owned(),
        once: false,
    }
}

fn once(action: Action) -> Action {
    match action {
        Action::Exec {
            argv,
            env,
            user,
            label,
            ..
        } => Action::Exec {
            argv,
            env,
            user,
            label,
            once: true,
        },
        other => other,
    }
}

fn make_dir(path: &AbsoluteGuestPath) -> Action {
    Action::MakeDir {
        path: path.clone(),
        mode: DIRECTORY_MODE,
    }
}

fn write_file(path: &AbsoluteGuestPath, content: &FileContent, mode: Option<FileMode>) -> Action {
    let mode = mode.unwrap_or(DEFAULT_FILE_MODE);
    Action::WriteFile {
        path: path.clone(),
        content: content.clone(),
        mode,
    }
}

fn label(step: &Step) -> String {
    let name = step.step_type().name();
    let more = match step {
        Step::AptInstall { packages } => join(packages.iter().map(AptPackage::as_str)),
        Step::PipInstall { packages } => join(packages.iter().map(PipRequirement::as_str)),
        Step::Run { commands } => commands
            .first()
            .map(|command| first_line(command.as_str()))
            .unwrap_or_default(),
        Step::Env { vars } => join(vars.keys().map(EnvName::as_str)),
        Step::Workdir { path } | Step::AddFile { path, .. } | Step::AddDir { path, .. } => {
            first_line(path.as_str())
        }
    };
    format!("{name} {more}").trim_end().to_owned()
}

fn join<'a>(words: impl Iterator<Item = &'a str>) -> String {
    // As many as can show; there may be thousands.
    first_line(&words.take(32).collect::<Vec<_>>().join(" "))
}

/// The first line of `text` that has something on it, cut to what a terminal shows; control characters, which
/// could do things to that terminal, become spaces.
fn first_line(text: &str) -> String {
    const SHOWN: usize = 72;
    let text = text.trim();
    let line = text.lines().next().unwrap_or_default();
    let mut shown: String = line
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::BaseStore;
    use crate::manifest::Limits;
    use crate::memory::HostMemory;

    const CONFIG: &str = r#"{"env":["IMAGE=1","A=0"],"workingDir":"/srv","user":"app","cmd":["x"]}"#;

    fn plan_on(package_manager: &str, steps: &str) -> Result<Plan, PlanError> {
        plan_with(package_manager, steps, "", 1)
    }

    fn plan_with(package_manager: &str, steps: &str, more: &str, disk: u64) -> Result<Plan, PlanError> {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("b");
        std::fs::create_dir(&base).unwrap();
        let rootfs = std::fs::File::create(base.join("rootfs.ext4")).unwrap();
        rootfs.set_len(disk).unwrap();
        let description = format!(
            r#"{{"formatVersion":1,"name":"b","packageManager":{package_manager},"config":{CONFIG}}}"#
        );
        std::fs::write(base.join("base.json"), description).unwrap();
        let limits = Limits {
            host_memory: HostMemory::new(MiB::new(8192)),
        };
        let manifest = format!(r#"{{"base":"b","steps":{steps}{more}}}"#);
        let manifest = Manifest::parse(manifest.as_bytes(), &limits).unwrap();
        Plan::new(
            &manifest,
            &BaseStore::new(directory.path()).get(manifest.base()).unwrap(),
        )
    }

    fn argvs(plan: &Plan) -> Vec<Vec<&str>> {
        let actions = plan.steps.iter().flat_map(|step| &step.actions);
        let argv = actions.filter_map(|action| match action {
            Action::Exec { argv, .. } => Some(argv.iter().map(String::as_str).collect()),
            _ => None,
        });
        argv.collect()
    }

    #[test]
    fn each_command_gets_a_shell_of_its_own() {
        let plan = plan_on("null", r#"[{"type":"run","args":{"commands":["a; b","c"]}}]"#).unwrap();
        assert_eq!(argvs(&plan), [["/bin/sh", "-c", "a; b"], ["/bin/sh", "-c", "c"]]);
    }

    #[test]
    fn a_disk_is_its_bases_or_larger() {
        const DISK: u64 = 4096 << 20;
        let disk = |more| plan_with("null", "[]", more, DISK).map(|plan| plan.disk);
        assert_eq!(disk(""), Ok(None));
        assert_eq!(disk(r#","diskMB":4096"#), Ok(None));
        assert_eq!(disk(r#","diskMB":4097"#), Ok(Some(MiB::new(4097))));
        assert_eq!(
            disk(r#","diskMB":4095"#).unwrap_err().to_string(),
            "diskMB is 4095, and the disk of base `b` has 4096 MiB; it must be at least 4096"
        );
    }

    #[test]
    fn defaults_add_up_and_each_step_states_them_whole() {
        let plan = plan_on(
            "null",
            r#"[{"type":"env","args":{"vars":{"A":"1","B":"1"}}},{"type":"workdir","args":{"path":"/w/"}},
                {"type":"env","args":{"vars":{"B":"2"}}}]"#,
        )
        .unwrap();
        let Some(Action::SetDefaults(last)) = plan.steps[2].actions.last() else {
            panic!("no defaults")
        };
        assert_eq!(last, &plan.defaults);
        let env: Vec<_> = last
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            env,
            [("A", "1"), ("B", "2"), ("IMAGE", "1")],
            "the image's are below"
        );
        assert_eq!(
            (last.user.as_deref(), &*last.command),
            (Some("app"), &["x".to_owned()][..])
        );
        assert_eq!(last.workdir.as_ref().unwrap().as_str(), "/w");
        assert!(matches!(&plan.steps[1].actions[0], Action::MakeDir { path, .. } if path.as_str() == "/w"));
    }

    #[test]
    fn files_are_written_with_their_mode_or_the_default() {
        let plan = plan_on(
            "null",
            r#"[{"type":"add_file","args":{"path":"/f","content":"eA=="}},
                {"type":"add_dir","args":{"path":"/d","files":[{"relativePath":"e/g","content":"","mode":"0700"}]}}]"#,
        )
        .unwrap();
        let written: Vec<_> = plan
            .steps
            .iter()
            .flat_map(|step| &step.actions)
            .map(|action| match action {
                Action::WriteFile { path, mode, .. } => format!("{path} {:o}", mode.bits()),
                Action::MakeDir { path, mode } => format!("{path}/ {:o}", mode.bits()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(written, ["/f 644", "/d/ 755", "/d/e/g 700"]);
    }

    #[test]
    fn packages_need_a_package_manager() {
        for step_type in ["apt_install", "pip_install"] {
            let steps = format!(
                r#"[{{"type":"run","args":{{"commands":[]}}}},{{"type":"{step_type}","args":{{"packages":[]}}}}]"#
            );
            let message = plan_on("null", &steps).unwrap_err().to_string();
            let says = format!(r#"steps[1].type is "{step_type}", but base `b` has no package manager; "#);
            assert!(message.starts_with(&says), "{message}");
        }
    }

    #[test]
    fn packages_are_arguments_after_the_end_of_the_options() {
        let plan = plan_on(
            "\"apt\"",
            r#"[{"type":"apt_install","args":{"packages":["curl","g++"]}},
                {"type":"pip_install","args":{"packages":["a[b]>=1"]}}]"#,
        )
        .unwrap();
        let argvs = argvs(&plan);
        assert!(argvs[2].ends_with(&["--", "curl", "g++"]), "{argvs:?}");
        assert!(argvs[4].ends_with(&["--", "a[b]>=1"]), "{argvs:?}");
    }

    #[test]
    fn packages_are_roots_business_and_commands_the_images_users() {
        let plan = plan_on(
            "\"apt\"",
            r#"[{"type":"apt_install","args":{"packages":["curl"]}},{"type":"pip_install","args":{"packages":["flask"]}},
                {"type":"run","args":{"commands":["c"]}}]"#,
        )
        .unwrap();
        let users = plan
            .steps
            .iter()
            .flat_map(|step| &step.actions)
            .map(|action| match action {
                Action::Exec { user, .. } => *user,
                other => panic!("{other:?}"),
            });
        let root = Some("root");
        assert_eq!(users.collect::<Vec<_>>(), [root, root, root, root, root, None]);
    }

    #[test]
    fn empty_lists_come_to_nothing() {
        let plan = plan_on(
            "\"apt\"",
            r#"[{"type":"apt_install","args":{"packages":[]}},{"type":"pip_install","args":{"packages":[]}},
                {"type":"run","args":{"commands":[]}}]"#,
        )
        .unwrap();
        assert!(plan.steps.iter().all(|step| step.actions.is_empty()));
    }

    #[test]
    fn labels_are_one_short_line_that_is_safe_to_print() {
        let long = "x".repeat(200);
        let steps = format!(
            r#"[{{"type":"run","args":{{"commands":["\n  make\u001b[2J all\nmore"]}}}},
                {{"type":"run","args":{{"commands":["{long}"]}}}},{{"type":"run","args":{{"commands":[]}}}},
                {{"type":"workdir","args":{{"path":"/app"}}}}]"#
        );
        let plan = plan_on("null", &steps).unwrap();
        let labels: Vec<_> = plan.steps.iter().map(|step| step.label.as_str()).collect();
        assert_eq!(labels[0], "run make [2J all…");
        assert!(labels[1].chars().count() < 80);
        assert_eq!(labels[2..], ["run", "workdir /app"]);
    }
}
