//! Server-sent events (WHATWG HTML, 9.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde::Serialize;

/// A comment goes out when nothing else has for so long, so that a client that has gone is noticed.
const ALIVE: Duration = Duration::from_secs(10);

/// One event: its name is the `type` in its data.
fn event<T: Serialize>(id: Option<u64>, data: &T) -> Event {
    let value = serde_json::to_value(data).unwrap_or_default();
    let name = value
        .get("type")
        .and_then(|name| name.as_str())
        .unwrap_or("message");
    let event = Event::default().event(name).data(value.to_string());
    match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    }
}

fn reply(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let alive = KeepAlive::new().interval(ALIVE);
    Sse::new(events).keep_alive(alive).into_response()
}

/// What a build says, until its end.
pub fn build(follower: crate::engine::builds::Follower) -> Response {
    reply(stream::unfold(follower, |mut follower| async move {
        let message: Arc<spore_types::BuildMessage> = follower.next().await?;
        Some((Ok(event(None, &*message)), follower))
    }))
}

/// What happens on the host.
pub fn events(follower: crate::engine::events::Follower) -> Response {
    reply(stream::unfold(follower, |mut follower| async move {
        let happened = follower.next().await?;
        Some((Ok(event(Some(happened.id), &*happened)), follower))
    }))
}
