//! Bases from container images: an OCI image layout, or an archive of `docker save`.
//!
//! An image comes from a stranger. `source` finds it and checks its digests; `layer` reads its archives into
//! a `tree` in memory, which is all that names in them can reach; `disk` makes an ext4 image of that with
//! e2fsprogs. Then it is published at once, or nothing is left of it.
//!
//! It may not know: registries. Whoever has the image somewhere else copies it first (`skopeo copy`).

mod disk;
mod error;
mod layer;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod verify;

use std::fs;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use oci_spec::image::Config;
use serde_json::json;

pub use error::ImportError;
pub use source::Source;

use crate::base::{Base, BaseStore, FORMAT_VERSION, ImageConfig, MAX_DESCRIPTION};
use crate::defaults::Defaults;
use crate::manifest::BaseName;
use disk::Format;
use layer::Counts;
use source::Found;
use tree::{Kind, Meta, Node, Tree};
use verify::{Measured, TOO_MUCH, compare, sha256};

/// What nobody gives a time is of this one; as in `guest/bases/build.sh`.
const EPOCH: u64 = 1_704_067_200;
/// As far as a recipe's `grow-mib` goes.
const GROW_MIB: u64 = 1 << 20;

/// How much may be unpacked, and how large the disk is.
#[derive(Clone, Copy, Debug)]
pub struct ImportLimits {
    /// Bytes of all layers' archives together, unpacked.
    pub max_bytes: u64,
    /// Entries of all layers together.
    pub max_entries: u64,
    /// The new disk, in MiB.
    pub disk_mib: u64,
}

impl Default for ImportLimits {
    fn default() -> ImportLimits {
        ImportLimits {
            max_bytes: 16 << 30,
            max_entries: 2_000_000,
            disk_mib: 20_480,
        }
    }
}

/// A base that was made of an image.
#[derive(Debug)]
pub struct Imported {
    /// The base.
    pub base: Base,
    /// Entries of its layers; none if it was there already.
    pub entries: u64,
    /// Devices that were left out.
    pub devices: u64,
    /// Extended attributes that were left out.
    pub xattrs: u64,
    /// Whether there is a `/bin/sh`, without which `run` steps fail.
    pub has_shell: bool,
}

/// Makes a base called `name` of the image in `source`, with `agent` as its `/sbin/init`.
///
/// # Errors
/// [`ImportError`]; nothing is left of it then.
pub fn import(
    store: &BaseStore,
    source: &Source,
    name: &BaseName,
    agent: &Path,
    limits: &ImportLimits,
) -> Result<Imported, ImportError> {
    let found = source.find()?;
    let agent_bytes = fs::read(agent).map_err(ImportError::file(agent))?;
    let agent_digest = sha256(&agent_bytes);
    let inputs = format!(
        "import 2\n{}\n{agent_digest}\n{}\n",
        found.config_digest, limits.disk_mib
    );
    let inputs = sha256(inputs.as_bytes());
    let directory = store.directory();
    let result = format!("{name}-{}", &inputs[..16]);
    let _building = store.building(name).map_err(ImportError::file(directory))?;

    let defaults = found.config.config().as_ref().map(started).unwrap_or_default();
    let defaults = Defaults::of(&defaults).map_err(|error| ImportError::Image {
        what: "configuration".to_owned(),
        problem: format!("cannot be kept: {error}"),
    })?;

    let work = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .rand_bytes(6)
        .tempdir_in(directory)
        .map_err(ImportError::file(directory))?;
    let contents = work.path().join("contents");
    let out = work.path().join("out");
    for made in [&contents, &out] {
        fs::create_dir(made).map_err(ImportError::file(made))?;
    }
    let mut tree = Tree::new(EPOCH);
    let mut counts = Counts::default();
    read_layers(&found, &mut tree, &contents, &mut counts, limits)?;
    furnish(
        &mut tree,
        &contents,
        &agent_bytes,
        &defaults,
        &mut counts,
        found.layers.len(),
    )?;
    let content_mib = check_size(&contents, limits.disk_mib)?;
    tracing::debug!(content_mib, entries = counts.entries, "layers are read");

    let image = out.join("rootfs.ext4");
    let format = Format {
        size_mib: limits.disk_mib,
        grow_mib: GROW_MIB.max(limits.disk_mib),
        // One for each 16 KiB, as mke2fs thinks right, and enough for what is there.
        inodes: (limits.disk_mib * 64).max(counts.entries * 2 + 1024),
        uuids: [uuid(&inputs, "uuid"), uuid(&inputs, "hash-seed")],
        label: format!("spore-{name}").chars().take(16).collect(),
        epoch: EPOCH,
    };
    disk::make(&tree, &contents, work.path(), &image, &format)?;
    describe(&tree, &found, name, (&agent_digest, &inputs), limits, &out)?;
    publish(store, &out, &result, name, work.path())?;
    Ok(Imported {
        base: store.get(name)?,
        entries: counts.entries,
        devices: counts.devices,
        xattrs: counts.xattrs,
        has_shell: tree.find("/bin/sh").is_some(),
    })
}

