//! `/v1/sandboxes`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use spore_types::{
    CreateSandbox, CreatedSandbox, ErrorReply, ForkRequest, Forked, Sandbox, SandboxUpdate, Sandboxes,
};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Path, Query, switch};
use super::{HangUp, Shared, blocking, promptly, while_wanted};
use crate::engine::create::Admitted;
use crate::error::{Error, Result};
use crate::time::micros;

/// The end of a console that is shown, in bytes.
const CONSOLE: u64 = 256 * 1024;

fn shown(admitted: Admitted, paused_us: Option<u64>) -> Forked {
    let sandboxes = admitted.known.into_iter().map(|(sandbox, exec)| CreatedSandbox {
        sandbox: sandbox.show(),
        exec,
    });
    Forked {
        sandboxes: sandboxes.collect(),
        errors: admitted.failed.into_iter().map(Error::into_body).collect(),
        paused_us,
    }
}

/// What making sandboxes comes to.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Created {
    /// One, where no number was asked for.
    One(Box<CreatedSandbox>),
    /// As many as were.
    Many(Forked),
}

/// Makes a sandbox, or several at once.
#[utoipa::path(post, path = "/v1/sandboxes", operation_id = "createSandbox", tag = "sandboxes", request_body = CreateSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key answers the same for an hour")),
    responses((status = 201, description = "It is ready; with `count`, a list of them", body = inline(Created)),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn create(State(engine): State<Shared>, Body(request): Body<CreateSandbox>) -> Result<Response> {
    let asked = Instant::now();
    let (many, partial, command) = (request.count.is_some(), request.partial, request.exec.is_some());
    // For a command's time.
    let slot = engine.clone();
    let _slot = if command { Some(slot.exec_slot()?) } else { None };
    // What runs or may boot or grow is waited for elsewhere: here nobody would hear that the client hangs up.
    let long =
        many || command || request.memory_mb.is_some() || request.disk_mb.is_some() || request.cpus.is_some();
    let (making, hang_up) = (engine.clone(), HangUp::default());
    let cancel = hang_up.cancel();
    let making = move || making.create(&request, &cancel);
    let made = match long {
        true => blocking(making).await?,
        false => promptly(making).await?,
    };
    // From here on nothing waits: who hangs up before gets nothing, and nothing is left.
    let mut forked = shown(engine.admit(made, partial)?, None);
    if command {
        engine.metrics().exec_answered(asked.elapsed());
    }
    match (many, forked.sandboxes.pop()) {
        (false, Some(one)) => {
            let ready = Duration::from_micros(one.sandbox.times.ready_us);
            let response = (StatusCode::CREATED, Json(Created::One(Box::new(one)))).into_response();
            if !command {
                engine.metrics().created(asked.elapsed(), ready);
            }
            Ok(response)
        }
        (_, last) => {
            forked.sandboxes.extend(last);
            Ok((StatusCode::CREATED, Json(Created::Many(forked))).into_response())
        }
    }
}

/// All sandboxes, the newest first. Each `metadata.KEY=VALUE` in the query selects.
#[utoipa::path(get, path = "/v1/sandboxes", operation_id = "listSandboxes", tag = "sandboxes", responses(
    (status = 200, description = "They", body = Sandboxes),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn list(
    State(engine): State<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Sandboxes>> {
    let mut wanted = Vec::new();
    for (name, value) in &query {
        match name.strip_prefix("metadata.") {
            Some(key) => wanted.push((key, value)),
            None => return Err(Error::invalid(format!("the query: unknown field {name:?}"))),
        }
    }
    let all = engine.list().into_iter().map(|sandbox| sandbox.show());
    let fits = |sandbox: &Sandbox| {
        wanted
            .iter()
            .all(|(key, value)| sandbox.metadata.get(*key) == Some(value))
    };
    Ok(Json(Sandboxes {
        sandboxes: all.filter(fits).collect(),
    }))
}

/// What of a sandbox is shown.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ShowQuery {
    /// What it has used, too.
    #[serde(default, deserialize_with = "switch")]
    usage: bool,
}

/// One sandbox.
#[utoipa::path(get, path = "/v1/sandboxes/{id}", operation_id = "getSandbox", tag = "sandboxes", params(("id" = String, Path), ShowQuery), responses(
    (status = 200, description = "It", body = Sandbox),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn show(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<ShowQuery>,
) -> Result<Json<Sandbox>> {
    let sandbox = engine.sandbox(&id)?;
    let mut shown = sandbox.show();
    if query.usage {
        shown.usage = Some(blocking(move || Ok(engine.usage(&sandbox))).await?);
    }
    Ok(Json(shown))
}

/// Grows or shrinks it, changes its time limit or metadata.
#[utoipa::path(patch, path = "/v1/sandboxes/{id}", operation_id = "updateSandbox", tag = "sandboxes", params(("id" = String, Path)), request_body = SandboxUpdate,
    responses((status = 200, description = "It, as it is now", body = Sandbox),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn update(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Body(update): Body<SandboxUpdate>,
) -> Result<Json<Sandbox>> {
    let sandbox = while_wanted(move |cancel| engine.update(&id, &update, cancel)).await?;
    Ok(Json(sandbox.show()))
}

/// Ends it.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}", operation_id = "deleteSandbox", tag = "sandboxes", params(("id" = String, Path)), responses(
    (status = 204, description = "It is no more"),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn delete(State(engine): State<Shared>, Path(id): Path<String>) -> Result<StatusCode> {
    blocking(move || engine.delete(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stops its vCPUs.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/pause", operation_id = "pauseSandbox", tag = "sandboxes", params(("id" = String, Path)), responses(
    (status = 200, description = "It", body = Sandbox),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn pause(State(engine): State<Shared>, Path(id): Path<String>) -> Result<Json<Sandbox>> {
    Ok(Json(blocking(move || engine.pause(&id)).await?.show()))
}

/// Lets its vCPUs run.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/resume", operation_id = "resumeSandbox", tag = "sandboxes", params(("id" = String, Path)), responses(
    (status = 200, description = "It", body = Sandbox),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn resume(State(engine): State<Shared>, Path(id): Path<String>) -> Result<Json<Sandbox>> {
    Ok(Json(blocking(move || engine.resume(&id)).await?.show()))
}

/// Forks it as it runs.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/fork", operation_id = "forkSandbox", tag = "sandboxes", request_body = ForkRequest,
    params(("id" = String, Path),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key answers the same for an hour")),
    responses((status = 201, description = "They are ready", body = Forked),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn fork(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Body(request): Body<ForkRequest>,
) -> Result<Response> {
    let partial = request.partial;
    let forking = engine.clone();
    let forked = while_wanted(move |cancel| forking.fork(&id, &request, cancel)).await?;
    let forked = shown(engine.admit(forked.made, partial)?, Some(micros(forked.paused)));
    Ok((StatusCode::CREATED, Json(forked)).into_response())
}

/// The end of its console.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/logs", operation_id = "getConsole", tag = "sandboxes", params(("id" = String, Path)), responses(
    (status = 200, description = "Up to 256 KiB of it", content_type = "text/plain", body = String),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn logs(State(engine): State<Shared>, Path(id): Path<String>) -> Result<Response> {
    let sandbox = engine.sandbox(&id)?;
    let text = blocking(move || tail(sandbox.console()).map_err(Error::internal)).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

fn tail(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(CONSOLE)))?;
    let mut bytes = Vec::new();
    file.take(CONSOLE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
