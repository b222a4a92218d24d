//! Where a container image is: a directory in OCI image layout, or an archive as `docker save` writes it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;

use super::error::ImportError;
use super::verify::{check, is_sha256, sha256};

/// No manifest or configuration is longer, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Indexes in indexes.
const MAX_NESTING: usize = 4;
/// Members of a saved archive; layers are one each.
const MAX_MEMBERS: usize = 10_000;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What `spore base import` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `oci:DIR[:TAG]`
    Oci(PathBuf, Option<String>),
    /// `docker-archive:FILE[:REFERENCE]`
    DockerArchive(PathBuf, Option<String>),
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct Blob {
    path: PathBuf,
    offset: u64,
    length: u64,
}

/// An image that was found: what its layers are and what they should be.
#[derive(Debug)]
pub struct Found {
    /// Its configuration.
    pub config: ImageConfiguration,
    /// The digest of that, which names the whole image.
    pub config_digest: String,
    /// The layers, the lowest first, with the digests of what is in them when unpacked.
    pub layers: Vec<(Blob, String)>,
}

impl Blob {
    /// Reads it from its start.
    ///
    /// # Errors
    /// [`ImportError::File`].
    pub fn open(&self) -> Result<impl Read + use<>, ImportError> {
        let open = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.offset))?;
            Ok(file.take(self.length))
        };
        open().map_err(ImportError::file(&self.path))
    }

    fn whole(path: PathBuf) -> Result<Blob, ImportError> {
        let metadata = path.metadata().map_err(ImportError::file(&path))?;
        if !metadata.is_file() {
            let problem = format!("{} is no file", path.display());
            return Err(ImportError::Source(problem));
        }
        let length = metadata.len();
        Ok(Blob {
            path,
            offset: 0,
            length,
        })
    }

    fn document(&self, what: &str) -> Result<Vec<u8>, ImportError> {
        if self.length > MAX_DOCUMENT {
            return Err(image(what, "is absurdly long"));
        }
        let mut bytes = Vec::new();
        let read = self.open()?.read_to_end(&mut bytes);
        read.map_err(ImportError::file(&self.path))?;
        Ok(bytes)
    }
}

fn image(what: &str, problem: impl Into<String>) -> ImportError {
    ImportError::Image {
        what: what.to_owned(),
        problem: problem.into(),
    }
}

fn parsed<T: for<'a> Deserialize<'a>>(what: &str, bytes: &[u8]) -> Result<T, ImportError> {
    serde_json::from_slice(bytes).map_err(|error| image(what, format!("is not one: {error}")))
}

impl Source {
    /// Understands what was told. A path may have colons in it: the longest part that exists is the path.
    ///
    /// # Errors
    /// [`ImportError::Source`].
    pub fn parse(text: &str) -> Result<Source, ImportError> {
        let bad = || {
            let problem = format!("{text:?} is neither oci:DIR[:TAG] nor docker-archive:FILE[:REFERENCE]");
            ImportError::Source(problem)
        };
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        let (path, tag) = std::iter::once((rest, None))
            .chain(
                rest.match_indices(':')
                    .rev()
                    .map(|(at, _)| (&rest[..at], Some(&rest[at + 1..]))),
            )
            .find(|(path, _)| !path.is_empty() && Path::new(path).exists())
            .ok_or_else(|| ImportError::Source(format!("{text}: there is no such file or directory")))?;
        let (path, tag) = (PathBuf::from(path), tag.map(str::to_owned));
        match kind {
            "oci" => Ok(Source::Oci(path, tag)),
            "docker-archive" => Ok(Source::DockerArchive(path, tag)),
            _ => Err(bad()),
        }
    }

    /// The name that a base of it would have: the directory's or the file's, without what a base's name
    /// cannot have.
    pub fn suggested_name(&self) -> String {
        let (Source::Oci(path, _) | Source::DockerArchive(path, _)) = self;
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .as_bytes()
            .to_ascii_lowercase();
        String::from_utf8_lossy(&stem)
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            .collect()
    }

