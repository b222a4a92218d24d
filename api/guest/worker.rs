//! Runs inside a guest for `spore bench`.
//!
//! - `worker touch MIB` writes to every page of so much memory of its own, says `touched`, and keeps it until its
//!   standard input ends.
//! - `worker watch MILLIS` says `watching`, looks at `CLOCK_MONOTONIC` again and again for so long, and says the
//!   longest time between two looks: `gap NANOSECONDS looks COUNT`. Whoever stops the guest, or takes its processor
//!   away, is seen in it.
//!
//! Both work in user mode, which runs at full speed also where a guest's kernel is interpreted: looking at the clock
//! is no system call (vdso(7)).

use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// In pieces: the kernel refuses at once to map more than it could ever have.
const PIECE_MIB: usize = 32;
const PAGE: usize = 4096;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Who does not listen any more has hung up, and ends us soon.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn touch(mib: usize) {
    let mut memory: Vec<Vec<u8>> = Vec::new();
    for at in (0..mib).step_by(PIECE_MIB) {
        let bytes = (mib - at).min(PIECE_MIB) << 20;
        let mut piece = vec![0u8; bytes];
        for (page, byte) in piece.iter_mut().step_by(PAGE).enumerate() {
            *byte = page as u8 | 1;
        }
        memory.push(piece);
    }
    std::hint::black_box(&memory);
    say("touched");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::hint::black_box(&memory);
}

fn watch(millis: u64) {
    say("watching");
    let end = Instant::now() + Duration::from_millis(millis);
    let (mut last, mut gap, mut looks) = (Instant::now(), Duration::ZERO, 0u64);
    while last < end {
        let now = Instant::now();
        gap = gap.max(now - last);
        last = now;
        looks += 1;
    }
    say(&format!("gap {} looks {looks}", gap.as_nanos()));
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |text: &String| text.parse::<u64>().expect("the second argument is a number");
    match &arguments[..] {
        [_, mode, mib] if mode == "touch" => touch(number(mib) as usize),
        [_, mode, millis] if mode == "watch" => watch(number(millis)),
        _ => panic!("usage: worker touch MIB | worker watch MILLIS"),
    }
}
