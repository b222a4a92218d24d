//! Images of the data directory.

use spore_builder::Host;
use spore_daemon::engine::images::show;
use spore_snapshot::store::Keep;
use spore_types::Image;

use super::super::host;
use super::Shelf;
use crate::cli::Global;
use crate::failure::Failure;

/// The data directory.
pub struct Store(Host);

impl Store {
    /// That which is meant.
    pub fn open(global: &Global) -> Result<Self, Failure> {
        host(global).map(Self)
    }
}

impl Shelf for Store {
    fn all(&self) -> Result<Vec<Image>, Failure> {
        Ok(self.0.store().list_images()?.iter().map(show).collect())
    }

    fn find(&self, text: &str) -> Result<Image, Failure> {
        Ok(show(&self.0.store().find_image(text)?))
    }

    fn remove(&self, id: &str) -> Result<(), Failure> {
        let store = self.0.store();
        let image = store.find_image(id)?;
        Ok(store.delete_image(&image.record.id)?)
    }

    fn collect(&self) -> Option<u64> {
        let freed = self.0.store().gc(&Keep {
            drop_bases: false,
            ..Keep::default()
        });
        match freed {
            Ok(report) => Some(report.layer_bytes),
            Err(error) => {
                // What a build in progress keeps us from collecting goes with the next removal.
                tracing::info!(%error, "nothing was collected");
                Some(0)
            }
        }
    }
}
