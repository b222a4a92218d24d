//! Filling grown memory: a program in the guest writes it and reads it back.

use spore_protocol::{ExecOutput, ExecRequest};

/// The program; it says itself what it does.
const PROGRAM: &str = include_str!("fill.awk");
/// Records a MiB.
const A_MIB: u64 = 256;
/// What a record takes of awk's heap, with the array's own bookkeeping, in bytes.
const RECORD_ON_HEAP: u64 = 4400;

/// What the program said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filled {
    /// MiB of movable memory that were free before.
    pub free_mb: u64,
    /// And when it was full.
    pub full_mb: u64,
    /// The checksum of what it read back.
    pub sum: u64,
    /// Records that were not as they had been written.
    pub wrong: u64,
}

/// A command that fills `megabytes` MiB.
pub(super) fn command(megabytes: u32, seed: u32) -> ExecRequest {
    let records = u64::from(megabytes) * A_MIB;
    let mut request = ExecRequest::new([
        "awk".to_owned(),
        "-v".to_owned(),
        format!("records={records}"),
        "-v".to_owned(),
        format!("seed={seed}"),
        PROGRAM.to_owned(),
    ]);
    // The heap grows once, in one piece: so the kernel hands out 2 MiB at a time.
    let pad = records * RECORD_ON_HEAP + (16 << 20);
    request.env.insert("MALLOC_TOP_PAD_".to_owned(), pad.to_string());
    request
}

/// What the command's output says; what it did instead of saying it, if it does not.
pub(super) fn parse(output: &ExecOutput) -> Result<Filled, String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<_> = text.split_whitespace().collect();
    match words[..] {
        ["free", free, "full", full, "sum", sum, "wrong", wrong] => {
            let number = |word: &str| word.parse().map_err(|_| format!("{word} is no number"));
            Ok(Filled {
                free_mb: number(free)?,
                full_mb: number(full)?,
                sum: number(sum)?,
                wrong: number(wrong)?,
            })
        }
        _ => Err(format!(
            "{:?}, {} processes killed for want of memory: {text} {}",
            output.outcome.status,
            output.outcome.oom_kills,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// The checksum the program must find.
pub(super) fn checksum(megabytes: u32, seed: u32) -> u64 {
    let mut number = u64::from(seed);
    let mut sum = 0;
    for _ in 0..u64::from(megabytes) * A_MIB {
        number = (number * 69069 + 1) % (1 << 30);
        sum = (sum * 31 + 1_000_000_000 + number) % (1 << 31);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use spore_protocol::{ExecOutcome, ExitStatus};

    fn output(stdout: &str) -> ExecOutput {
        ExecOutput {
            outcome: ExecOutcome {
                status: ExitStatus::Code(0),
                oom_kills: 0,
                max_rss_bytes: 0,
            },
            stdout: stdout.into(),
            stderr: Vec::new(),
        }
    }

    #[test]
    fn what_the_program_says_is_understood() {
        let filled = parse(&output("free 510\nfull 254\nsum 17 wrong 0\n")).unwrap();
        assert_eq!(
            filled,
            Filled {
                free_mb: 510,
                full_mb: 254,
                sum: 17,
                wrong: 0
            }
        );
        assert!(parse(&output("free 510\n")).unwrap_err().contains("free 510"));
        assert!(parse(&output("free x full 1 sum 2 wrong 0")).is_err());
    }

    #[test]
    fn host_and_program_agree_on_the_checksum() {
        let request = command(1, 7);
        // Any awk will do; without one there is nothing to compare with here, and the demo does it anyway.
        let Ok(out) = std::process::Command::new(&request.argv[0])
            .args(&request.argv[1..])
            .output()
        else {
            return;
        };
        let filled = parse(&output(&String::from_utf8_lossy(&out.stdout))).unwrap();
        assert_eq!((filled.sum, filled.wrong), (checksum(1, 7), 0));
    }
}
