//! The manifest of a checkpoint: what it is, what it needs, and the digest of everything in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CheckpointError;
use super::pages::{ChunkDigest, MEMORY_CHUNK, PAGE};
use super::state::MAX_STATE;
use crate::Digest;

/// The checkpoint format that this build writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 2;

/// The longest manifest in bytes (16 MiB); that of 16 GiB of memory has less than 200 KiB.
pub(crate) const MAX_MANIFEST: u64 = 16 << 20;

/// The largest guest memory in bytes (1 TiB).
const MAX_SPAN: u64 = 1 << 40;

/// What a checkpoint is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckpointKind {
    /// An image, booted and settled. Goes when its image goes.
    Image,
    /// A running sandbox, at someone's wish. Stays until it is deleted.
    Sandbox,
}

/// The kernel the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KernelRecord {
    /// Its release, as `uname -r` says.
    pub release: String,
    /// BLAKE3 of the kernel file it was booted from.
    pub blake3: Digest,
    /// The command line it was booted with.
    pub cmdline: String,
}

/// The memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryRecord {
    /// Length of the file: the span of guest memory in bytes.
    pub span_bytes: u64,
    /// Bytes of pages that aren't zero.
    pub data_bytes: u64,
    /// Bytes of memory in a chunk; always [`MEMORY_CHUNK`].
    pub chunk_bytes: u64,
    /// The digests of all chunks that aren't all zero, ascending.
    pub chunks: Vec<ChunkDigest>,
}

/// The state file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateRecord {
    /// Length of the payload in bytes.
    pub bytes: u64,
    /// BLAKE3 of the payload.
    pub blake3: Digest,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskRecord {
    /// What the VMM calls it.
    pub name: String,
    /// Size in bytes.
    pub virtual_size: u64,
    /// The digests of its layers, bottom first.
    pub layers: Vec<Digest>,
}

/// The manifest of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format: [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What this is a checkpoint of.
    pub kind: CheckpointKind,
    /// When it was published, in seconds since 1970-01-01 UTC.
    pub created_unix_seconds: u64,
    /// The kernel in it.
    pub kernel: KernelRecord,
    /// The build of the VMM that wrote it.
    pub vmm_build: String,
    /// What the host's CPU must have; the VMM's words.
    pub cpu_features: Vec<String>,
    /// Number of virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory it holds in MiB; no fork of it can be smaller.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// The memory file.
    pub memory: MemoryRecord,
    /// The state file.
    pub state: StateRecord,
    /// The disks, in the order the VMM attached them.
    pub disks: Vec<DiskRecord>,
    /// Whatever else the writer wants to find again.
    pub annotations: BTreeMap<String, String>,
}

/// The one field that every version has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyVersion {
    format_version: u64,
}

impl Manifest {
    /// The most memory a fork of it can have, in MiB.
    pub fn max_mb(&self) -> u32 {
        u32::try_from(self.memory.span_bytes >> 20).unwrap_or(u32::MAX)
    }

    /// Size of its disks, in MiB, each rounded up.
    pub fn disk_mb(&self) -> u64 {
        let disks = self.disks.iter();
        disks.map(|disk| disk.virtual_size.div_ceil(1 << 20)).sum()
    }

