//! The demonstration: the whole idea at work on real guests, with proofs.
//!
//! It builds an image whose steps leave proof of each, shows that the build needs its memory, forks the
//! result at several sizes, and looks at the end that nothing is left. All of it happens in a data directory
//! of its own ([`crate::scratch`]): no cache falsifies it, and it touches no image of the user's.
//!
//! [`recipe`] is what is built, [`forks`] does with each fork what [`proofs`] and [`fill`] have to say about
//! it, [`report`] is what came of it, for programs, and [`render`] for people.

mod error;
mod fill;
mod forks;
mod proofs;
mod recipe;
mod render;
mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use spore_builder::{BuildError, Built, Host, Options};
use spore_snapshot::store::{Keep, PruneSteps};

pub use error::DemoError;
pub use render::render;
pub use report::Report;

use crate::leftovers;
use crate::scratch::Scratch;
use crate::ui::BuildProgress;
use recipe::Recipe;
use report::{BuildReport, FinalizeReport, OomReport};

/// What the build gets, in MiB.
const BUILDER_MB: u32 = 2048;
/// What is too little for it, in MiB: a step uses 300.
const TOO_LITTLE_MB: u32 = 256;
/// Memory at rest, in MiB.
const FLOOR_MB: u32 = 1024;
/// What the forks ask for, in MiB. The second gets the floor.
const SIZES_MB: [u32; 4] = [FLOOR_MB, FLOOR_MB / 2, 1536, 3072];
/// What the kernel does a moment after it was asked, it has done by then.
const SOON: Duration = Duration::from_secs(2);

/// Where the demonstration finds what it needs.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The user's data directory, absolute.
    pub data: &'a Path,
    /// Kernels and bases.
    pub cache: &'a Path,
    /// A kernel other than ours.
    pub kernel: Option<&'a Path>,
}

/// Runs the demonstration; `say` is told what goes on. With `full` it fills 90 % of the memory a fork grew by.
///
/// # Errors
/// [`DemoError`] when it cannot go on. A proof that does not hold is in the report, not an error. Nothing is
/// left either way.
pub fn run(place: Place<'_>, full: bool, say: &mut dyn FnMut(&str)) -> Result<Report, DemoError> {
    let scratch = Scratch::take(place.data, "demo")?;
    let host = Host::open(scratch.path(), place.cache, place.kernel)?;
    let mut report = Report::default();

    // First: an image's id does not depend on builderMemoryMB, so it would be found built afterwards.
    let starved = Recipe::new(TOO_LITTLE_MB, FLOOR_MB)?;
    say(&format!(
        "the build with {TOO_LITTLE_MB} MiB, which must run out of memory"
    ));
    report.oom = starve(&host, &starved)?;

    let recipe = Recipe::new(BUILDER_MB, FLOOR_MB)?;
    say(&format!("the same with {BUILDER_MB} MiB"));
    let built = spore_builder::build(
        &host,
        recipe.manifest(),
        &Options::offline(),
        &mut BuildProgress::new(),
    )?;
    (report.build, report.finalize) = describe(&recipe, &built);

    let mut forks = forks::Forks::new(&host, &built.checkpoint, &recipe, full)?;
    for requested in SIZES_MB {
        say(&format!("a fork that asks for {requested} MiB"));
        let fork = forks.try_one(requested, say);
        report.forks.push(fork);
    }

    say("looking for what is left");
    host.store().delete_image(&built.image.record.id)?;
    // The disks after its steps too, which other builds could go on from.
    host.store().prune_steps(PruneSteps::ALL)?;
    host.store().gc(&Keep {
        drop_bases: true,
        ..Keep::default()
    })?;
    report.leftovers = left(scratch.path());
    report.leftovers.extend(scratch.remove());
    report.ok = report.all_held();
    Ok(report)
}

/// Builds with too little memory. What else than running out of it ends the build is an error if it would
/// end the other build too, and else a proof that does not hold.
fn starve(host: &Host, recipe: &Recipe) -> Result<OomReport, DemoError> {
    let started = Instant::now();
    let (as_expected, error) = match spore_builder::build(
        host,
        recipe.manifest(),
        &Options::offline(),
        &mut BuildProgress::new(),
    ) {
        Err(error @ BuildError::OutOfMemory { .. }) => {
            let message = error.to_string();
            (message.contains("builderMemoryMB"), message)
        }
        Err(error @ (BuildError::StepFailed { .. } | BuildError::NotIntact { .. })) => {
            (false, error.to_string())
        }
        Err(error) => return Err(error.into()),
        Ok(built) => {
            // So that the next build is one.
            host.store().delete_image(&built.image.record.id)?;
            (false, "none: the build succeeded".to_owned())
        }
    };
    Ok(OomReport {
        builder_memory_mb: TOO_LITTLE_MB,
        seconds: report::seconds(started.elapsed()),
        error,
        as_expected,
    })
}

fn describe(recipe: &Recipe, built: &Built) -> (BuildReport, FinalizeReport) {
    let took = |phase: Option<Duration>| report::seconds(phase.unwrap_or_default());
    let build = BuildReport {
        seconds: took(built.build),
        builder_memory_mb: BUILDER_MB,
        content_hash: recipe.manifest().content_hash().to_string(),
    };
    let finalize = FinalizeReport {
        seconds: took(built.finalize),
        floor_mb: FLOOR_MB,
        memory_file_bytes: built.memory_bytes,
    };
    (build, finalize)
}

/// What is left of all VMs and of the removed image, one thing a line.
fn left(root: &Path) -> Vec<String> {
    let started = Instant::now();
    loop {
        let children = leftovers::children().into_iter();
        let mut found: Vec<_> = children.map(|pid| format!("process {pid} (a child)")).collect();
        found.extend(leftovers::in_store(root));
        found.extend(leftovers::published(root));
        if found.is_empty() || started.elapsed() > SOON {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
