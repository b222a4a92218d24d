//! `spore top`: what sandboxes use, now.

use std::io::{self, stdout};
use std::time::{Duration, Instant};

use serde_json::json;
use spore_types::{HostInfo, Sandbox, Sandboxes, Usage};
use tokio::signal::unix::{SignalKind, signal};

use super::Daemon;
use super::sandbox::Names;
use crate::client::{ClientError, path};
use crate::failure::Failure;
use crate::{terminal, ui};

/// From one look to the next; processor time is told of what lies between.
const EVERY: Duration = Duration::from_secs(1);
const HEADER: [&str; 7] = ["ID", "IMAGE", "FLOOR", "PLUGGED", "USED", "CPU", "AGE"];
/// Lines of a screen that are no sandbox: two of the host, an empty one, the header, what is left out.
const OTHER_LINES: usize = 5;

/// Watches on a terminal; looks once otherwise.
pub fn run(daemon: &Daemon, once: bool) -> Result<(), Failure> {
    if daemon.json {
        let look = Look::new(daemon, usize::MAX)?;
        return ui::line(format_args!(
            "{}",
            json!({"host": look.host, "sandboxes": look.sandboxes})
        ));
    }
    if once || !terminal::is_one(stdout()) {
        let first = Look::new(daemon, usize::MAX)?;
        std::thread::sleep(EVERY);
        let second = Look::new(daemon, usize::MAX)?;
        return second
            .lines(Some(&first))
            .iter()
            .try_for_each(|line| ui::line(format_args!("{line}")));
    }
    watch(daemon)
}

/// Until a signal.
fn watch(daemon: &Daemon) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::internal(format!("the terminal: {error}"));
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    // They wait for us when they come while the daemon is asked.
    let taken = async { kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>() };
    let mut signals = daemon.client.block_on(taken).map_err(Failure::internal)?;
    // Before the screen is taken: why there is no daemon is to stay readable.
    let mut before = Look::new(daemon, room())?;
    let mut screen = terminal::Screen::enter(stdout()).map_err(failed)?;
    screen.show(&fit(before.lines(None))).map_err(failed)?;
    loop {
        let told = daemon.client.block_on(async {
            let [interrupt, terminate, hangup] = &mut signals[..] else {
                return true;
            };
            tokio::select! {
                () = tokio::time::sleep(EVERY) => false,
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                _ = hangup.recv() => true,
            }
        });
        if told {
            return Ok(());
        }
        let now = Look::new(daemon, room())?;
        screen.show(&fit(now.lines(Some(&before)))).map_err(failed)?;
        before = now;
    }
}

/// Sandboxes that a screen has room for.
fn room() -> usize {
    let rows = terminal::size(stdout()).map_or(24, |size| usize::from(size.rows));
    rows.saturating_sub(OTHER_LINES).max(1)
}

/// Lines no longer than the screen is wide: one that wraps would move all the others.
fn fit(lines: Vec<String>) -> Vec<String> {
    let cols = terminal::size(stdout()).map_or(80, |size| usize::from(size.cols));
    lines
        .into_iter()
        .map(|line| line.chars().take(cols).collect())
        .collect()
}

/// What was seen at one time.
struct Look {
    at: Instant,
    host: HostInfo,
    names: Names,
    /// The newest, with their usage.
    sandboxes: Vec<Sandbox>,
    /// How many there are.
    all: usize,
}