    /// The manifest that `bytes`, found at `path`, are.
    ///
    /// # Errors
    /// When it is of another version, isn't JSON of the right form, or says something impossible.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self, CheckpointError> {
        let bad = |why: String| CheckpointError::BadManifest {
            path: path.to_owned(),
            why,
        };
        let version: AnyVersion = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        if version.format_version != u64::from(FORMAT_VERSION) {
            return Err(CheckpointError::UnsupportedVersion {
                path: path.to_owned(),
                found: version.format_version,
                supported: FORMAT_VERSION,
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        manifest.check().map_err(bad)?;
        Ok(manifest)
    }

    /// The bytes of `manifest.json`.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, String> {
        self.check()?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        bytes.push(b'\n');
        match bytes.len() as u64 > MAX_MANIFEST {
            true => Err(format!("{} bytes are too long for a manifest", bytes.len())),
            false => Ok(bytes),
        }
    }

    /// Whether what it says is possible.
    fn check(&self) -> Result<(), String> {
        let memory = &self.memory;
        let span = memory.span_bytes;
        if span == 0 || span > MAX_SPAN || !span.is_multiple_of(PAGE) {
            return Err(format!(
                "memory.spanBytes {span} is not a multiple of 4096 from 4096 to 1 TiB"
            ));
        }
        if memory.chunk_bytes != MEMORY_CHUNK {
            return Err(format!(
                "memory.chunkBytes is {}, not {MEMORY_CHUNK}",
                memory.chunk_bytes
            ));
        }
        if !memory.chunks.is_sorted_by(|a, b| a.index < b.index) {
            return Err("memory.chunks are not in ascending order".into());
        }
        if let Some(last) = memory.chunks.last()
            && last.index >= span.div_ceil(MEMORY_CHUNK)
        {
            return Err(format!("memory.chunks: chunk {} is beyond the span", last.index));
        }
        if memory.data_bytes > span {
            return Err(format!(
                "memory.dataBytes {} is more than the span",
                memory.data_bytes
            ));
        }
        if self.state.bytes > MAX_STATE {
            return Err(format!(
                "state.bytes {} is more than {MAX_STATE}",
                self.state.bytes
            ));
        }
        if self.vcpus == 0 || self.floor_mb == 0 {
            return Err("vcpus and floorMB are at least 1".into());
        }
        let mut names = BTreeSet::new();
        for disk in &self.disks {
            if !names.insert(&disk.name) {
                return Err(format!("disks: there are two called {:?}", disk.name));
            }
            if disk.layers.is_empty() {
                return Err(format!("disks: {:?} has no layer", disk.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            kind: CheckpointKind::Image,
            created_unix_seconds: 1,
            kernel: KernelRecord {
                release: "6.18".into(),
                blake3: Digest::of(b"k"),
                cmdline: "ro".into(),
            },
            vmm_build: "test".into(),
            cpu_features: vec!["avx2".into()],
            vcpus: 2,
            floor_mb: 1024,
            memory: MemoryRecord {
                span_bytes: 1 << 30,
                data_bytes: 4096,
                chunk_bytes: MEMORY_CHUNK,
                chunks: vec![ChunkDigest {
                    index: 3,
                    blake3: Digest::of(b"c"),
                }],
            },
            state: StateRecord {
                bytes: 10,
                blake3: Digest::of(b"s"),
            },
            disks: vec![DiskRecord {
                name: "root".into(),
                virtual_size: 1 << 30,
                layers: vec![Digest::of(b"l")],
            }],
            annotations: BTreeMap::from([("nonce".into(), "7".into())]),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Manifest, CheckpointError> {
        Manifest::parse(bytes, Path::new("m/manifest.json"))
    }

    #[test]
    fn a_manifest_comes_back_and_is_camel_case() {
        let json = manifest().to_json().unwrap();
        assert_eq!(parse(&json).unwrap(), manifest());
        let text = String::from_utf8(json).unwrap();
        for key in [
            "formatVersion",
            "floorMB",
            "spanBytes",
            "virtualSize",
            "createdUnixSeconds",
        ] {
            assert!(text.contains(&format!("\"{key}\"")), "{key}");
        }
    }

    #[test]
    fn another_version_is_refused_by_number_whatever_else_it_has() {
        let error = parse(br#"{"formatVersion": 3, "new": {}}"#).unwrap_err();
        assert!(matches!(
            error,
            CheckpointError::UnsupportedVersion {
                found: 3,
                supported: 2,
                ..
            }
        ));
        assert!(error.to_string().contains("reads version 2"), "{error}");
    }

    #[test]
    fn the_impossible_is_refused_by_field() {
        type Change = fn(&mut Manifest);
        let cases: [(&str, Change); 9] = [
            ("spanBytes", |m| m.memory.span_bytes = 1000),
            ("spanBytes", |m| m.memory.span_bytes = u64::MAX / 4096 * 4096),
            ("chunkBytes", |m| m.memory.chunk_bytes = 1),
            ("beyond", |m| m.memory.chunks[0].index = 64),
            ("ascending", |m| m.memory.chunks = vec![m.memory.chunks[0]; 2]),
            ("state.bytes", |m| m.state.bytes = 1 << 30),
            ("vcpus", |m| m.vcpus = 0),
            ("two called", |m| m.disks = vec![m.disks[0].clone(); 2]),
            ("no layer", |m| m.disks[0].layers.clear()),
        ];
        for (word, change) in cases {
            let mut bad = manifest();
            change(&mut bad);
            assert!(bad.to_json().unwrap_err().contains(word), "{word}");
            let error = parse(&serde_json::to_vec(&bad).unwrap()).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("m/manifest.json"),
                "{error}"
            );
        }
        let text = String::from_utf8(manifest().to_json().unwrap()).unwrap();
        let unknown = text.replacen("\"vcpus\"", "\"extra\": 1, \"vcpus\"", 1);
        assert!(
            parse(unknown.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("extra")
        );
    }

    proptest! {
        #[test]
        fn no_damage_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut json = manifest().to_json().unwrap();
            let at = at.index(json.len());
            if cut {
                json.truncate(at);
            } else {
                json[at] = byte;
            }
            let _ = parse(&json);
        }
    }
}