    /// Looks for the image. Everything with a digest is checked against it.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn find(&self) -> Result<Found, ImportError> {
        match self {
            Source::Oci(directory, tag) => find_in_layout(directory, tag.as_deref()),
            Source::DockerArchive(file, reference) => find_in_archive(file, reference.as_deref()),
        }
    }
}

/// The blob with this digest in an OCI layout, checked.
fn blob(directory: &Path, descriptor: &Descriptor) -> Result<Blob, ImportError> {
    let digest = descriptor.digest().to_string();
    let hex = digest.strip_prefix("sha256:").filter(|hex| is_sha256(hex));
    let hex = hex.ok_or_else(|| image("digest", format!("{digest:?} is not of sha256")))?;
    let blob = Blob::whole(directory.join("blobs/sha256").join(hex))?;
    if blob.length != descriptor.size() {
        let problem = format!(
            "is {} bytes long, and should be {}",
            blob.length,
            descriptor.size()
        );
        return Err(image(&format!("blob {digest}"), problem));
    }
    check(&format!("blob {digest}"), blob.open()?, hex).map_err(|error| error.into_error(&blob.path))?;
    Ok(blob)
}

fn find_in_layout(directory: &Path, tag: Option<&str>) -> Result<Found, ImportError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let layout = Blob::whole(directory.join("oci-layout"))?.document("oci-layout")?;
    let layout: Layout = parsed("oci-layout", &layout)?;
    if layout.image_layout_version.split('.').next() != Some("1") {
        let problem = format!(
            "is of version {}, and this spore reads 1",
            layout.image_layout_version
        );
        return Err(image("oci-layout", problem));
    }
    let index = Blob::whole(directory.join("index.json"))?.document("index.json")?;
    let mut candidates = parsed::<ImageIndex>("index.json", &index)?.manifests().clone();
    if let Some(tag) = tag {
        let is_it = |descriptor: &Descriptor| {
            let name = descriptor
                .annotations()
                .as_ref()
                .and_then(|all| all.get(REF_NAME));
            name.is_some_and(|name| name == tag || name.rsplit(':').next() == Some(tag))
        };
        candidates.retain(is_it);
    }
    for _ in 0..MAX_NESTING {
        let descriptor = the_one(candidates, tag)?;
        match descriptor.media_type() {
            MediaType::ImageManifest => return from_manifest(directory, &descriptor),
            MediaType::Other(other) if other == "application/vnd.docker.distribution.manifest.v2+json" => {
                return from_manifest(directory, &descriptor);
            }
            MediaType::ImageIndex => {}
            MediaType::Other(other)
                if other == "application/vnd.docker.distribution.manifest.list.v2+json" => {}
            other => return Err(image("index", format!("leads to a {other}"))),
        }
        let bytes = blob(directory, &descriptor)?.document("index")?;
        candidates = parsed::<ImageIndex>("index", &bytes)?.manifests().clone();
    }
    Err(image("index", "leads to another, and that to another, and so on"))
}

