//! `spore cache`: what building remembers.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::json;
use spore_snapshot::store::{CachedStep, Keep, PruneSteps, StoreError};

use super::{host, print_json};
use crate::cli::{Cache, Global, PruneArgs};
use crate::failure::Failure;
use crate::ui;

/// Looks at or prunes the cache.
pub fn run(global: &Global, args: &Cache) -> Result<ExitCode, Failure> {
    match args {
        Cache::Du => usage(global),
        Cache::Prune(args) => prune(global, args),
    }
}

fn usage(global: &Global) -> Result<ExitCode, Failure> {
    let host = host(global)?;
    let (steps, bytes) = (host.store().list_steps()?, host.store().step_bytes()?);
    if global.json {
        let steps: Vec<_> = steps.iter().map(as_json).collect();
        print_json(&json!({"steps": steps, "reclaimableBytes": bytes}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = steps.iter().map(row).collect();
    ui::table(&["STEP", "TOOK", "LAYERS", "LAST USED"], &rows)?;
    ui::line(format_args!(
        "{} steps; {} that no image, checkpoint or VM needs",
        steps.len(),
        ui::bytes(bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn unused(step: &CachedStep) -> Duration {
    SystemTime::now().duration_since(step.used).unwrap_or_default()
}

fn row(step: &CachedStep) -> Vec<String> {
    vec![
        step.entry.label.clone(),
        ui::took(Duration::from_millis(step.entry.took_ms)),
        step.entry.layers.len().to_string(),
        ui::age(ui::unix_seconds(step.used)),
    ]
}

fn as_json(step: &CachedStep) -> serde_json::Value {
    json!({
        "key": step.key.to_string(),
        "label": step.entry.label,
        "tookMs": step.entry.took_ms,
        "layers": step.entry.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unusedSeconds": unused(step).as_secs(),
    })
}

fn prune(global: &Global, args: &PruneArgs) -> Result<ExitCode, Failure> {
    let host = host(global)?;
    let which = match (args.older_than, args.keep_mb) {
        (None, None) => PruneSteps::ALL,
        (hours, keep_mb) => PruneSteps {
            unused_for: hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600))),
            keep_bytes: keep_mb.map(|mb| mb.saturating_mul(1 << 20)),
        },
    };
    let steps = host.store().prune_steps(which)?;
    let (bytes, busy) = match host.store().gc(&Keep::default()) {
        Ok(report) => (report.layer_bytes, false),
        Err(StoreError::Busy) => (0, true),
        Err(error) => return Err(error.into()),
    };
    if global.json {
        print_json(&json!({"steps": steps, "freedBytes": bytes, "busy": busy}))?;
    } else if busy {
        ui::line(format_args!(
            "{steps} steps forgotten; a build is under way, so their disks go later"
        ))?;
    } else {
        ui::line(format_args!(
            "{steps} steps forgotten, {} freed",
            ui::bytes(bytes)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
