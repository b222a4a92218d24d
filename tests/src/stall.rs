//! The program `stall`, which takes a guest's processor and never gives it back: see `guest/stall.rs`.

/// The program.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stall"));
