//! What a build is called, so that the same thing is never built twice and different things never mix.
//!
//! - [`ContentHash`] names a manifest: SHA-256 over the RFC 8785 canonical JSON of `{base, steps}`, **exactly
//!   as the user wrote the values**: it is taken from the JSON, not from what we understood it to mean, so
//!   Python and TypeScript can compute it without knowing the step types. `/app` and `/app/`, or `"644"` and
//!   `"0644"`, hash differently although they build the same. Not in it: `name`, `builderMemoryMB`,
//!   `runtimeMemoryMB`, `diskMB`. A field that is left out is not there; `null` is refused before it could be hashed.
//!   No number can occur in a valid `{base, steps}`, so no language's printing of numbers matters.
//! - [`CacheKey`] is what a host caches a finished build by: the content hash and the base's digest.
//! - [`LayerKey`] is what it caches the disk after each step by: the base's digest and every step up to it.
//! - A base whose disk a build makes larger is to these two another base ([`BaseDigest::grown`]): steps see how much
//!   room there is, and a disk that has grown cannot stand for a smaller one.
//!
//! `tests/vectors/content-hash.json` has manifests with their canonical text and hash, for every SDK to check
//! itself against; `tests/vectors/check.py` is a second, independent implementation.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::manifest::{BaseName, JsonTree};
use crate::memory::MiB;

/// A text that should have been a digest is not 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal digits")]
pub struct NotADigest;

macro_rules! digest {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The digest of these 32 bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> $name {
                $name(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = NotADigest;

            fn from_str(text: &str) -> Result<$name, NotADigest> {
                parse_hex(text).map($name)
            }
        }
    };
}

digest!(
    /// A manifest's content hash. Prints as 64 lower-case hexadecimal digits.
    ContentHash
);
digest!(
    /// SHA-256 over the canonical JSON of one step.
    StepDigest
);
digest!(
    /// BLAKE3 over a base's root file system.
    BaseDigest
);
digest!(
    /// Names the disk as it is after a step of a build.
    LayerKey
);
digest!(
    /// Names a finished build on a host.
    CacheKey
);

impl BaseDigest {
    /// What stands for this base with its disk grown to `disk`.
    #[must_use]
    pub fn grown(&self, disk: MiB) -> BaseDigest {
        let mut hash = tagged(b"spore grown");
        hash.update(self.0);
        hash.update(disk.get().to_le_bytes());
        BaseDigest(hash.finalize().into())
    }
}

/// Changes when the same manifest would build something else than before, so that what an older Spore cached
/// is not found any more.
const BUILD_VERSION: u8 = 1;

/// What a finished build is cached by: a rebuilt base must never be answered with an image of the old one.
pub fn cache_key(content: &ContentHash, base: &BaseDigest) -> CacheKey {
    let mut hash = tagged(b"spore image");
    hash.update(content.0);
    hash.update(base.0);
    CacheKey(hash.finalize().into())
}

/// The key of the disk after each step; `layer_keys(..)[i]` stands for the base and the steps up to `i`.
pub fn layer_keys(base: &BaseDigest, steps: &[StepDigest]) -> Vec<LayerKey> {
    let mut below = base.0;
    let chain = steps.iter().map(|step| {
        let mut hash = tagged(b"spore layer");
        hash.update(below);
        hash.update(step.0);
        below = hash.finalize().into();
        LayerKey(below)
    });
    chain.collect()
}

/// A hash for one purpose; the fixed-length tag keeps its results apart from those for another.
fn tagged(purpose: &[u8; 11]) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update(purpose);
    hash.update([BUILD_VERSION]);
    hash
}

/// Takes the content hash while the steps are parsed. Canonical JSON of a whole is that of its parts strung
/// together, so only one step's text is in memory at a time.
pub(crate) struct ContentHasher {
    hash: Sha256,
    steps: usize,
}

