//! What is given back when the host's memory is short: first shells, then templates, then what guests do not use.
//!
//! Short is when tasks have waited for memory for more than a tenth of the last 10 s (PSI), which reclaiming brings
//! about well before anything is killed. Each measure gets time to show before the next is taken; shells are made
//! again when a minute has passed without pressure. If it is as short when all of them were taken, no new work is
//! until it is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spore_types::{ErrorCode, EventKind};

use super::Engine;
use super::host::memory_pressure;
use crate::error::{Error, Result};

/// How long a guest may say nothing while it gives up its caches.
const SQUEEZED: Duration = Duration::from_secs(60);
/// Percent of the last 10 s in which some task waited for memory.
const SHORT: f64 = 10.0;
/// Percent below which it is over.
const OVER: f64 = 1.0;
/// What one measure is given to show. As long as the average's.
const SHOW: Duration = Duration::from_secs(10);
/// How long it must be over before shells are made again.
const CALM: Duration = Duration::from_secs(60);

/// How far it has come.
#[derive(Debug, Default)]
pub struct Relief {
    measures: usize,
    last: Option<Instant>,
    refuses: bool,
}

/// What is done about it, in this order.
const MEASURES: [&str; 3] = ["shells", "templates", "balloons"];

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    Take(&'static str),
    /// The last measure is taken again, and no new work.
    Refuse(&'static str),
    /// New work is taken again.
    Accept,
    Recover,
}

impl Relief {
    fn next(&mut self, waited: f64, now: Instant) -> Next {
        let since = self.last.map(|last| now.duration_since(last));
        if waited >= SHORT {
            // The last one is taken again and again: guests free memory all the time.
            if since.is_some_and(|since| since < SHOW) {
                return Next::Nothing;
            }
            let measure = MEASURES[self.measures.min(MEASURES.len() - 1)];
            self.measures += 1;
            self.last = Some(now);
            if self.measures > MEASURES.len() && !self.refuses {
                self.refuses = true;
                return Next::Refuse(measure);
            }
            return Next::Take(measure);
        }
        if waited >= OVER {
            // Not over yet.
            self.last = self.last.map(|_| now);
            return Next::Nothing;
        }
        if std::mem::take(&mut self.refuses) {
            return Next::Accept;
        }
        if self.measures > 0 && since.is_some_and(|since| since >= CALM) {
            *self = Self::default();
            return Next::Recover;
        }
        Next::Nothing
    }

    /// Looks how it is, and does what is next.
    pub fn look(&mut self, engine: &Arc<Engine>) {
        let Some(waited) = memory_pressure() else { return };
        match self.next(waited, Instant::now()) {
            Next::Nothing => {}
            Next::Recover => {
                engine.pool.set_frugal(false);
            }
            Next::Take(measure) => engine.give_back(measure, waited),
            Next::Refuse(measure) => {
                engine.refuse(true);
                engine.give_back(measure, waited);
            }
            Next::Accept => engine.refuse(false),
        }
    }
}

impl Engine {
    fn give_back(self: &Arc<Self>, measure: &str, waited: f64) {
        tracing::warn!(measure, waited, "memory is short");
        match measure {
            "shells" => {
                self.pool.set_frugal(true);
            }
            "templates" => {
                self.pool.drop_templates();
            }
            _ => self.squeeze(),
        }
        self.events.tell(EventKind::MemoryPressure {
            dropped: measure.to_owned(),
        });
    }

    fn refuse(&self, refusing: bool) {
        self.short.store(refusing, Ordering::Relaxed);
        self.events.tell(EventKind::MemoryShort { refusing });
    }

    /// # Errors
    /// `insufficient_capacity` while memory is short and nothing more can be given back.
    pub fn must_have_memory(&self) -> Result<()> {
        match self.short.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorCode::InsufficientCapacity,
                "memory is short on this host, and whatever could be given back was: it takes no more until that is over",
            )
            .with("resource", "memory")
            .with("fitMB", 0)),
        }
    }

    /// Has guests give up their caches: what they free is reported to the host, which has it back then.
    fn squeeze(self: &Arc<Self>) {
        // Those that were asked the last time are still at it: more threads would not help them.
        if Arc::strong_count(&self.squeezing) > 1 {
            return;
        }
        for sandbox in self.list() {
            let squeezing = self.squeezing.clone();
            let ask = move || {
                let _squeezing = squeezing;
                // One that is paused, or busy dying, has nothing to give.
                let visit = || super::agent::visit(&sandbox, Some(SQUEEZED));
                // Not tidied up besides: what is moved in a guest is no longer shared with its siblings.
                let dropped = visit().is_ok_and(|(mut agent, _cut)| agent.drop_caches().is_ok());
                // The agents of older images know only both.
                if !dropped && let Ok((mut agent, _cut)) = visit() {
                    let _ = agent.settle();
                }
            };
            if let Err(error) = std::thread::Builder::new().spawn(ask) {
                tracing::info!(%error, "a guest that was to give up its caches");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_taken_one_after_the_other_and_undone_when_it_is_over() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut relief = Relief::default();
        assert_eq!(relief.next(0.5, at(0)), Next::Nothing);
        assert_eq!(relief.next(20.0, at(1)), Next::Take("shells"));
        assert_eq!(relief.next(20.0, at(5)), Next::Nothing);
        assert_eq!(relief.next(20.0, at(11)), Next::Take("templates"));
        assert_eq!(relief.next(20.0, at(21)), Next::Take("balloons"));
        assert_eq!(relief.next(20.0, at(31)), Next::Refuse("balloons"));
        assert_eq!(relief.next(20.0, at(41)), Next::Take("balloons"));
        assert_eq!(relief.next(5.0, at(80)), Next::Nothing, "not over yet");
        assert_eq!(relief.next(0.0, at(119)), Next::Accept);
        assert_eq!(relief.next(0.0, at(120)), Next::Nothing, "not a minute yet");
        assert_eq!(relief.next(0.0, at(140)), Next::Recover);
        assert_eq!(relief.next(0.0, at(300)), Next::Nothing);
    }

    #[test]
    fn work_is_refused_again_when_it_comes_back_within_the_minute() {
        let start = Instant::now();
        let mut relief = Relief::default();
        let mut at = |waited: f64, seconds| relief.next(waited, start + Duration::from_secs(seconds));
        for seconds in [0, 10, 20] {
            assert!(matches!(at(50.0, seconds), Next::Take(_)));
        }
        assert_eq!(at(50.0, 30), Next::Refuse("balloons"));
        assert_eq!(at(0.0, 31), Next::Accept);
        assert_eq!(at(50.0, 40), Next::Refuse("balloons"));
    }
}
