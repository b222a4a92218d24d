//! The program `hold`, which fills a guest's memory and says what it finds there: see `guest/hold.rs`.

use sha2::{Digest, Sha256};

/// The program.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hold"));

/// Where images of these tests have it.
pub const PATH: &str = "/usr/local/bin/hold";

/// A script that starts it, in a session of its own, so that it outlives the connection it was started over.
pub fn start(mib: u32, seed: u64, fifo: &str) -> String {
    format!("mkfifo {fifo} && setsid {PATH} {mib} {seed} {fifo} >/dev/null 2>&1 &")
}

/// A script that says the digest of the memory it holds now, as soon as it is full.
pub fn ask(fifo: &str) -> String {
    format!("read -r digest <{fifo} && echo $digest")
}

/// The digest it should find.
pub fn expected(mib: u32, seed: u64) -> String {
    let mut hash = Sha256::new();
    let mut next = seed;
    for _ in 0..mib {
        let mut chunk = Vec::with_capacity(1 << 20);
        for _ in 0..1 << 17 {
            next ^= next << 13;
            next ^= next >> 7;
            next ^= next << 17;
            chunk.extend(next.to_le_bytes());
        }
        hash.update(&chunk);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
