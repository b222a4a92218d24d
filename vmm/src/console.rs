//! The serial console's log file: the guest's last words, bounded.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The log starts over when it would grow beyond this many bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Where the serial port writes.
pub struct ConsoleLog {
    file: File,
    written: u64,
}

impl ConsoleLog {
    /// Writes to `file` from its beginning.
    pub fn new(file: File) -> Self {
        Self { file, written: 0 }
    }
}

impl Write for ConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= MAX_BYTES {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.written = 0;
            self.file
                .write_all(b"[spore: the log was full and starts over]\n")?;
        }
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first words of a kernel's panic (kernel/panic.c); a call trace of any length follows.
const PANIC: &str = "Kernel panic - not syncing";

/// The last `lines` lines of a console log, for an error message; control characters are dropped. Of a panic, the lines
/// from where it says so.
pub fn tail(path: &Path, lines: usize) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)))?;
        file.take(64 << 10).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return String::new();
    }
    let text: String = String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect();
    let all: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = all.len().saturating_sub(lines);
    let from = all
        .iter()
        .rposition(|line| line.contains(PANIC))
        .map_or(last, |at| at.min(last));
    all[from..all.len().min(from + lines)].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_without_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::new(File::create(&path).unwrap());
        log.write_all(b"one\r\n\x1b[1mtwo\r\n\r\nthree\r\n").unwrap();
        assert_eq!(tail(&path, 2), "[1mtwo\nthree");
        assert_eq!(tail(&dir.path().join("none"), 2), "");
    }

    #[test]
    fn a_panic_is_told_from_where_it_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let trace = "trace\n".repeat(30);
        let text = format!("before\n[ 1.0] Kernel panic - not syncing: why\n{trace}");
        std::fs::write(file.path(), text).unwrap();
        let told = tail(file.path(), 3);
        assert_eq!(told, "[ 1.0] Kernel panic - not syncing: why\ntrace\ntrace");
    }

    #[test]
    fn a_guest_that_never_stops_talking_does_not_fill_the_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = ConsoleLog::new(file.reopen().unwrap());
        for _ in 0..10 {
            log.write_all(&[b'x'; 1 << 20]).unwrap();
        }
        assert!(file.as_file().metadata().unwrap().len() <= MAX_BYTES + (1 << 20));
    }
}
