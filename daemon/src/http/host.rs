//! `/v1/host`, `/metrics`, `/healthz`.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use spore_types::{Drain, ErrorReply, HostInfo};

use super::extract::Body;
use super::{Shared, blocking};
use crate::error::Result;

/// What Prometheus asks for.
const PROMETHEUS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a scheduler wants to know.
#[utoipa::path(get, path = "/v1/host", operation_id = "getHost", tag = "host", responses(
    (status = 200, description = "The host", body = HostInfo),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn show(State(engine): State<Shared>) -> Result<Json<HostInfo>> {
    Ok(Json(blocking(move || engine.host_info()).await?))
}

/// Takes no new sandboxes and builds, or takes them again. What runs runs on.
#[utoipa::path(post, path = "/v1/host/drain", operation_id = "drainHost", tag = "host", request_body = Drain, responses(
    (status = 200, description = "The host", body = HostInfo),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn drain(State(engine): State<Shared>, Body(drain): Body<Drain>) -> Result<Json<HostInfo>> {
    engine.drain(drain.draining);
    Ok(Json(blocking(move || engine.host_info()).await?))
}

/// That the daemon answers.
#[utoipa::path(get, path = "/healthz", operation_id = "health", tag = "host", responses((status = 200, description = "It does", content_type = "text/plain", body = String)))]
pub async fn health() -> &'static str {
    "ok\n"
}

/// Counters and histograms.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "host", responses(
    (status = 200, description = "In OpenMetrics' text form", content_type = "application/openmetrics-text", body = String),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn metrics(State(engine): State<Shared>) -> Result<Response> {
    let text = blocking(move || Ok(engine.metrics().text(&engine.host_state()?))).await?;
    Ok(([(header::CONTENT_TYPE, PROMETHEUS)], text).into_response())
}
