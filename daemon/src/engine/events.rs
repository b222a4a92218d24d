//! What has happened, for whoever follows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_types::{Event, EventKind};
use tokio::sync::watch;

use crate::time::{micros, millis, since_1970};

/// Events that are kept for followers who were away.
const KEPT: usize = 10_000;

/// What an error says, in one line: what follows it are a guest's last words.
pub fn cause(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The events of this daemon. Their ids go on rising when another takes its place: they begin at the time it was
/// started, in microseconds, which no daemon gets through in events.
#[derive(Debug)]
pub struct Events {
    inner: Mutex<Inner>,
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    kept: VecDeque<Arc<Event>>,
    next: u64,
    /// Nobody is to wait for more.
    closed: bool,
}

/// Follows the events.
#[derive(Debug)]
pub struct Follower {
    events: Arc<Events>,
    changed: watch::Receiver<u64>,
    /// The last one it has seen.
    seen: u64,
}

impl Default for Events {
    fn default() -> Self {
        let first = micros(since_1970());
        Self {
            inner: Mutex::new(Inner {
                kept: VecDeque::new(),
                next: first,
                closed: false,
            }),
            last: watch::Sender::new(first.saturating_sub(1)),
        }
    }
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It happened now.
    pub fn tell(&self, kind: EventKind) {
        let mut inner = self.lock();
        let id = inner.next;
        inner.next += 1;
        if inner.kept.len() == KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(Arc::new(Event {
            id,
            time_ms: millis(since_1970()),
            kind,
        }));
        drop(inner);
        self.last.send_replace(id);
    }

    /// The daemon stops: who has heard all there is hears the end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.last.send_modify(|_| {});
    }

    /// Follows what comes after event `seen`, or after now.
    pub fn follow(self: &Arc<Self>, seen: Option<u64>) -> Follower {
        let seen = seen.unwrap_or_else(|| self.lock().next - 1);
        Follower {
            events: self.clone(),
            changed: self.last.subscribe(),
            seen,
        }
    }

    fn after(&self, seen: u64) -> Option<Arc<Event>> {
        let inner = self.lock();
        let first = inner.kept.front()?;
        // Ids of an earlier daemon, or of events that are not kept any more: how many is only known of our own.
        let own = inner.next - KEPT as u64;
        if seen + 1 < first.id && (inner.kept.len() == KEPT || seen < own) {
            let missed = first.id - seen - 1;
            return Some(Arc::new(Event {
                id: first.id - 1,
                time_ms: first.time_ms,
                kind: EventKind::Missed {
                    count: if inner.kept.len() == KEPT { missed } else { 0 },
                },
            }));
        }
        let at = usize::try_from((seen + 1).saturating_sub(first.id)).unwrap_or(usize::MAX);
        inner.kept.get(at).cloned()
    }
}

impl Follower {
    /// The next event, when there is one; `None` when there will be none.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            self.changed.borrow_and_update();
            if let Some(event) = self.events.after(self.seen) {
                self.seen = event.id;
                return Some(event);
            }
            if self.events.lock().closed {
                return None;
            }
            self.changed.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(number: usize) -> EventKind {
        EventKind::SandboxCreated {
            sandbox: number.to_string(),
        }
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn events_come_in_order_and_can_be_resumed() {
        let events = Arc::new(Events::default());
        let mut live = events.follow(None);
        (0..3).for_each(|number| events.tell(created(number)));
        let seen: Vec<_> = (0..3).map(|_| block_on(live.next()).unwrap()).collect();
        assert_eq!(seen[2].id, seen[0].id + 2);
        let mut again = events.follow(Some(seen[0].id));
        assert_eq!(block_on(again.next()).unwrap(), seen[1]);
        assert_eq!(block_on(again.next()).unwrap(), seen[2]);
    }

    #[test]
    fn who_follows_when_the_daemon_stops_hears_what_there_is_and_the_end() {
        let events = Arc::new(Events::default());
        let mut follower = events.follow(None);
        events.tell(created(0));
        events.close();
        assert_eq!(block_on(follower.next()).unwrap().kind, created(0));
        assert_eq!(block_on(follower.next()), None);
        assert_eq!(block_on(events.follow(None).next()), None);
    }

    #[test]
    fn who_was_too_slow_hears_how_many_are_missing() {
        let events = Arc::new(Events::default());
        let mut slow = events.follow(None);
        (0..KEPT + 5).for_each(|number| events.tell(created(number)));
        let first = block_on(slow.next()).unwrap();
        assert_eq!(first.kind, EventKind::Missed { count: 5 });
        assert_eq!(block_on(slow.next()).unwrap().kind, created(5));
    }

    #[test]
    fn who_followed_an_earlier_daemon_hears_all_of_this_one() {
        let events = Arc::new(Events::default());
        (0..2).for_each(|number| events.tell(created(number)));
        let mut earlier = events.follow(Some(17));
        assert_eq!(
            block_on(earlier.next()).unwrap().kind,
            EventKind::Missed { count: 0 }
        );
        assert_eq!(block_on(earlier.next()).unwrap().kind, created(0));
        assert_eq!(block_on(earlier.next()).unwrap().kind, created(1));
    }
}
