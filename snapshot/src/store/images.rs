//! Images: what a manifest was built to. A record per image, and beside them which image a name means.
//!
//! A name is a file of its own, `images/names/<name>`, that holds an id: so it moves from one image to another
//! in one rename, and no two images ever have it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::publish::Names;
use super::{Store, StoreError};
use crate::files::read_small;
use crate::{CheckpointId, Digest, ImageId, ImageName};

/// The version of image records.
const VERSION: u32 = 1;
/// The longest record in bytes.
const MAX_RECORD: u64 = 1 << 20;
/// The fewest digits of an id that stand for it.
const MIN_PREFIX: usize = 4;

/// What the store keeps of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageRecord {
    /// Its id.
    pub id: ImageId,
    /// The hash of the manifest it was built from, as the builder writes it.
    pub content_hash: String,
    /// The base it was built on.
    pub base_digest: Digest,
    /// The layers of its root disk, bottom first.
    pub disk_layers: Vec<Digest>,
    /// Its checkpoints: the same disks booted with different memory, vCPUs or kernels.
    pub checkpoints: Vec<ImageCheckpoint>,
    /// When it was built, in seconds since 1970-01-01 UTC.
    pub created_unix_seconds: u64,
    /// What it takes on the disk, in bytes, as the builder counts.
    pub size_bytes: u64,
    /// Memory of the VM it was built in, in MiB.
    #[serde(rename = "builderMemoryMB")]
    pub builder_memory_mb: u32,
    /// What its root disk was grown to, in MiB; absent where it has its base's size.
    #[serde(rename = "diskMB", default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    /// Whatever else the builder wants to find again.
    pub annotations: BTreeMap<String, String>,
}

/// One checkpoint of an image, and what makes it another than its siblings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageCheckpoint {
    /// Guest memory it holds, in MiB.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// BLAKE3 of the kernel file it was booted from.
    pub kernel: Digest,
    /// The checkpoint.
    pub id: CheckpointId,
}

/// An image as it is found in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its record.
    pub record: ImageRecord,
    /// The names that mean it now, in order.
    pub names: Vec<ImageName>,
}

/// The file's form: a record that says its version.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File<R> {
    format_version: u32,
    image: R,
}

