//! What the tests on real guests stand on.
//!
//! A test here does not boot: one image is built for all of them, and each forks it. This crate has what that
//! takes and nothing of what is tested: [`host`] finds the programs and files of this machine, [`harness`] runs
//! the tests and looks afterwards that nothing is left, [`data`] is where everything of a run lies, [`left`]
//! finds processes, sockets and mounts, [`role`] runs part of a test in a process of its own, [`sandbox`] is a
//! guest with its agent, [`soak`] a long random test, [`wire`] a network with an internet, [`archive`] packages for
//! it to serve, [`copies`], [`hold`], [`stall`] and [`witness`] are programs that run in guests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "only tests use this, and a test may panic"
)]

pub mod archive;
pub mod copies;
pub mod data;
pub mod harness;
pub mod hold;
pub mod host;
pub mod http;
pub mod left;
pub mod role;
pub mod sandbox;
pub mod shortage;
pub mod soak;
pub mod stall;
pub mod wire;
pub mod witness;
