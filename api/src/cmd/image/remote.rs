//! Images of the daemon.

use spore_types::{Image, Images};

use super::super::Daemon;
use super::Shelf;
use crate::client::path;
use crate::failure::Failure;

impl Shelf for Daemon {
    fn all(&self) -> Result<Vec<Image>, Failure> {
        Ok(self.client.get::<Images>("/v1/images")?.value()?.images)
    }

    fn find(&self, text: &str) -> Result<Image, Failure> {
        Ok(self.client.get(&path::image(text))?.value()?)
    }

    fn remove(&self, id: &str) -> Result<(), Failure> {
        Ok(self.client.delete(&path::image(id))?)
    }

    fn collect(&self) -> Option<u64> {
        // The daemon does with every removal, and does not say what it came to.
        None
    }
}
