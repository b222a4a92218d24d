//! Records of images that were asked for, kept for as long as their files are the same: every create asks for one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_snapshot::store::{ImageRecord, Store};
use spore_vmm::guest::Watch;

use crate::error::Result;

/// Records by what was asked for: a name or an id.
#[derive(Debug, Default)]
pub struct RecordCache(Mutex<BTreeMap<String, Known>>);

#[derive(Debug)]
struct Known {
    files: Watch,
    record: Arc<ImageRecord>,
}

/// More than any host has of images in use at once.
const MOST: usize = 4096;

impl RecordCache {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of the image that `text` means.
    ///
    /// # Errors
    /// As [`Store::find_record`].
    pub fn find(&self, store: &Store, text: &str) -> Result<Arc<ImageRecord>> {
        if let Some(known) = self.lock().get(text)
            && known.files.is_current()
        {
            return Ok(known.record.clone());
        }
        let found = store.find_record(text)?;
        let files = store.record_files(text, &found.id);
        let Some(files) = files.and_then(|files| Watch::over(&files).ok()) else {
            return Ok(Arc::new(found));
        };
        // Read again, now that a change would be seen.
        let record = Arc::new(store.find_record(text)?);
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        match record.id == found.id {
            true => known.insert(
                text.to_owned(),
                Known {
                    files,
                    record: record.clone(),
                },
            ),
            // What is watched are another's files.
            false => known.remove(text),
        };
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use spore_snapshot::Digest;

    use super::*;

    fn image(id: &str, disk_mb: u32) -> ImageRecord {
        ImageRecord {
            id: id.parse().unwrap(),
            content_hash: String::new(),
            base_digest: Digest::of(b"base"),
            disk_layers: Vec::new(),
            checkpoints: Vec::new(),
            created_unix_seconds: 0,
            size_bytes: 0,
            builder_memory_mb: 512,
            disk_mb: Some(disk_mb),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn a_record_is_read_once_and_again_when_it_or_the_name_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let records = RecordCache::default();
        let name = "named".parse().unwrap();
        let (one, other) = ("0123abcd", "4567abcd");
        let find = |text: &str| {
            let record = records.find(&store, text);
            record.map(|record| (record.id.as_str().to_owned(), record.disk_mb.unwrap()))
        };
        assert!(find("named").is_err());
        store.put_image(&image(one, 1), Some(&name)).unwrap();
        for text in ["named", one, "0123"] {
            assert_eq!(find(text).unwrap(), (one.to_owned(), 1));
            assert_eq!(find(text).unwrap(), (one.to_owned(), 1));
        }
        assert_eq!(records.lock().len(), 2, "first digits may mean several tomorrow");
        let kept = records.find(&store, "named").unwrap();
        assert!(Arc::ptr_eq(&kept, &records.find(&store, "named").unwrap()));

        let id = one.parse().unwrap();
        store
            .update_image(&id, |record| record.disk_mb = Some(2))
            .unwrap();
        assert_eq!((find("named").unwrap().1, find(one).unwrap().1), (2, 2));
        store.put_image(&image(other, 3), Some(&name)).unwrap();
        assert_eq!(find("named").unwrap(), (other.to_owned(), 3));
        assert_eq!(find(one).unwrap().1, 2);
        store.delete_image(&other.parse().unwrap()).unwrap();
        assert!(find("named").is_err());
    }
}
