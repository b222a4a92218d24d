//! `spore`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    spore_api::main()
}
