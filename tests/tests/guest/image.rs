//! The image that these tests fork: one step of every type, each leaving a proof.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::SeekFrom;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use spore_builder::observe::{BuildEvent, Observer};
use spore_builder::{BuildError, Built, Host, Manifest, Options};
use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::{self, CheckpointKind};
use spore_snapshot::store::Store;
use spore_tests::data::{self, Scratch};
use spore_tests::sandbox::Sandbox;
use spore_tests::{hold, host};
use spore_vmm::guest::CheckpointPlan;

/// Memory the image is built with, in MiB.
pub const BUILDER_MB: u32 = 512;
/// Memory of its forks at rest, in MiB.
pub const FLOOR_MB: u32 = 512;
/// Its disk, in MiB: a little more than its base's, so that the build has to grow it.
pub const DISK_MB: u64 = 4352;
/// Its name.
pub const NAME: &str = "proofs";

/// The image, and how its two builds at once went.
pub struct Image {
    pub host: Host,
    pub builds: [Built; 2],
    /// What each of the builders was told, but for output.
    pub events: [Vec<String>; 2],
    /// What the steps wrote.
    pub output: String,
    /// All files of the checkpoint and its disk as they were when it was made.
    files: BTreeMap<PathBuf, String>,
}

/// Listens with a function.
pub struct On<F>(pub F);

impl<F: FnMut(BuildEvent<'_>)> Observer for On<F> {
    fn event(&mut self, event: BuildEvent<'_>) {
        (self.0)(event);
    }
}

pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

pub fn run_step(command: &str) -> Value {
    json!({"type": "run", "args": {"commands": [command]}})
}

/// A manifest of `steps` on the base, with this much memory in either phase.
pub fn manifest(name: Option<&str>, builder_mb: u32, runtime_mb: u32, steps: &[Value]) -> Manifest {
    parsed(&manifest_text(name, builder_mb, runtime_mb, steps))
}

fn parsed(text: &str) -> Manifest {
    Manifest::parse(text.as_bytes(), &host::limits()).unwrap()
}

fn manifest_text(name: Option<&str>, builder_mb: u32, runtime_mb: u32, steps: &[Value]) -> String {
    let mut json = json!({
        "base": "busybox",
        "steps": steps,
        "builderMemoryMB": builder_mb,
        "runtimeMemoryMB": runtime_mb,
    });
    if let Some(name) = name {
        json["name"] = name.into();
        json["diskMB"] = DISK_MB.into();
    }
    json.to_string()
}

pub fn hold_step() -> Value {
    json!({"type": "add_file", "args": {"path": hold::PATH, "content": base64(hold::PROGRAM), "mode": "0755"}})
}

/// The manifest of the image.
pub fn proofs(runtime_mb: u32) -> Manifest {
    parsed(&proofs_text(runtime_mb))
}

/// As its author wrote it.
pub fn proofs_text(runtime_mb: u32) -> String {
    let every_byte: Vec<u8> = (0..=255).collect();
    let steps = [
        hold_step(),
        json!({"type": "add_file", "args": {"path": "/opt/proof", "content": base64("a file\n"), "mode": "0640"}}),
        json!({"type": "env", "args": {"vars": {"GREETING": "hello, wörld \"$HOME\"", "LEVEL": "1"}}}),
        json!({"type": "env", "args": {"vars": {"LEVEL": "2"}}}),
        json!({"type": "workdir", "args": {"path": "/srv/work"}}),
        json!({"type": "add_dir", "args": {"path": "/opt/tree", "files": [
            {"relativePath": "bytes", "content": base64(every_byte)},
            {"relativePath": "deep/er/script", "content": base64("#!/bin/sh\necho script: $1\n"), "mode": "0755"},
        ]}}),
        run_step("echo a step was here; echo \"$GREETING\" >greeting; /opt/tree/deep/er/script ran >script"),
    ];
    manifest_text(Some(NAME), BUILDER_MB, runtime_mb, &steps)
}

static IMAGE: OnceLock<Option<Image>> = OnceLock::new();

/// The image, if anybody had it built.
pub fn made() -> Option<&'static Image> {
    IMAGE.get()?.as_ref()
}

/// The image; whoever asks first has it built.
pub fn image() -> &'static Image {
    let image = IMAGE.get_or_init(|| catch_unwind(AssertUnwindSafe(build)).ok());
    image
        .as_ref()
        .expect("the image that tests fork could not be built: see the first panic")
}

