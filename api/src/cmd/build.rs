//! `spore build`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use spore_builder::manifest::ManifestFileError;
use spore_builder::options::BuildNetwork;
use spore_builder::{Built, HostMemory, Limits, Manifest, Options};

use super::{host, print_json};
use crate::cli::{Build, Global};
use crate::failure::Failure;
use crate::interrupt::cancel_on_signal;
use crate::ui::{self, BuildProgress};

/// Reads the manifest, builds it, says what came of it.
pub fn run(global: &Global, args: &Build) -> Result<ExitCode, Failure> {
    let memory = HostMemory::read().map_err(Failure::internal)?;
    let manifest =
        read(&args.file, &Limits { host_memory: memory }).map_err(spore_builder::BuildError::from)?;
    let host = host(global)?;
    let options = Options {
        no_cache: args.no_cache,
        step_limit: Duration::from_secs(args.step_timeout),
        network: match &args.network {
            None => BuildNetwork::IfPossible,
            Some(policy) => BuildNetwork::To(policy.clone()),
        },
        cancel: cancel_on_signal()?,
    };
    let built = spore_builder::build(&host, &manifest, &options, &mut BuildProgress::new())?;
    if global.json {
        print_json(&as_json(&manifest, &built))?;
    } else {
        say(&manifest, &built)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path, limits: &Limits) -> Result<Manifest, ManifestFileError> {
    if file == Path::new("-") {
        Manifest::read(std::io::stdin().lock(), Path::new("standard input"), limits)
    } else {
        Manifest::read_file(file, limits)
    }
}

fn as_json(manifest: &Manifest, built: &Built) -> serde_json::Value {
    json!({
        "id": built.image.record.id.as_str(),
        "names": built.image.names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "contentHash": manifest.content_hash().to_string(),
        "checkpoint": built.checkpoint.to_string(),
        "floorMB": manifest.runtime_memory().get(),
        "builderMemoryMB": manifest.builder_memory().get(),
        "cached": built.build.is_none() && built.finalize.is_none(),
        "buildSeconds": built.build.map(|took| took.as_secs_f64()),
        "finalizeSeconds": built.finalize.map(|took| took.as_secs_f64()),
        "memoryFileBytes": built.memory_bytes,
        "diskBytes": built.image.record.size_bytes,
    })
}

fn say(manifest: &Manifest, built: &Built) -> Result<(), Failure> {
    let name = built
        .image
        .names
        .first()
        .map_or(built.image.record.id.as_str(), |name| name.as_str());
    let how = match (built.build, built.finalize) {
        (Some(build), Some(finalize)) => format!(
            "built in {}, finalized in {}",
            ui::took(build),
            ui::took(finalize)
        ),
        (None, Some(finalize)) => format!("disks cached, finalized in {}", ui::took(finalize)),
        _ => "cached".to_owned(),
    };
    ui::line(format_args!("{name}: {how}"))?;
    ui::line(format_args!("  id        {}", built.image.record.id.as_str()))?;
    ui::line(format_args!(
        "  floor     {} MiB, of which {} are not zero",
        manifest.runtime_memory().get(),
        ui::bytes(built.memory_bytes)
    ))?;
    ui::line(format_args!(
        "  disks     {}",
        ui::bytes(built.image.record.size_bytes)
    ))?;
    ui::line(format_args!("run it with: spore run {name} -- COMMAND"))
}
