//! `spore demo`.

use std::process::ExitCode;

use super::{cache_dir, data_dir, print_json};
use crate::cli::{Demo, Global};
use crate::demo::{self, Place};
use crate::failure::Failure;
use crate::ui;

/// Runs the demonstration; its exit code says whether every proof held.
pub fn run(global: &Global, args: &Demo) -> Result<ExitCode, Failure> {
    let place = Place {
        data: &data_dir(global)?,
        cache: &cache_dir(global)?,
        kernel: global.kernel.as_deref(),
    };
    let report = demo::run(place, args.full, &mut |line| ui::tell(format_args!("{line}")))?;
    if global.json {
        print_json(&serde_json::to_value(&report).map_err(Failure::internal)?)?;
    } else {
        ui::line(format_args!("{}", demo::render(&report).trim_end()))?;
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}
