//! `spore serve`.

use std::process::ExitCode;
use std::time::Duration;

use spore_daemon::{Config, Limits};
use spore_vmm::pool::Budget;

use super::{cache_dir, data_dir};
use crate::cli::{Global, Serve};
use crate::failure::Failure;
use crate::ui;

/// Serves until it is told to stop.
pub fn run(global: &Global, args: &Serve) -> Result<ExitCode, Failure> {
    if args.openapi {
        let text = spore_daemon::openapi().map_err(Failure::internal)?;
        ui::line(format_args!("{text}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config {
        socket: std::path::absolute(&global.socket).map_err(Failure::internal)?,
        data: data_dir(global)?,
        cache: cache_dir(global)?,
        kernel: global.kernel.clone(),
        network_range: global.network_range,
        cgroup: args.cgroup.clone(),
        limits: Limits {
            reserve_mb: args.reserve,
            overcommit: args.overcommit,
            sandboxes: args.max_sandboxes,
            builds: args.max_builds,
            idle_seconds: args.idle_timeout,
            stalled: Duration::from_secs(args.client_timeout.into()),
            ..Limits::default()
        },
        budget: Budget {
            templates: args.templates.into(),
            shells_per_template: args.shells_per_template.into(),
            shells: args.shells.into(),
        },
    };
    let at = config.socket.clone();
    spore_daemon::serve(config, || {
        ui::tell(format_args!("spore: serving at {}", at.display()));
    })
    .map_err(Failure::internal)?;
    Ok(ExitCode::SUCCESS)
}
