//! Builds that we do.

use std::time::Duration;

use spore_builder::options::BuildNetwork;
use spore_builder::{Manifest, Options};
use spore_daemon::engine::images::show;
use spore_types::Image;

use super::super::host;
use crate::cli::{Build, Global};
use crate::failure::Failure;
use crate::interrupt::cancel_on_signal;
use crate::ui::BuildProgress;

/// Builds the image into the data directory.
pub fn build(
    global: &Global,
    args: &Build,
    manifest: &Manifest,
    progress: &mut BuildProgress,
) -> Result<Image, Failure> {
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
    let built = spore_builder::build(&host, manifest, &options, progress)?;
    Ok(show(&built.image))
}