impl Store {
    /// Puts an image into the store, in place of one with the same id. The name, if any, means this image from
    /// now on; names it had it keeps.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put_image(&self, record: &ImageRecord, name: Option<&ImageName>) -> Result<(), StoreError> {
        let _lock = self.lock_images()?;
        self.write_image(record)?;
        match name {
            Some(name) => self.put_file(&self.name_path(name), record.id.as_str().as_bytes()),
            None => Ok(()),
        }
    }

    /// Changes an image's record, for example to add a checkpoint of another floor; no other change comes in
    /// between. The id stays.
    ///
    /// # Errors
    /// When there is no such image, or it can't be read or written.
    pub fn update_image(
        &self,
        id: &ImageId,
        change: impl FnOnce(&mut ImageRecord),
    ) -> Result<ImageRecord, StoreError> {
        let _lock = self.lock_images()?;
        let mut record = self.read_image(id)?;
        change(&mut record);
        record.id = id.clone();
        self.write_image(&record)?;
        Ok(record)
    }

    /// The image that `text` means: an id, a name, or the first digits of one id (at least 4).
    ///
    /// # Errors
    /// When there is none, it could be several, or its record can't be read.
    pub fn find_image(&self, text: &str) -> Result<Image, StoreError> {
        let record = self.find_record(text)?;
        let names = names_of(&self.names()?, &record.id);
        Ok(Image { record, names })
    }

    /// As [`Store::find_image`], without the names that mean it: that reads one record, however many images there are.
    ///
    /// # Errors
    /// As there.
    pub fn find_record(&self, text: &str) -> Result<ImageRecord, StoreError> {
        if let Ok(id) = text.parse::<ImageId>() {
            match self.read_image(&id) {
                Err(StoreError::NotFound { .. }) => {}
                found => return found,
            }
        }
        let named = match text.parse::<ImageName>() {
            Ok(name) => self.named(&name)?,
            Err(_) => None,
        };
        match named {
            Some(id) => self.read_image(&id),
            None => self.read_image(&self.id_that_begins(text)?),
        }
    }

    /// The files that say that `text` means the image `id`, and what that is; `None` where it takes more to say so, as
    /// with the first digits of an id.
    pub fn record_files(&self, text: &str, id: &ImageId) -> Option<Vec<PathBuf>> {
        let record = self.image_path(id);
        if text == id.as_str() {
            return Some(vec![record]);
        }
        // What could be an id is one as soon as there is such an image.
        let name = text.parse::<ImageName>().ok();
        let name = name.filter(|_| text.parse::<ImageId>().is_err())?;
        Some(vec![self.name_path(&name), record])
    }

    /// The id of which these are the first digits.
    fn id_that_begins(&self, text: &str) -> Result<ImageId, StoreError> {
        let mut matches = match text.len() >= MIN_PREFIX {
            true => self.image_ids()?,
            false => Vec::new(),
        };
        matches.retain(|id| id.as_str().starts_with(text));
        match (matches.pop(), matches.is_empty()) {
            (Some(id), true) => Ok(id),
            (None, _) => Err(StoreError::not_found("image", text)),
            (Some(last), false) => Err(StoreError::Ambiguous {
                text: text.to_owned(),
                matches: matches.iter().chain([&last]).map(ToString::to_string).collect(),
            }),
        }
    }

    /// All images, the newest first.
    ///
    /// # Errors
    /// When a record can't be read.
    pub fn list_images(&self) -> Result<Vec<Image>, StoreError> {
        let names = self.names()?;
        let mut images = Vec::new();
        for id in self.image_ids()? {
            match self.read_image(&id) {
                Ok(record) => images.push(Image {
                    record,
                    names: names_of(&names, &id),
                }),
                // Deleted just now.
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        images.sort_by_key(|image| std::cmp::Reverse(image.record.created_unix_seconds));
        Ok(images)
    }

    /// Deletes an image and its names. Its checkpoints and layers stay until garbage is collected, and what
    /// runs goes on.
    ///
    /// # Errors
    /// When there is no such image, or it can't be removed.
    pub fn delete_image(&self, id: &ImageId) -> Result<(), StoreError> {
        let _lock = self.lock_images()?;
        let path = self.image_path(id);
        let durably = Names::around(&path)?;
        match std::fs::remove_file(&path) {
            Ok(()) => durably.sync()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::not_found("image", id));
            }
            Err(error) => return Err(StoreError::io("remove", &path)(error)),
        }
        // A name that a crash leaves behind here means nothing: its image is gone.
        for name in names_of(&self.names()?, id) {
            let path = self.name_path(&name);
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }

    fn image_path(&self, id: &ImageId) -> PathBuf {
        self.images_dir().join(format!("{id}.json"))
    }

    fn name_path(&self, name: &ImageName) -> PathBuf {
        self.images_dir().join("names").join(name.as_str())
    }

    fn image_ids(&self) -> Result<Vec<ImageId>, StoreError> {
        let dir = self.images_dir();
        let read = || StoreError::io("read directory", &dir);
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(read())? {
            let name = entry.map_err(read())?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(id.and_then(|id| id.parse::<ImageId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// What every name means.
    fn names(&self) -> Result<BTreeMap<ImageName, ImageId>, StoreError> {
        let mut names = BTreeMap::new();
        for name in super::layers::names::<ImageName>(&self.images_dir().join("names"))? {
            if let Some(id) = self.named(&name)? {
                names.insert(name, id);
            }
        }
        Ok(names)
    }

    /// What a name means.
    fn named(&self, name: &ImageName) -> Result<Option<ImageId>, StoreError> {
        let path = self.name_path(name);
        let text = match read_small(&path, 64) {
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        text.parse().map(Some).map_err(|error| bad_record(&path, error))
    }

    fn read_image(&self, id: &ImageId) -> Result<ImageRecord, StoreError> {
        let path = self.image_path(id);
        let json = match read_small(&path, MAX_RECORD) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::not_found("image", id));
            }
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let file: File<serde_json::Value> =
            serde_json::from_slice(&json).map_err(|error| bad_record(&path, error))?;
        if file.format_version != VERSION {
            let why = format!(
                "its version is {}, this build reads {VERSION}",
                file.format_version
            );
            return Err(bad_record(&path, why));
        }
        let record: ImageRecord =
            serde_json::from_value(file.image).map_err(|error| bad_record(&path, error))?;
        match record.id == *id {
            true => Ok(record),
            false => Err(bad_record(&path, format!("it is of image {}", record.id))),
        }
    }

    fn write_image(&self, record: &ImageRecord) -> Result<(), StoreError> {
        let path = self.image_path(&record.id);
        let file = File {
            format_version: VERSION,
            image: record,
        };
        let mut json = serde_json::to_vec_pretty(&file).map_err(|error| bad_record(&path, error))?;
        json.push(b'\n');
        if json.len() as u64 > MAX_RECORD {
            return Err(bad_record(&path, format!("{} bytes are too long", json.len())));
        }
        self.put_file(&path, &json)
    }
}

fn names_of(names: &BTreeMap<ImageName, ImageId>, id: &ImageId) -> Vec<ImageName> {
    names
        .iter()
        .filter(|(_, of)| *of == id)
        .map(|(name, _)| name.clone())
        .collect()
}

fn bad_record(path: &Path, why: impl ToString) -> StoreError {
    StoreError::BadRecord {
        path: path.to_owned(),
        why: why.to_string(),
    }
}
