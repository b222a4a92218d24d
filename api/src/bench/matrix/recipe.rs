//! The manifest of the matrix: a step of every kind, and how each shows in a guest.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use spore_builder::{BuildError, HostMemory, Limits, Manifest};

use crate::bench::BenchError;

/// What it starts from.
pub const BASE: &str = "debian";

/// The kinds of steps, in their order.
pub const KINDS: [&str; 7] = [
    "env",
    "workdir",
    "add_file",
    "add_dir",
    "apt_install",
    "pip_install",
    "run",
];

const FILE: &str = "a file of the matrix\n";
const SCRIPT: &str = "#!/bin/sh\necho \"ran with $1\"\n";

/// Prints one line for each thing, the last one MemTotal in KiB. It starts where the image says, with its environment.
pub const LOOK: &str = "pwd
echo \"$MATRIX\"
cat ran
stat -c '%a %U' /opt/matrix/file
cat /opt/matrix/file
/opt/matrix/tree/deep/script now
hello
python3 -c 'import six; print(six.__name__)'
sed -n 's/^MemTotal: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo";

/// What it prints but for the last line.
const SEEN: [&str; 8] = [
    "/srv/matrix",
    "a value with $HOME in it",
    "ran with a value with $HOME in it",
    "640 root",
    "a file of the matrix",
    "ran with now",
    "Hello, world!",
    "six",
];

/// Looks at what [`LOOK`] printed, and returns MemTotal in KiB.
pub fn check(said: &str) -> Result<u64, String> {
    let mut lines = said.lines();
    for expected in SEEN {
        let found = lines.next().unwrap_or("nothing");
        if found != expected {
            return Err(format!(
                "in the guest {expected:?} should be seen, and {found:?} is"
            ));
        }
    }
    let total = lines.next().and_then(|line| line.parse().ok());
    total.ok_or_else(|| "the guest says no MemTotal".to_owned())
}

/// The manifest, with this much memory in each phase, in MiB.
pub fn manifest(builder_mb: u32, floor_mb: u32) -> Result<Manifest, BenchError> {
    let steps: Vec<Value> = KINDS
        .iter()
        .map(|kind| json!({"type": kind, "args": args(kind)}))
        .collect();
    let manifest = json!({
        "base": BASE,
        "steps": steps,
        "builderMemoryMB": builder_mb,
        "runtimeMemoryMB": floor_mb,
    });
    let limits = Limits {
        host_memory: HostMemory::read().map_err(BuildError::from)?,
    };
    Ok(Manifest::parse(manifest.to_string().as_bytes(), &limits).map_err(BuildError::from)?)
}

fn args(kind: &str) -> Value {
    let base64 = |text: &str| BASE64_STANDARD.encode(text);
    match kind {
        "env" => json!({"vars": {"MATRIX": SEEN[1]}}),
        "workdir" => json!({"path": SEEN[0]}),
        "add_file" => json!({"path": "/opt/matrix/file", "content": base64(FILE), "mode": "0640"}),
        "add_dir" => json!({"path": "/opt/matrix/tree", "files": [
            {"relativePath": "deep/script", "content": base64(SCRIPT), "mode": "0755"},
        ]}),
        "apt_install" => json!({"packages": ["hello"]}),
        "pip_install" => json!({"packages": ["six"]}),
        _ => json!({"commands": ["/opt/matrix/tree/deep/script \"$MATRIX\" >ran"]}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spore_builder::manifest::StepType;

    #[test]
    fn there_is_a_step_of_every_kind() {
        let manifest = manifest(1024, 512).unwrap();
        let mut kinds: Vec<_> = manifest
            .steps()
            .iter()
            .map(|step| step.step_type().name())
            .collect();
        kinds.sort_unstable();
        let mut all: Vec<_> = StepType::ALL.iter().map(|kind| kind.name()).collect();
        all.sort_unstable();
        assert_eq!(kinds, all);
    }

    #[test]
    fn what_is_missing_in_a_guest_is_named() {
        let all = SEEN.join("\n") + "\n1048576\n";
        assert_eq!(check(&all), Ok(1_048_576));
        let without_hello = all.replace("Hello, world!\n", "");
        let why = check(&without_hello).unwrap_err();
        assert!(
            why.contains("\"Hello, world!\" should be seen, and \"six\" is"),
            "{why}"
        );
        assert!(check(&all.replace("1048576", "")).is_err());
        assert!(check("").is_err());
    }
}
