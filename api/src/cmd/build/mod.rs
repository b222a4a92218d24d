//! `spore build`: the manifest is read here, built by the daemon or by us, and told the same way.

mod local;
mod remote;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use spore_builder::manifest::{MAX_BYTES, ManifestFileError};
use spore_builder::{BuildError, HostMemory, Limits, Manifest};
use spore_types::Image;

use super::print_json;
use super::side::{Side, side};
use crate::cli::{Build, Global};
use crate::failure::Failure;
use crate::ui::{self, BuildProgress};

/// Reads the manifest, has it built, says what came of it.
pub fn run(global: &Global, args: &Build) -> Result<ExitCode, Failure> {
    let memory = HostMemory::read().map_err(Failure::internal)?;
    let limits = Limits { host_memory: memory };
    let text = read(&args.file).map_err(BuildError::from)?;
    // Also what the daemon builds: what is wrong is told at once, and with the file's name.
    let manifest = Manifest::read(&text[..], shown(&args.file), &limits).map_err(BuildError::from)?;
    let started = Instant::now();
    let mut progress = BuildProgress::new();
    let image = match side(global)? {
        Side::Alone => local::build(global, args, &manifest, &mut progress),
        Side::Daemon(daemon) => remote::build(&daemon, args, &text, &mut progress),
    }?;
    let took = progress.worked().then(|| started.elapsed());
    drop(progress);
    if global.json {
        print_json(&serde_json::to_value(&image).map_err(Failure::internal)?)?;
    } else {
        say(&manifest, &image, took)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn from_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

/// What messages call it.
fn shown(file: &Path) -> &Path {
    match from_stdin(file) {
        true => Path::new("standard input"),
        false => file,
    }
}

/// The manifest's text. Of one that does not end, only a little more than a manifest may have.
fn read(file: &Path) -> Result<Vec<u8>, ManifestFileError> {
    let mut text = Vec::new();
    let mut all = |source: &mut dyn Read| source.take(MAX_BYTES + 1).read_to_end(&mut text);
    let got: io::Result<usize> = match from_stdin(file) {
        true => all(&mut io::stdin().lock()),
        false => File::open(file).and_then(|mut file| all(&mut file)),
    };
    match got {
        Ok(_) => Ok(text),
        Err(cause) => Err(ManifestFileError::Unreadable {
            path: shown(file).to_owned(),
            cause,
        }),
    }
}

fn say(manifest: &Manifest, image: &Image, took: Option<Duration>) -> Result<(), Failure> {
    let name = image.names.first().unwrap_or(&image.id);
    let how = took.map_or_else(
        || "cached".to_owned(),
        |took| format!("built in {}", ui::took(took)),
    );
    ui::line(format_args!("{name}: {how}"))?;
    ui::line(format_args!("  id        {}", image.id))?;
    ui::line(format_args!(
        "  floor     {} MiB",
        manifest.runtime_memory().get()
    ))?;
    ui::line(format_args!("  disks     {}", ui::bytes(image.size_bytes)))?;
    ui::line(format_args!("run it with: spore run {name} -- COMMAND"))
}
