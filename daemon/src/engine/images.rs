//! Images.

use spore_snapshot::store::Image;
use spore_types::EventKind;

use super::Engine;
use crate::error::Result;

/// As the API shows it.
pub fn show(image: &Image) -> spore_types::Image {
    let record = &image.record;
    spore_types::Image {
        id: record.id.as_str().to_owned(),
        names: image.names.iter().map(|name| name.as_str().to_owned()).collect(),
        content_hash: record.content_hash.clone(),
        base_digest: record.base_digest.to_string(),
        created_at: record.created_unix_seconds,
        size_bytes: record.size_bytes,
        builder_memory_mb: record.builder_memory_mb,
        disk_mb: record.disk_mb,
        checkpoints: record
            .checkpoints
            .iter()
            .map(|checkpoint| spore_types::ImageCheckpoint {
                id: checkpoint.id.to_string(),
                floor_mb: checkpoint.floor_mb,
                cpus: checkpoint.vcpus,
            })
            .collect(),
    }
}

impl Engine {
    /// All images, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn images(&self) -> Result<Vec<spore_types::Image>> {
        Ok(self.host.store().list_images()?.iter().map(show).collect())
    }

    /// One image.
    ///
    /// # Errors
    /// `not_found`, `conflict` if the digits fit several.
    pub fn image(&self, text: &str) -> Result<spore_types::Image> {
        Ok(show(&self.host.store().find_image(text)?))
    }

    /// Deletes an image with its checkpoints. Its sandboxes run on.
    ///
    /// # Errors
    /// As [`Engine::image`].
    pub fn delete_image(&self, text: &str) -> Result<()> {
        let store = self.host.store();
        let image = store.find_image(text)?;
        store.delete_image(&image.record.id)?;
        for checkpoint in &image.record.checkpoints {
            self.pool.forget(&checkpoint.id);
        }
        self.events.tell(EventKind::ImageDeleted {
            image: image.record.id.as_str().to_owned(),
        });
        self.collect();
        Ok(())
    }
}