fn build() -> Image {
    let host = Host::open(&data::root().join("image"), &host::cache(), None).unwrap();
    let manifest = proofs(FLOOR_MB);
    let output = Mutex::new(Vec::new());
    let build = || {
        let mut events = Vec::new();
        let built = spore_builder::build(
            &host,
            &manifest,
            &Options::offline(),
            &mut On(|event: BuildEvent<'_>| match event {
                BuildEvent::Output(bytes) => output.lock().unwrap().extend(bytes),
                other => events.push(format!("{other:?}")),
            }),
        );
        (built.unwrap(), events)
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(build);
        (build(), other.join().unwrap())
    });
    let files = fingerprint(host.store().root());
    Image {
        host,
        builds: [first.0, second.0],
        events: [first.1, second.1],
        output: String::from_utf8(output.into_inner().unwrap()).unwrap(),
        files,
    }
}

impl Image {
    pub fn store(&self) -> &Store {
        self.host.store()
    }

    pub fn checkpoint(&self) -> CheckpointId {
        self.builds[0].checkpoint
    }

    /// A new fork, with its agent.
    pub fn fork(&self) -> Sandbox {
        Sandbox::fork(self.store(), &self.checkpoint())
    }

    /// A copy of the image in a data directory of its own.
    pub fn copy(&self) -> Copy {
        let scratch = Scratch::new();
        let root = self.store().root();
        for part in ["bases", "layers", "images"] {
            data::copy(&root.join(part), scratch.path());
        }
        // Not those that other tests make and delete meanwhile.
        let checkpoints = scratch.path().join("checkpoints");
        std::fs::create_dir(&checkpoints).unwrap();
        data::copy(&self.store().checkpoint_dir(&self.checkpoint()), &checkpoints);
        let host = Host::open(scratch.path(), &host::cache(), None).unwrap();
        Copy {
            host,
            _scratch: scratch,
        }
    }

    /// What of the checkpoint and its disk is not as it was when it was made, one file a line.
    pub fn changes(&self) -> Vec<String> {
        let now = fingerprint(self.store().root());
        let was = self.files.iter();
        was.filter(|(path, was)| now.get(*path) != Some(was))
            .map(|(path, was)| format!("{}: {was}, now {:?}", path.display(), now.get(path)))
            .collect()
    }

    /// How many files [`Image::changes`] looks at.
    pub fn watched(&self) -> usize {
        self.files.len()
    }
}

/// An image in a data directory of its own.
pub struct Copy {
    pub host: Host,
    _scratch: Scratch,
}

impl Copy {
    pub fn store(&self) -> &Store {
        self.host.store()
    }
}

/// A checkpoint of a sandbox of the image.
pub fn checkpoint_of(sandbox: &mut Sandbox, store: &Store) -> CheckpointId {
    checkpoint_after(&image().checkpoint(), sandbox, store)
}

/// A checkpoint of a sandbox that is a fork of another.
pub fn checkpoint_after(first: &CheckpointId, sandbox: &mut Sandbox, store: &Store) -> CheckpointId {
    let kernel = store.manifest(first).unwrap().kernel;
    let plan = CheckpointPlan {
        kind: CheckpointKind::Sandbox,
        kernel,
        annotations: BTreeMap::new(),
    };
    sandbox.checkpoint(store, plan).unwrap()
}

/// A build that must fail.
pub fn fails(host: &Host, manifest: &Manifest, observer: &mut dyn Observer) -> BuildError {
    match spore_builder::build(host, manifest, &Options::offline(), observer) {
        Ok(built) => panic!("built {built:?}"),
        Err(error) => error,
    }
}

/// Every file that a checkpoint consists of, with its form and the digest of its data.
fn fingerprint(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut directories = vec![root.join("bases"), root.join("layers"), root.join("checkpoints")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => drop(files.insert(path.clone(), form_and_digest(&path))),
            }
        }
    }
    files
}

/// Where a file has data counts too: a hole that was filled with zeroes is a change.
fn form_and_digest(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let metadata = file.metadata().unwrap();
    let mut hash = Sha256::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        rustix::fs::seek(&file, SeekFrom::Start(start)).unwrap();
        let mut data = Vec::new();
        Read::by_ref(&mut file)
            .take(end - start)
            .read_to_end(&mut data)
            .unwrap();
        hash.update(start.to_le_bytes());
        hash.update(&data);
        at = end;
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "inode {} mode {:o} size {} modified {}.{:09} sha256 {digest}",
        metadata.ino(),
        metadata.mode(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

/// The files of a checkpoint and what is below it: by what damage may be done.
pub fn files_of(store: &Store, id: &CheckpointId) -> Vec<PathBuf> {
    let directory = store.checkpoint_dir(id);
    let mut files: Vec<PathBuf> = [
        checkpoint::MANIFEST_FILE,
        checkpoint::STATE_FILE,
        checkpoint::MEMORY_FILE,
    ]
    .map(|name| directory.join(name))
    .into();
    for disk in store.manifest(id).unwrap().disks {
        for layer in disk.layers {
            let path = store.layer(&layer).unwrap().path().to_owned();
            files.push(path);
        }
    }
    files
}
