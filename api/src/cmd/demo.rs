//! `spore demo`.

use std::process::ExitCode;

use super::{host, print_json};
use crate::cli::{Demo, Global};
use crate::demo::{self, DemoOptions};
use crate::failure::Failure;

/// Runs the demonstration; its exit code says whether every proof held.
pub fn run(global: &Global, args: &Demo) -> Result<ExitCode, Failure> {
    let host = host(global)?;
    let options = DemoOptions { full: args.full };
    let report = demo::run(&host, &options, &mut |line| eprintln!("{line}")).map_err(Failure::internal)?;
    if global.json {
        print_json(&serde_json::to_value(&report).map_err(Failure::internal)?);
    } else {
        print!("{}", demo::render(&report));
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}
