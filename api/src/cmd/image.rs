//! `spore images`, `spore image`.

use std::process::ExitCode;

use serde_json::json;
use spore_snapshot::store::{Image, Keep};

use super::{host, print_json};
use crate::cli::{Global, Image as Args};
use crate::failure::Failure;
use crate::ui;

/// Digits of an id in a table.
const SHORT: usize = 12;

/// Lists all images, the newest first.
pub fn list(global: &Global) -> Result<ExitCode, Failure> {
    let images = host(global)?.store().list_images()?;
    if global.json {
        print_json(&images.iter().map(as_json).collect())?;
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
            let image = host(global)?.store().find_image(image)?;
            print_json(&as_json(&image))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn remove(global: &Global, names: &[String]) -> Result<ExitCode, Failure> {
    let host = host(global)?;
    let store = host.store();
    // All of them are found before the first is removed.
    let images = names
        .iter()
        .map(|name| store.find_image(name))
        .collect::<Result<Vec<_>, _>>()?;
    for image in &images {
        store.delete_image(&image.record.id)?;
    }
    // What a build in progress keeps us from collecting goes with the next removal.
    let freed = store.gc(&Keep {
        drop_bases: false,
        ..Keep::default()
    });
    if let Err(error) = &freed {
        tracing::info!(%error, "nothing was collected");
    }
    if global.json {
        let ids: Vec<_> = images.iter().map(|image| image.record.id.as_str()).collect();
        let bytes = freed
            .as_ref()
            .map(|report| report.layer_bytes)
            .unwrap_or_default();
        print_json(&json!({"removed": ids, "freedLayerBytes": bytes}))?;
    } else {
        for name in names {
            ui::line(format_args!("{name} removed"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(image: &Image) -> serde_json::Value {
    let record = &image.record;
    json!({
        "id": record.id.as_str(),
        "names": image.names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "contentHash": record.content_hash,
        "baseDigest": record.base_digest.to_string(),
        "builderMemoryMB": record.builder_memory_mb,
        "diskMB": record.disk_mb,
        "diskBytes": record.size_bytes,
        "createdUnixSeconds": record.created_unix_seconds,
        "checkpoints": record.checkpoints.iter().map(|checkpoint| json!({
            "id": checkpoint.id.to_string(),
            "floorMB": checkpoint.floor_mb,
            "vcpus": checkpoint.vcpus,
        })).collect::<Vec<_>>(),
    })
}

fn row(image: &Image) -> Vec<String> {
    let record = &image.record;
    let names: Vec<_> = image.names.iter().map(|name| name.as_str()).collect();
    let mut floors: Vec<_> = record
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.floor_mb)
        .collect();
    floors.sort_unstable();
    floors.dedup();
    let floors: Vec<_> = floors.iter().map(ToString::to_string).collect();
    vec![
        if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(" ")
        },
        record.id.as_str().chars().take(SHORT).collect(),
        floors.join(" "),
        ui::bytes(record.size_bytes),
        format!("{} MiB", record.builder_memory_mb),
        ui::age(record.created_unix_seconds),
    ]
}
