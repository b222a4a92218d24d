//! What a person sees: tables, sizes, ages, the progress of a build.

use std::fmt::Arguments;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use spore_builder::observe::{BuildEvent, Observer};
use spore_daemon::engine::builds::message;
use spore_types::BuildMessage;

use crate::failure::Failure;

/// Bytes as a person says them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (count.max(1).ilog2() / 10).min(4);
    let scaled = count as f64 / f64::from(1u32 << 10).powi(unit.cast_signed());
    match unit {
        0 => format!("{count} B"),
        _ => format!("{scaled:.1} {}", UNITS[unit as usize]),
    }
}

/// Seconds since 1970-01-01 UTC.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long ago `unix_seconds` was.
pub fn age(unix_seconds: u64) -> String {
    let past = self::unix_seconds(SystemTime::now()).saturating_sub(unix_seconds);
    format!("{} ago", span(past))
}

/// How long it is until `unix_seconds`.
pub fn until(unix_seconds: u64) -> String {
    let left = unix_seconds.saturating_sub(self::unix_seconds(SystemTime::now()));
    format!("in {}", span(left))
}

/// A number of seconds in its largest unit.
pub fn span(seconds: u64) -> String {
    match seconds {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}

/// A time in milliseconds since 1970-01-01 UTC as RFC 3339 has it.
pub fn utc(unix_ms: u64) -> String {
    use std::fmt::Write as _;
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    // What is after the year 9999 has no such form.
    let shown = time.and_then(|time| {
        let mut text = String::new();
        write!(text, "{}", humantime::format_rfc3339_millis(time)).ok()?;
        Some(text)
    });
    shown.unwrap_or_else(|| format!("{unix_ms} ms"))
}

/// The digits of an id that a table shows; a name stays whole.
pub fn short(id: &str) -> &str {
    let digits = id.len() > SHORT && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { &id[..SHORT] } else { id }
}

/// Digits of an id in a table.
const SHORT: usize = 12;

/// A duration to a tenth of a second, or in milliseconds when it is short.
pub fn took(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Microseconds.
pub fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// A line on standard output. Where nobody reads any more there is nobody to tell, and that is no failure;
/// `println!` would panic.
///
/// # Errors
/// When it cannot be written for another reason, such as a full disk.
pub fn line(text: Arguments<'_>) -> Result<(), Failure> {
    written(writeln!(std::io::stdout().lock(), "{text}"))
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::internal(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A line on standard error, if that can be written to; `eprintln!` would panic.
pub fn tell(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Rows under a header, columns aligned, on standard output.
///
/// # Errors
/// As [`line`].
pub fn table(header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    layout(header, rows)
        .iter()
        .try_for_each(|row| line(format_args!("{row}")))
}

/// Rows under a header as lines, columns aligned.
pub fn layout(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count());
            cells.chain([header[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<_> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

/// Tells of a build on standard error: a bar on a terminal, plain lines in a pipe.
pub struct BuildProgress {
    bar: Option<ProgressBar>,
    partial: Vec<u8>,
    worked: bool,
}

impl BuildProgress {
    /// For the standard error there is.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            bar,
            partial: Vec::new(),
            worked: false,
        }
    }

    /// Whether anything was booted: not all of it was there already.
    pub fn worked(&self) -> bool {
        self.worked
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => tell(format_args!("{text}")),
        }
    }

    /// What goes on now: the bar's text, or a line.
    fn now(&self, text: String) {
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_message(text);
            }
            None => tell(format_args!("{text}")),
        }
    }

    /// Prints the complete lines of a step's output.
    fn output(&mut self, bytes: &[u8]) {
        self.partial.extend(bytes);
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.line(&format!("  | {}", printable(&line)));
        }
        // A line that never ends is not kept for ever.
        if self.partial.len() > 4096 {
            self.finish_line();
        }
    }

    fn finish_line(&mut self) {
        if !self.partial.is_empty() {
            let line = std::mem::take(&mut self.partial);
            self.line(&format!("  | {}", printable(&line)));
        }
    }
}

impl Drop for BuildProgress {
    fn drop(&mut self) {
        self.finish_line();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Guest output without what could drive a terminal.
fn printable(line: &[u8]) -> String {
    harmless(&String::from_utf8_lossy(line))
}

/// A line without what could drive a terminal.
pub fn harmless(line: &str) -> String {
    line.chars().filter(|c| *c == '\t' || !c.is_control()).collect()
}

impl BuildProgress {
    /// Shows what a build says; its end is for others.
    pub fn hear(&mut self, message: &BuildMessage) {
        match message {
            BuildMessage::Phase { phase, message } => {
                self.finish_line();
                self.worked |= matches!(phase.as_str(), "booting" | "finalizing");
                match phase.as_str() {
                    "waiting" | "booting" | "finalizing" => self.now(harmless(message)),
                    _ => self.line(&harmless(message)),
                }
            }
            BuildMessage::StepStarted { step, of, label } => {
                self.now(format!("step {}/{of}: {}", step + 1, harmless(label)));
            }
            BuildMessage::StepCached { step, of, label } => {
                self.line(&format!("step {}/{of}: {}: cached", step + 1, harmless(label)));
            }
            BuildMessage::Output { text } => self.output(text.as_bytes()),
            BuildMessage::StepDone { step, took_ms } => {
                self.finish_line();
                let time = took(Duration::from_millis(*took_ms));
                self.line(&format!("step {} done in {time}", step + 1));
            }
            BuildMessage::Build { .. } | BuildMessage::Image { .. } | BuildMessage::Error { .. } => {}
        }
    }
}

impl Observer for BuildProgress {
    fn event(&mut self, event: BuildEvent<'_>) {
        match event {
            // As bytes: a character may begin in one piece and end in the next.
            BuildEvent::Output(bytes) => self.output(bytes),
            event => self.hear(&message(event)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(34 << 20), "34.0 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn instants_are_told_in_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_735_689_599_000), "2024-12-31T23:59:59.000Z");
        assert_eq!(utc(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(utc(u64::MAX), "18446744073709551615 ms");
    }

    #[test]
    fn only_digits_are_shortened() {
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
        assert_eq!(short("a-name-that-is-long"), "a-name-that-is-long");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is() {
        assert!(written(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(written(Err(io::ErrorKind::StorageFull.into())).is_err());
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".to_owned(), "b".to_owned()],
            vec!["long".to_owned(), "c".to_owned()],
        ];
        assert_eq!(layout(&["X", "Y"], &rows), ["X     Y", "a     b", "long  c"]);
    }

    #[test]
    fn guest_output_cannot_drive_the_terminal() {
        assert_eq!(printable(b"a\x1b[2Jb\r\n"), "a[2Jb");
    }
}