fn read_layers(
    found: &Found,
    tree: &mut Tree,
    contents: &Path,
    counts: &mut Counts,
    limits: &ImportLimits,
) -> Result<(), ImportError> {
    let mut left = limits.max_bytes;
    for (number, (blob, expected)) in found.layers.iter().enumerate() {
        let unreadable = |cause: io::Error| match cause.kind() {
            TOO_MUCH => ImportError::TooMuch {
                limit: format!("{} bytes unpacked", limits.max_bytes),
                option: "--max-bytes",
            },
            _ => ImportError::Layer { layer: number, cause },
        };
        let unpacked = unpacked(blob.open()?).map_err(unreadable)?;
        let mut archive = Measured::new(unpacked, &mut left);
        layer::read(&mut archive, number, tree, contents, counts, limits.max_entries).map_err(|error| {
            match error {
                ImportError::Layer { cause, .. } => unreadable(cause),
                other => other,
            }
        })?;
        let digest = archive.finish().map_err(unreadable)?;
        compare(&format!("layer {number}"), expected, digest)?;
    }
    Ok(())
}

/// What is in a layer's file, whatever it is packed with. The file's start says that more surely than its
/// media type.
fn unpacked(file: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(1 << 20, file);
    let start = io::BufRead::fill_buf(&mut file)?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(file))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(file)?)
    } else {
        Box::new(file)
    })
}

/// Puts in what a base must have: the agent as `/sbin/init`, the directories it mounts on, and what programs start with.
fn furnish(
    tree: &mut Tree,
    contents: &Path,
    agent: &[u8],
    defaults: &Defaults,
    counts: &mut Counts,
    layer: usize,
) -> Result<(), ImportError> {
    let wrong = |problem: String| ImportError::Image {
        what: "root file system".to_owned(),
        problem: format!("cannot be booted: {problem}"),
    };
    let mut file = |bytes: &[u8], mode: u32| {
        let content = counts.contents;
        counts.contents += 1;
        let at = contents.join(content.to_string());
        fs::write(&at, bytes).map_err(ImportError::file(&at))?;
        let bytes = bytes.len() as u64;
        let (kind, meta) = (Kind::File { content, bytes }, Meta::new(mode, EPOCH));
        Ok::<_, ImportError>(Node { kind, meta })
    };
    for (path, mode) in [
        ("/proc", 0o755),
        ("/sys", 0o755),
        ("/dev", 0o755),
        ("/run", 0o755),
        ("/tmp", 0o1777),
        ("/etc/spore/on-fork.d", 0o755),
    ] {
        tree.directory(path, mode, layer).map_err(wrong)?;
    }
    if let Some(workdir) = &defaults.workdir {
        tree.directory(workdir.as_str(), 0o755, layer).map_err(wrong)?;
    }
    let kept = serde_json::to_vec_pretty(&defaults.to_agent()).map_err(|error| wrong(error.to_string()))?;
    let directory = tree.directory("/etc/spore", 0o755, layer).map_err(wrong)?;
    tree.replace(directory, "exec.json", file(&kept, 0o644)?, layer);
    let directory = tree.directory("/usr/lib/spore", 0o755, layer).map_err(wrong)?;
    tree.replace(directory, "agent", file(agent, 0o755)?, layer);
    let directory = tree.directory("/sbin", 0o755, layer).map_err(wrong)?;
    let init = Node {
        kind: Kind::Symlink(b"/usr/lib/spore/agent".to_vec()),
        meta: Meta::new(0o777, EPOCH),
    };
    tree.replace(directory, "init", init, layer);
    let directory = tree.directory("/etc", 0o755, layer).map_err(wrong)?;
    // Empty: drawn at boot.
    tree.replace(directory, "machine-id", file(b"", 0o444)?, layer);
    Ok(())
}

