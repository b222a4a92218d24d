//! Runs inside a guest: `copies N` fills memory with a pattern of its own, copies it many times while others like it
//! do the same, and ends with 1 if a copy is not the same.
//!
//! A copy goes through the widest registers that the C library finds. Where a guest's kernel does not switch all of
//! those, two of these see each other's bytes within a second.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Of processor time, together long enough that each is interrupted in many copies.
const LONG: Duration = Duration::from_secs(3);
/// Small enough for the processor's own cache: time goes to copying.
const BYTES: usize = 16 << 10;
/// Copies between two looks at the clock and the bytes, which cost a call of the kernel.
const COPIES: usize = 10_000;

fn main() {
    let number: Option<u8> = std::env::args().nth(1).and_then(|number| number.parse().ok());
    let pattern = vec![number.expect("usage: copies N"); BYTES];
    let mut copy = pattern.clone();
    let began = Instant::now();
    let mut copies: u64 = 0;
    while began.elapsed() < LONG {
        for _ in 0..COPIES {
            black_box(&mut copy).copy_from_slice(black_box(&pattern));
            copies += 1;
            // The next copy would hide it.
            if let Some(at) = copy.iter().zip(&pattern).position(|(copy, pattern)| copy != pattern) {
                eprintln!("copy {copies}: {:#x} at {at}, not {:#x}", copy[at], pattern[at]);
                std::process::exit(1);
            }
        }
    }
    println!("right");
}
