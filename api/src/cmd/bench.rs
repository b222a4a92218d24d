//! `spore bench`: measuring.

use std::process::ExitCode;

use serde::Serialize;
use spore_builder::Host;

use super::{host, print_json};
use crate::bench::checkpoint::{self, SavePlan};
use crate::bench::fork::{self, ForkPlan};
use crate::bench::image::{Target, Wanted};
use crate::bench::live_fork::{self, LiveForkPlan};
use crate::bench::{grow, render};
use crate::cli::{Bench, BenchFork, BenchOf, Global};
use crate::failure::Failure;
use crate::ui;

/// Runs a benchmark and prints what came of it.
pub fn run(global: &Global, args: &Bench) -> Result<ExitCode, Failure> {
    let host = host(global)?;
    match args {
        Bench::Fork(args) => forks(global, &host, args),
        Bench::LiveFork {
            of,
            cpus,
            count,
            touched,
        } => {
            let plan = LiveForkPlan {
                count: usize::from(*count),
                touched_mb: touched.clone(),
            };
            let target = find(&host, of, *cpus)?;
            let report = live_fork::run(&host, &target, *cpus, &plan, &mut say)?;
            let failed = !report.errors.is_empty();
            show(global, &report, render::live_fork)?;
            Ok(ExitCode::from(u8::from(failed)))
        }
        Bench::Grow { of, sizes } => {
            let report = grow::run(&host, &find(&host, of, 1)?, sizes, &mut say)?;
            show(global, &report, render::grow)?;
            Ok(ExitCode::from(u8::from(report.error.is_some())))
        }
        Bench::Checkpoint { of, count, touched } => {
            let plan = SavePlan {
                count: usize::from(*count),
                touched_mb: touched.clone(),
            };
            let report = checkpoint::run(&host, &find(&host, of, 1)?, &plan, &mut say)?;
            show(global, &report, render::checkpoint)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn forks(global: &Global, host: &Host, args: &BenchFork) -> Result<ExitCode, Failure> {
    let plan = ForkPlan {
        arm: args.arm,
        count: usize::from(args.count),
        concurrency: usize::from(args.concurrency),
        keep: args.keep,
        exec: !args.no_exec,
        memory: !args.no_memory,
        // 0 is a way to say none.
        fan_outs: args
            .fan_outs
            .iter()
            .map(|&forks| usize::from(forks))
            .filter(|&forks| forks > 0)
            .collect(),
        trace: args.trace,
    };
    let report = fork::run(host, &find(host, &args.of, 1)?, &plan, &mut say)?;
    show(global, &report, render::fork)?;
    Ok(ExitCode::from(u8::from(!report.errors.is_empty())))
}

fn find(host: &Host, of: &BenchOf, cpus: u8) -> Result<Target, Failure> {
    let wanted = Wanted {
        image: of.image.as_deref(),
        memory_mb: of.memory,
        cpus,
    };
    Ok(Target::find(host, wanted)?)
}

fn say(line: &str) {
    ui::tell(format_args!("{line}"));
}

fn show<T: Serialize>(global: &Global, report: &T, render: fn(&T) -> String) -> Result<(), Failure> {
    if global.json {
        print_json(&serde_json::to_value(report).map_err(Failure::internal)?)
    } else {
        ui::line(format_args!("{}", render(report).trim_end()))
    }
}
