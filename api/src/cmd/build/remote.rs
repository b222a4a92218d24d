//! Builds that the daemon does.

use spore_builder::BuildError;
use spore_network::Policy;
use spore_types::{BuildNetwork, BuildRequest, Image};

use super::super::Daemon;
use super::super::streams::Signals;
use crate::cli::Build;
use crate::failure::Failure;
use crate::ui::BuildProgress;

/// Has the image built. A signal hangs up, which cancels the build.
pub fn build(
    daemon: &Daemon,
    args: &Build,
    manifest: &[u8],
    progress: &mut BuildProgress,
) -> Result<Image, Failure> {
    let request = BuildRequest {
        manifest: serde_json::from_slice(manifest).map_err(Failure::internal)?,
        no_cache: args.no_cache,
        // The command line has none that is longer than this can say.
        step_timeout_seconds: Some(u32::try_from(args.step_timeout).unwrap_or(u32::MAX)),
        network: network(args.network.as_ref()),
    };
    daemon.client.block_on(async {
        let mut signals = Signals::new().map_err(Failure::internal)?;
        tokio::select! {
            built = daemon.client.build(&request, |message| progress.hear(message)) => Ok(built?),
            _ = signals.told() => Err(BuildError::Cancelled.into()),
        }
    })
}

fn network(asked: Option<&Policy>) -> BuildNetwork {
    match asked {
        None => BuildNetwork::Auto,
        Some(Policy::None) => BuildNetwork::None,
        Some(Policy::Nat) => BuildNetwork::Nat,
        Some(Policy::Allow(list)) => {
            BuildNetwork::Allow(list.entries().iter().map(ToString::to_string).collect())
        }
    }
}
