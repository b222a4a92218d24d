//! `spore completions`, `spore man`: made from the command line's own description.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::cli::remote::Man;
use crate::failure::Failure;
use crate::ui;

/// Prints a shell's completions.
pub fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spore", &mut text);
    print(&text)
}

/// Prints the manual page, or writes one for each command.
pub fn manual(args: &Man) -> Result<ExitCode, Failure> {
    let Some(dir) = &args.dir else {
        let mut text = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut text)
            .map_err(Failure::internal)?;
        return print(&text);
    };
    let failed = |error: io::Error| Failure::internal(format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    ui::tell(format_args!("spore: pages are in {}", dir.display()));
    Ok(ExitCode::SUCCESS)
}

fn print(text: &[u8]) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::internal(format!("standard output: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
