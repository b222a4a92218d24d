//! Where the time of one fork goes.

use serde::Serialize;
use spore_vmm::clock::Trace;

use crate::ui;

/// What happened when, counted from when the fork was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timeline(Vec<Mark>);

/// Something was done.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    what: String,
    /// Microseconds since the fork was asked for; negative: it was done in advance.
    at_us: f64,
}

/// What [`Trace`]s call the moment a fork was asked for.
const ASKED: &str = "asked";

impl Timeline {
    /// Of a fork that was asked for at `asked_ns`, with what its guest has noted and `more`, in monotonic
    /// nanoseconds.
    pub fn new(asked_ns: u64, trace: &Trace, more: &[(&str, u64)]) -> Self {
        // Who made the fork for us may have been asked a moment later than we were.
        let noted = trace.marks().into_iter().filter(|(what, _)| *what != ASKED);
        let mut marks: Vec<_> = noted.chain(more.iter().copied()).collect();
        marks.push((ASKED, asked_ns));
        marks.sort_by_key(|&(_, at_ns)| at_ns);
        let since = |at_ns: u64| match at_ns.checked_sub(asked_ns) {
            Some(after) => after as f64 / 1e3,
            None => -((asked_ns - at_ns) as f64 / 1e3),
        };
        Self(
            marks
                .into_iter()
                .map(|(what, at_ns)| Mark {
                    what: what.to_owned(),
                    at_us: since(at_ns),
                })
                .collect(),
        )
    }

    /// As lines: when, how long since the line before, what.
    pub fn lines(&self) -> Vec<String> {
        let mut before: Option<&Mark> = None;
        let mut rows = Vec::new();
        for mark in &self.0 {
            let step = before.map_or(0.0, |before| mark.at_us - before.at_us);
            let step = match mark.what.as_str() {
                // What was done in advance was done at any time before.
                ASKED => "-".to_owned(),
                _ => format!("+{step:.1}"),
            };
            let when = match mark.at_us < 0.0 {
                true => "in advance".to_owned(),
                false => format!("{:.1}", mark.at_us),
            };
            rows.push(vec![when, step, mark.what.clone()]);
            before = Some(mark);
        }
        ui::layout(&["AT (us)", "STEP (us)", "DONE"], &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_when_it_was_asked_for_and_knows_what_was_done_before() {
        let mut trace = Trace::default();
        trace.mark_at("armed", 7_000);
        trace.mark_at("asked", 10_100);
        trace.mark_at("READY", 12_500);
        let timeline = Timeline::new(10_000, &trace, &[("answered", 13_000)]);
        let marks: Vec<_> = timeline
            .0
            .iter()
            .map(|mark| (mark.what.as_str(), mark.at_us))
            .collect();
        assert_eq!(
            marks,
            [("armed", -3.0), ("asked", 0.0), ("READY", 2.5), ("answered", 3.0)]
        );
        let lines = timeline.lines();
        assert!(lines[1].starts_with("in advance"), "{lines:?}");
        assert!(lines[4].contains("+0.5"), "{lines:?}");
    }
}