impl Look {
    fn new(daemon: &Daemon, most: usize) -> Result<Self, Failure> {
        let client = &daemon.client;
        let host = client.get("/v1/host")?.value()?;
        let known = client.get::<Sandboxes>("/v1/sandboxes")?.value()?.sandboxes;
        let all = known.len();
        let mut sandboxes = Vec::new();
        for sandbox in known.into_iter().take(most) {
            match client.get::<Sandbox>(&format!("{}?usage=1", path::sandbox(&sandbox.id))) {
                Ok(answer) => sandboxes.push(answer.value()?),
                // It ended since the list was made.
                Err(ClientError::Refused(refusal)) if refusal.code == "not_found" => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self {
            at: Instant::now(),
            host,
            names: Names::new(daemon)?,
            sandboxes,
            all,
        })
    }

    fn lines(&self, before: Option<&Look>) -> Vec<String> {
        let (memory, host) = (&self.host.memory, &self.host);
        let mib = |mb: u64| ui::bytes(mb.saturating_mul(1 << 20));
        let [one, five, fifteen] = host.load;
        let mut lines = vec![
            format!(
                "{} sandboxes, {} builds, load {one:.2} {five:.2} {fifteen:.2}{}",
                self.all,
                host.builds,
                if host.draining { ", draining" } else { "" }
            ),
            format!(
                "{} promised of {}, {} used by VMs alone, {} available",
                mib(memory.committed_mb),
                mib(memory.limit_mb),
                mib(memory.unique_mb),
                mib(memory.available_mb)
            ),
            String::new(),
        ];
        let rows: Vec<_> = self
            .sandboxes
            .iter()
            .map(|sandbox| {
                let earlier = before.and_then(|before| {
                    let same = before.sandboxes.iter().find(|earlier| earlier.id == sandbox.id)?;
                    Some((same.usage?, self.at.duration_since(before.at)))
                });
                row(sandbox, &self.names.origin(sandbox), earlier)
            })
            .collect();
        lines.extend(ui::layout(&HEADER, &rows));
        if self.all > self.sandboxes.len() {
            lines.push(format!("and {} more", self.all - self.sandboxes.len()));
        }
        lines
    }
}

fn row(sandbox: &Sandbox, image: &str, earlier: Option<(Usage, Duration)>) -> Vec<String> {
    let usage = sandbox.usage.unwrap_or_default();
    let cpu = earlier.map(|(earlier, passed)| share(&earlier, &usage, passed));
    vec![
        sandbox.id.clone(),
        image.to_owned(),
        format!("{} MiB", sandbox.memory.floor_mb),
        ui::bytes(usage.plugged_bytes),
        ui::bytes(usage.unique_bytes),
        cpu.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1} %")),
        ui::age(sandbox.created_at).replace(" ago", ""),
    ]
}

/// Processor time between two looks, in percent of one processor.
fn share(earlier: &Usage, now: &Usage, passed: Duration) -> f64 {
    let used = Duration::from_millis(now.cpu_ms.saturating_sub(earlier.cpu_ms));
    match passed.as_secs_f64() {
        0.0 => 0.0,
        passed => used.as_secs_f64() / passed * 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sandbox::tests::sandbox;
    use super::*;

    fn used(cpu_ms: u64) -> Usage {
        Usage {
            cpu_ms,
            ..Usage::default()
        }
    }

    #[test]
    fn processor_time_is_a_share_of_what_has_passed() {
        let share = |before, now, ms| share(&used(before), &used(now), Duration::from_millis(ms));
        assert_eq!(share(1000, 1500, 1000), 50.0);
        assert_eq!(share(0, 4000, 2000), 200.0);
        assert_eq!(share(5, 5, 1000), 0.0);
        // Not the same sandbox after all, or no time between.
        assert_eq!(share(9, 5, 1000), 0.0);
        assert_eq!(share(0, 5, 0), 0.0);
    }

    #[test]
    fn a_row_has_what_a_sandbox_uses() {
        let usage = json!({"cpuMs": 300, "rssBytes": 1, "uniqueBytes": 10 << 20, "pluggedBytes": 1 << 30,
                           "diskBytes": 0, "networkReceivedBytes": 0, "networkSentBytes": 0});
        let sandbox = sandbox(json!({"usage": usage}));
        let row = row(&sandbox, "hello", Some((used(50), Duration::from_secs(1))));
        assert_eq!(
            row[..6],
            ["sb1", "hello", "1024 MiB", "1.0 GiB", "10.0 MiB", "25.0 %"]
        );
        assert_eq!(super::row(&sandbox, "hello", None)[5], "-");
    }
}
