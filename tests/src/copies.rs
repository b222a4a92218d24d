//! The program `copies`, which copies memory and looks whether it is the same: see `guest/copies.rs`.

/// The program.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/copies"));
