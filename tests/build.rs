//! Compiles the programs that tests run inside guests, static: what a base has to offer knows no C library.

#![allow(clippy::expect_used, reason = "a build script says why it stops by panicking")]

use std::path::PathBuf;
use std::process::Command;

fn main() {
    for program in ["copies", "hold", "stall", "witness"] {
        compile(program);
    }
}

fn compile(program: &str) {
    let source = format!("guest/{program}.rs");
    println!("cargo::rerun-if-changed={source}");
    let rustc = std::env::var_os("RUSTC").expect("cargo says which compiler");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where to"));
    let mut compile = Command::new(rustc);
    compile
        .args(["--edition=2024", "--crate-name", program])
        .args(["-Copt-level=3", "-Cpanic=abort"])
        .args(["-Cstrip=symbols", "-Clto=fat", "-Ccodegen-units=1"])
        .args(["-Ctarget-feature=+crt-static", "-Crelocation-model=static"])
        .args([&source, "-o"])
        .arg(out.join(program));
    let status = compile.status().expect("the compiler runs");
    assert!(status.success(), "{compile:?}: {status}");
}
