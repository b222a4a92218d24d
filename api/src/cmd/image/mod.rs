//! `spore images`, `spore image`.

mod local;
mod remote;

use std::process::ExitCode;

use serde_json::json;
use spore_types::{Image, Images};

use super::print_json;
use super::side::{Side, side};
use crate::cli::{Global, Image as Args};
use crate::failure::Failure;
use crate::ui;

/// Digits of an id in a table.
const SHORT: usize = 12;

/// Who has the images.
trait Shelf {
    /// All of them, the newest first.
    fn all(&self) -> Result<Vec<Image>, Failure>;

    /// The one that is meant.
    fn find(&self, text: &str) -> Result<Image, Failure>;

    /// Removes one, by its id.
    fn remove(&self, id: &str) -> Result<(), Failure>;

    /// What else goes when some were removed; how many bytes of layers that was, if it is known.
    fn collect(&self) -> Option<u64>;
}

fn shelf(global: &Global) -> Result<Box<dyn Shelf>, Failure> {
    Ok(match side(global)? {
        Side::Alone => Box::new(local::Store::open(global)?),
        Side::Daemon(daemon) => Box::new(daemon),
    })
}

/// Lists all images, the newest first.
pub fn list(global: &Global) -> Result<ExitCode, Failure> {
    let images = shelf(global)?.all()?;
    if global.json {
        print_json(&json!(Images { images }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = images.iter().map(row).collect();
    ui::table(
        &["IMAGE", "ID", "FLOORS (MiB)", "DISK", "BUILT WITH", "CREATED"],
        &rows,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Works with one image.
pub fn run(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    match args {
        Args::Rm { images } => remove(global, images),
        Args::Show { image } => {
            print_json(&json!(shelf(global)?.find(image)?))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn remove(global: &Global, names: &[String]) -> Result<ExitCode, Failure> {
    let shelf = shelf(global)?;
    // All of them are found before the first is removed.
    let found = names
        .iter()
        .map(|name| shelf.find(name))
        .collect::<Result<Vec<_>, _>>()?;
    let mut ids: Vec<String> = Vec::new();
    for image in found {
        if !ids.contains(&image.id) {
            ids.push(image.id);
        }
    }
    ids.iter().try_for_each(|id| shelf.remove(id))?;
    let freed = shelf.collect();
    if global.json {
        let mut told = json!({"removed": ids});
        if let Some(bytes) = freed {
            told["freedLayerBytes"] = bytes.into();
        }
        print_json(&told)?;
    } else {
        for name in names {
            ui::line(format_args!("{name} removed"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(image: &Image) -> Vec<String> {
    let mut floors: Vec<_> = image
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.floor_mb)
        .collect();
    floors.sort_unstable();
    floors.dedup();
    let floors: Vec<_> = floors.iter().map(ToString::to_string).collect();
    vec![
        if image.names.is_empty() {
            "-".to_owned()
        } else {
            image.names.join(" ")
        },
        image.id.chars().take(SHORT).collect(),
        floors.join(" "),
        ui::bytes(image.size_bytes),
        format!("{} MiB", image.builder_memory_mb),
        ui::age(image.created_at),
    ]
}