impl ContentHasher {
    pub(crate) fn new(base: &BaseName) -> ContentHasher {
        let mut hash = Sha256::new();
        // `base` sorts before `steps`, and a base's name has nothing to escape.
        hash.update(format!(r#"{{"base":"{base}","steps":["#));
        ContentHasher { hash, steps: 0 }
    }

    /// Adds the next step and gives its own digest; or says why it has no canonical form.
    pub(crate) fn step(&mut self, step: &JsonTree) -> Result<StepDigest, String> {
        let text = canonical(step)?;
        if self.steps > 0 {
            self.hash.update(b",");
        }
        self.steps += 1;
        self.hash.update(&text);
        Ok(StepDigest(Sha256::digest(&text).into()))
    }

    pub(crate) fn finish(mut self) -> ContentHash {
        self.hash.update(b"]}");
        ContentHash(self.hash.finalize().into())
    }
}

fn canonical(value: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json_canonicalizer::to_vec(value).map_err(|error| error.to_string())
}

fn parse_hex(text: &str) -> Result<[u8; 32], NotADigest> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NotADigest),
    };
    let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| NotADigest)?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Limits, Manifest};
    use crate::memory::HostMemory;

    const VECTORS: &str = include_str!("../tests/vectors/content-hash.json");

    fn manifest(text: &str) -> Manifest {
        let limits = Limits {
            host_memory: HostMemory::new(MiB::new(32768)),
        };
        Manifest::parse(text.as_bytes(), &limits).unwrap()
    }

    fn canonical_text(json: &str) -> String {
        String::from_utf8(canonical(&JsonTree::parse(json.as_bytes()).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn the_vectors_shared_with_the_sdks_hold() {
        let vectors: Vec<serde_json::Value> = serde_json::from_str(VECTORS).unwrap();
        assert!(vectors.len() >= 15);
        for vector in vectors {
            let name = vector["name"].as_str().unwrap();
            let content = serde_json::json!({
                "steps": vector["manifest"]["steps"], "base": vector["manifest"]["base"],
            });
            assert_eq!(
                canonical_text(&content.to_string()),
                vector["canonical"].as_str().unwrap(),
                "{name}"
            );
            if vector["valid"] == false {
                continue;
            }
            let hash = manifest(&vector["manifest"].to_string()).content_hash();
            assert_eq!(hash.to_string(), vector["sha256"].as_str().unwrap(), "{name}");
        }
    }

    #[test]
    fn keys_are_ordered_by_utf16_code_units_and_strings_escaped_as_rfc_8785_says() {
        // The example of RFC 8785 section 3.2.3: U+1F600 (D83D DE00) comes before U+FB33.
        assert_eq!(
            canonical_text(r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
        );
        assert_eq!(
            canonical_text(r#""\u0001\b\t\n\f\r\u001f\"\\\/<>&'\u007f\u2028""#),
            "\"\\u0001\\b\\t\\n\\f\\r\\u001f\\\"\\\\/<>&'\u{7f}\u{2028}\""
        );
        assert_eq!(
            canonical_text("[1.0,1e21,-0,1E-7,333333333.33333329]"),
            "[1,1e+21,0,1e-7,333333333.3333333]"
        );
    }

    #[test]
    fn the_hash_sees_values_and_not_how_they_are_spelled() {
        let one = manifest(r#"{"base":"b","steps":[{"type":"run","args":{"commands":["é"]}}],"name":"x"}"#);
        let other = manifest(
            "{\"builderMemoryMB\": 256,\n \"steps\":[{\"args\":{\"commands\":[\"\\u00E9\"]},\"type\":\"run\"}],\
             \"base\":\"\\u0062\", \"runtimeMemoryMB\": 512}",
        );
        assert_eq!(one.content_hash(), other.content_hash());
    }

    #[test]
    fn a_different_base_step_or_order_is_a_different_hash() {
        let texts = [
            r#"{"base":"b","steps":[]}"#,
            r#"{"base":"c","steps":[]}"#,
            r#"{"base":"b","steps":[{"type":"workdir","args":{"path":"/a"}},{"type":"workdir","args":{"path":"/b"}}]}"#,
            r#"{"base":"b","steps":[{"type":"workdir","args":{"path":"/b"}},{"type":"workdir","args":{"path":"/a"}}]}"#,
            r#"{"base":"b","steps":[{"type":"workdir","args":{"path":"/b/"}},{"type":"workdir","args":{"path":"/a"}}]}"#,
        ];
        let hashes: std::collections::HashSet<_> =
            texts.iter().map(|text| manifest(text).content_hash()).collect();
        assert_eq!(hashes.len(), texts.len());
    }

    #[test]
    fn layers_are_shared_up_to_the_first_difference() {
        let base = BaseDigest::from_bytes([1; 32]);
        let [a, b, c] = [2, 3, 4].map(|byte| StepDigest::from_bytes([byte; 32]));
        let one = layer_keys(&base, &[a, b]);
        let other = layer_keys(&base, &[a, c, b]);
        assert_eq!(one[0], other[0]);
        assert_ne!(one[1], other[1]);
        assert_ne!(one[1], other[2]);
        assert_ne!(layer_keys(&BaseDigest::from_bytes([9; 32]), &[a])[0], one[0]);
        assert!(layer_keys(&base, &[]).is_empty());
    }

    #[test]
    fn a_rebuilt_base_is_another_cache_key() {
        let content = ContentHash::from_bytes([1; 32]);
        let keys = [1, 2].map(|byte| cache_key(&content, &BaseDigest::from_bytes([byte; 32])));
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn a_base_with_another_disk_is_another_base() {
        let base = BaseDigest::from_bytes([1; 32]);
        let grown = [8192, 8193].map(|mib| base.grown(MiB::new(mib)));
        assert_ne!(grown[0], grown[1]);
        assert_ne!(grown[0], base);
        assert_eq!(grown[0], base.grown(MiB::new(8192)));
    }

    #[test]
    fn a_digest_reads_back_what_it_prints_and_nothing_else() {
        let hash = manifest(r#"{"base":"b","steps":[]}"#).content_hash();
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for bad in [
            "",
            "00",
            &"0".repeat(63),
            &"A".repeat(64),
            &"g".repeat(64),
            &"é".repeat(32),
        ] {
            assert_eq!(bad.parse::<ContentHash>(), Err(NotADigest), "{bad}");
        }
    }
}
