//! `/v1/events`.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use spore_types::{ErrorReply, Event};

use super::{Shared, stream};
use crate::error::{Error, Result};

/// What happens on the host.
#[utoipa::path(get, path = "/v1/events", operation_id = "followEvents", tag = "host",
    params(("Last-Event-ID" = Option<u64>, Header, description = "Go on after this one; absent: after now")),
    responses((status = 200, description = "As server-sent events", content_type = "text/event-stream", body = Event),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn follow(State(engine): State<Shared>, headers: HeaderMap) -> Result<Response> {
    let seen = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| text.parse::<u64>().ok());
            Some(id.ok_or_else(|| Error::invalid("Last-Event-ID: the id of an event is a number"))?)
        }
    };
    Ok(stream::events(engine.events().follow(seen)))
}
