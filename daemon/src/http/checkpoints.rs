//! `/v1/checkpoints`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use spore_types::{Checkpoint, CheckpointRequest, Checkpoints, ErrorReply};

use super::extract::{Body, Path};
use super::{Shared, blocking, while_wanted};
use crate::error::Result;

/// Checkpoints a sandbox: as it runs, or by a boot of its disks.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/checkpoints", operation_id = "makeCheckpoint", tag = "checkpoints", request_body = CheckpointRequest,
    params(("id" = String, Path),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key answers the same for an hour")),
    responses((status = 201, description = "It is in the store", body = Checkpoint),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn make(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Body(request): Body<CheckpointRequest>,
) -> Result<(StatusCode, Json<Checkpoint>)> {
    let made = while_wanted(move |cancel| engine.make_checkpoint(&id, &request, cancel)).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// All checkpoints, the newest first.
#[utoipa::path(get, path = "/v1/checkpoints", operation_id = "listCheckpoints", tag = "checkpoints", responses(
    (status = 200, description = "They", body = Checkpoints),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn list(State(engine): State<Shared>) -> Result<Json<Checkpoints>> {
    let checkpoints = blocking(move || engine.checkpoints()).await?;
    Ok(Json(Checkpoints { checkpoints }))
}

/// One checkpoint.
#[utoipa::path(get, path = "/v1/checkpoints/{checkpoint}", operation_id = "getCheckpoint", tag = "checkpoints",
    params(("checkpoint" = String, Path, description = "A name or an id")),
    responses((status = 200, description = "It", body = Checkpoint),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn show(State(engine): State<Shared>, Path(checkpoint): Path<String>) -> Result<Json<Checkpoint>> {
    Ok(Json(blocking(move || engine.checkpoint(&checkpoint)).await?))
}

/// Deletes a checkpoint of a sandbox. Forks of it run on.
#[utoipa::path(delete, path = "/v1/checkpoints/{checkpoint}", operation_id = "deleteCheckpoint", tag = "checkpoints",
    params(("checkpoint" = String, Path, description = "A name or an id")),
    responses((status = 204, description = "It is no more"),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn delete(State(engine): State<Shared>, Path(checkpoint): Path<String>) -> Result<StatusCode> {
    blocking(move || engine.delete_checkpoint(&checkpoint)).await?;
    Ok(StatusCode::NO_CONTENT)
}
