//! `spore bench`: measuring.

use std::process::ExitCode;

use serde::Serialize;
use spore_builder::Host;

use super::{data_dir, host, host_in, print_json};
use crate::bench::api::{self, ApiPlan};
use crate::bench::checkpoint::{self, SavePlan};
use crate::bench::fork::{self, ForkPlan};
use crate::bench::image::{Target, Wanted};
use crate::bench::live_fork::{self, LiveForkPlan};
use crate::bench::matrix::{self, MatrixPlan};
use crate::bench::{grow, render};
use crate::cli::{Bench, BenchFork, BenchOf, Global};
use crate::failure::Failure;
use crate::interrupt::cancel_on_signal;
use crate::scratch::Scratch;
use crate::ui;

/// Runs a benchmark and prints what came of it.
pub fn run(global: &Global, args: &Bench) -> Result<ExitCode, Failure> {
    let host = || host(global);
    match args {
        Bench::Api {
            image,
            count,
            concurrency,
            cycles,
        } => {
            let plan = ApiPlan {
                image: image.clone(),
                count: usize::from(*count),
                concurrency: concurrency.iter().copied().map(usize::from).collect(),
                cycles: *cycles as usize,
            };
            let report = api::run(&global.socket, &plan, &mut say)?;
            show(global, &report, render::api)?;
            Ok(ExitCode::SUCCESS)
        }
        Bench::Fork(args) => forks(global, &host()?, args),
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
            let host = host()?;
            let target = find(&host, of, *cpus)?;
            let report = live_fork::run(&host, &target, *cpus, &plan, &mut say)?;
            let failed = !report.errors.is_empty();
            show(global, &report, render::live_fork)?;
            Ok(ExitCode::from(u8::from(failed)))
        }
        Bench::Grow { of, sizes } => {
            let host = host()?;
            let report = grow::run(&host, &find(&host, of, 1)?, sizes, &mut say)?;
            show(global, &report, render::grow)?;
            Ok(ExitCode::from(u8::from(report.error.is_some())))
        }
        Bench::Checkpoint { of, count, touched } => {
            let plan = SavePlan {
                count: usize::from(*count),
                touched_mb: touched.clone(),
            };
            let host = host()?;
            let report = checkpoint::run(&host, &find(&host, of, 1)?, &plan, &mut say)?;
            show(global, &report, render::checkpoint)?;
            Ok(ExitCode::SUCCESS)
        }
        Bench::Matrix {
            builds,
            floors,
            sizes,
        } => {
            let plan = MatrixPlan {
                builds_mb: builds.clone(),
                floors_mb: floors.clone(),
                sizes_mb: sizes.clone(),
            };
            // In a data directory of its own, which goes again.
            let scratch = Scratch::take(&data_dir(global)?, "matrix")?;
            let host = host_in(global, scratch.path())?;
            let report = matrix::run(&host, &plan, &cancel_on_signal()?, &mut say)?;
            drop(host);
            let left = scratch.remove();
            if !left.is_empty() {
                return Err(Failure::internal(format!("left behind: {}", left.join(", "))));
            }
            show(global, &report, render::matrix)?;
            Ok(ExitCode::from(u8::from(report.error.is_some())))
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
