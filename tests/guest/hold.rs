//! Runs inside a guest: `hold MIB SEED FIFO` fills memory of its own with a pseudo-random stream, and writes
//! the SHA-256 that it finds there to the FIFO whenever somebody opens it to read a line.
//!
//! All of it happens in user mode, which runs at full speed also where a guest's kernel is interpreted; moving
//! as much through files and pipes takes minutes there. The stream is what `spore_tests::hold::expected` hashes`.

use std::fs::File;
use std::io::Write;

const ROUND: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98,
    0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8,
    0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819,
    0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2,
];

const PIECE_MIB: usize = 32;

/// SHA-256 of whole blocks: words of eight bytes, little-endian, their number in each piece a multiple of eight.
fn sha256(pieces: &[Vec<u64>]) -> [u32; 8] {
    let mut state = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    ];
    for block in pieces.iter().flat_map(|piece| piece.chunks_exact(8)) {
        let mut input = [0; 16];
        for (pair, word) in input.chunks_exact_mut(2).zip(block) {
            let bytes = word.to_le_bytes();
            pair[0] = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            pair[1] = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        }
        compress(&mut state, input);
    }
    let bits = pieces.iter().map(|piece| piece.len() as u64 * 64).sum::<u64>();
    let mut padding = [0; 16];
    padding[0] = 0x8000_0000;
    padding[14] = (bits >> 32) as u32;
    padding[15] = bits as u32;
    compress(&mut state, padding);
    state
}

fn compress(state: &mut [u32; 8], input: [u32; 16]) {
    let mut w = [0u32; 64];
    w[..16].copy_from_slice(&input);
    for i in 16..64 {
        let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ (w[i - 15] >> 3);
        let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for i in 0..64 {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let t1 = h.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(ROUND[i]).wrapping_add(w[i]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (word, more) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(more);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mib, seed, fifo] = &arguments[..] else {
        panic!("usage: hold MIB SEED FIFO");
    };
    let mib: usize = mib.parse().expect("MIB is a number");
    let mut next: u64 = seed.parse().expect("SEED is a number");
    // In pieces: the kernel refuses at once to map more than it could ever have.
    let mut memory: Vec<Vec<u64>> = Vec::new();
    for at in (0..mib).step_by(PIECE_MIB) {
        let words = (mib - at).min(PIECE_MIB) << 17;
        let mut piece = Vec::with_capacity(words);
        for _ in 0..words {
            next ^= next << 13;
            next ^= next >> 7;
            next ^= next << 17;
            piece.push(next);
        }
        memory.push(piece);
    }
    loop {
        // Returns when somebody reads; only then is the memory looked at.
        let mut file = File::create(fifo).expect("the FIFO can be opened");
        let digest: String = sha256(&memory).iter().map(|word| format!("{word:08x}")).collect();
        // Who does not wait for the answer misses it.
        let _ = writeln!(file, "{digest}");
    }
}