/// What the contents take, if the disk has room for them and for itself.
fn check_size(contents: &Path, disk_mib: u64) -> Result<u64, ImportError> {
    let failed = || ImportError::file(contents);
    let mut blocks = 0;
    for entry in fs::read_dir(contents).map_err(failed())? {
        let length = entry.and_then(|entry| entry.metadata()).map_err(failed())?.len();
        blocks += length.div_ceil(4096);
    }
    let content_mib = (blocks >> 8) + 1;
    // Inode tables take a sixty-fourth.
    match content_mib + disk_mib / 32 + 64 > disk_mib {
        true => Err(ImportError::DiskTooSmall {
            content_mib,
            disk_mib,
        }),
        false => Ok(content_mib),
    }
}

/// A version 8 UUID: the same inputs make the same file system.
fn uuid(inputs: &str, what: &str) -> String {
    let digits = sha256(format!("{what}\n{inputs}").as_bytes());
    format!(
        "{}-{}-8{}-8{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..15],
        &digits[15..18],
        &digits[18..30]
    )
}

fn describe(
    tree: &Tree,
    found: &Found,
    name: &BaseName,
    (agent, inputs): (&str, &str),
    limits: &ImportLimits,
    out: &Path,
) -> Result<(), ImportError> {
    let has_apt = tree.find("/usr/bin/apt-get").is_some() && tree.find("/usr/bin/dpkg").is_some();
    let description = json!({
        "name": name.as_str(),
        "formatVersion": FORMAT_VERSION,
        "packageManager": has_apt.then_some("apt"),
        "config": found.config.config().as_ref().map(started).unwrap_or_default(),
        "importedFrom": { "configDigest": format!("sha256:{}", found.config_digest) },
        "agent": { "sha256": agent },
        "rootfs": { "sizeBytes": limits.disk_mib << 20 },
        "inputsSha256": inputs,
    });
    let text = format!("{description:#}\n");
    if text.len() as u64 > MAX_DESCRIPTION {
        return Err(ImportError::Image {
            what: "configuration".to_owned(),
            problem: "is too long: a base keeps 64 KiB of it".to_owned(),
        });
    }
    let path = out.join("base.json");
    fs::write(&path, text).map_err(ImportError::file(&path))
}

fn started(config: &Config) -> ImageConfig {
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    ImageConfig {
        env: config.env().clone().unwrap_or_default(),
        working_dir: text(config.working_dir()),
        user: text(config.user()),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
    }
}

/// Makes it the base of its name, at once and durably.
fn publish(
    store: &BaseStore,
    out: &Path,
    result: &str,
    name: &BaseName,
    work: &Path,
) -> Result<(), ImportError> {
    let place = store.directory().join(result);
    for file in ["rootfs.ext4", "base.json"].map(|file| out.join(file)) {
        let done = fs::set_permissions(&file, fs::Permissions::from_mode(0o444))
            .and_then(|()| fs::File::open(&file)?.sync_all());
        done.map_err(ImportError::file(&file))?;
    }
    // The same image with the same agent: what is there is as good, and may be in use.
    if !place.join("base.json").is_file() {
        let swept = match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::rename(out, &place),
        };
        swept.map_err(ImportError::file(&place))?;
    }
    let link: PathBuf = work.join("link");
    let named = store.directory().join(name.as_str());
    symlink(result, &link)
        .and_then(|()| fs::rename(&link, &named))
        .and_then(|()| fs::File::open(store.directory())?.sync_all())
        .map_err(ImportError::file(&named))
}
