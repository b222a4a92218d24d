//! Who does what can be done with the daemon and without: the daemon, if one serves the data directory that is meant.

use std::path::Path;

use serde_json::Value;

use super::{Daemon, data_dir};
use crate::cli::Global;
use crate::client::ClientError;
use crate::failure::Failure;

/// Who does it.
pub(super) enum Side {
    /// We, on the data directory itself.
    Alone,
    /// The daemon.
    Daemon(Daemon),
}

/// The daemon if one listens; where a data directory was named, only one that serves that.
///
/// # Errors
/// When somebody may listen who cannot be asked: beside a daemon nothing is done behind its back.
pub(super) fn side(global: &Global) -> Result<Side, Failure> {
    let daemon = Daemon::new(global)?;
    let socket = global.socket.display();
    if !daemon.client.listens().map_err(unreachable)? {
        tracing::info!("nobody listens at {socket}: working without a daemon");
        return Ok(Side::Alone);
    }
    if global.data.is_some() && !serves(&daemon, &data_dir(global)?)? {
        tracing::info!("the daemon at {socket} has another data directory: working without it");
        return Ok(Side::Alone);
    }
    tracing::info!("asking the daemon at {socket}");
    Ok(Side::Daemon(daemon))
}

fn unreachable(error: ClientError) -> Failure {
    let advice = matches!(error, ClientError::Connect { .. });
    let failure = Failure::from(error);
    match advice {
        true => failure.with_advice("to work without that daemon, name a --socket at which nobody listens"),
        false => failure,
    }
}

/// Whether the daemon's data directory is this one.
fn serves(daemon: &Daemon, dir: &Path) -> Result<bool, Failure> {
    let host: Value = daemon.client.get("/v1/host")?.value()?;
    // One that is not there, or that we may not look for, has no other path that we know.
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    Ok(host["dataDir"] == *dir.to_string_lossy())
}