/// The manifest to take: for our platform, where one is said.
fn the_one(mut candidates: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor, ImportError> {
    if candidates.is_empty() {
        let problem = tag.map_or("is empty".to_owned(), |tag| format!("has nothing called {tag:?}"));
        return Err(image("index", problem));
    }
    candidates.retain(|descriptor| {
        let platform = descriptor.platform().as_ref();
        platform.is_none_or(|platform| *platform.architecture() == Arch::Amd64 && *platform.os() == Os::Linux)
    });
    match candidates.len() {
        0 => Err(image("index", "has nothing for linux/amd64")),
        1 => Ok(candidates.remove(0)),
        count => Err(image(
            "index",
            format!("has {count} images; say which with a tag"),
        )),
    }
}

fn from_manifest(directory: &Path, descriptor: &Descriptor) -> Result<Found, ImportError> {
    let bytes = blob(directory, descriptor)?.document("manifest")?;
    let manifest: ImageManifest = parsed("manifest", &bytes)?;
    let config = blob(directory, manifest.config())?.document("configuration")?;
    let layers = manifest
        .layers()
        .iter()
        .map(|layer| {
            let kind = layer.media_type().to_string();
            let readable = kind.starts_with("application/vnd.oci.image.layer.")
                || kind.starts_with("application/vnd.docker.image.rootfs.");
            if !readable || kind.contains("encrypted") {
                return Err(image(
                    "layer",
                    format!("is a {kind}, which this spore does not read"),
                ));
            }
            blob(directory, layer)
        })
        .collect::<Result<Vec<_>, _>>()?;
    found(&config, layers)
}

fn found(config: &[u8], layers: Vec<Blob>) -> Result<Found, ImportError> {
    let config_digest = sha256(config);
    let config: ImageConfiguration = parsed("configuration", config)?;
    if *config.architecture() != Arch::Amd64 || *config.os() != Os::Linux {
        let problem = format!(
            "is for {}/{}, and guests are linux/amd64",
            config.os(),
            config.architecture()
        );
        return Err(image("configuration", problem));
    }
    let digests = config.rootfs().diff_ids();
    if digests.len() != layers.len() {
        let problem = format!("has {} layers, and the manifest {}", digests.len(), layers.len());
        return Err(image("configuration", problem));
    }
    let digests = digests
        .iter()
        .map(|digest| {
            let hex = digest.strip_prefix("sha256:").filter(|hex| is_sha256(hex));
            hex.map(str::to_owned)
                .ok_or_else(|| image("configuration", format!("has a digest {digest:?}, not of sha256")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Found {
        layers: layers.into_iter().zip(digests).collect(),
        config,
        config_digest,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn find_in_archive(file: &Path, reference: Option<&str>) -> Result<Found, ImportError> {
    let members = members(file).map_err(|cause| {
        ImportError::Source(format!(
            "{} is not an archive of `docker save`: {cause}; if it is compressed, unpack it first",
            file.display()
        ))
    })?;
    let member = |name: &str| {
        let plain = name.trim_start_matches("./");
        let found = members.get(plain).cloned();
        found.ok_or_else(|| image("archive", format!("has no {plain:?}")))
    };
    let images: Vec<Saved> = parsed(
        "manifest.json",
        &member("manifest.json")?.document("manifest.json")?,
    )?;
    let mut wanted = images.into_iter().filter(|image| {
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        reference.is_none_or(|reference| tags.iter().any(|tag| tag == reference))
    });
    let saved = match (wanted.next(), wanted.next()) {
        (Some(saved), None) => saved,
        (None, _) => return Err(image("archive", "has no such image")),
        (Some(_), Some(_)) => return Err(image("archive", "has more than one image; say which by its name")),
    };
    let config = member(&saved.config)?.document("configuration")?;
    // The configuration's file is called by its digest.
    let name = saved.config.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".json").unwrap_or(name);
    if is_sha256(name) {
        check("configuration", config.as_slice(), name).map_err(|error| error.into_error(file))?;
    }
    let layers = saved
        .layers
        .iter()
        .map(|layer| member(layer))
        .collect::<Result<Vec<_>, _>>()?;
    found(&config, layers)
}

/// Where each member of a tar archive lies. Old versions wrote a layer that two images share as a link.
fn members(file: &Path) -> io::Result<HashMap<String, Blob>> {
    let mut archive = tar::Archive::new(File::open(file)?);
    let mut members = HashMap::new();
    let mut links = Vec::new();
    for (count, entry) in archive.entries_with_seek()?.enumerate() {
        if count >= MAX_MEMBERS {
            return Err(io::Error::other("it has too many members"));
        }
        let entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes())
            .trim_start_matches("./")
            .to_owned();
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let (offset, length) = (entry.raw_file_position(), entry.size());
            let path = file.to_owned();
            members.insert(name, Blob { path, offset, length });
        } else if let (true, Some(target)) = (kind.is_symlink(), entry.link_name_bytes()) {
            links.push((name, String::from_utf8_lossy(&target).into_owned()));
        }
    }
    for (name, target) in links {
        if let Some(blob) = target
            .strip_prefix("../")
            .and_then(|target| members.get(target))
            .cloned()
        {
            members.insert(name, blob);
        }
    }
    Ok(members)
}
