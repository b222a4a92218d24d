//! `/v1/images`, `/v1/builds`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use spore_types::{Build, BuildAccepted, BuildMessage, BuildRequest, ErrorReply, Image, Images};
use utoipa::IntoParams;

use super::extract::{Body, Path, Query, switch};
use super::{Shared, blocking, stream};
use crate::error::Result;

/// How a build is waited for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct BuildQuery {
    /// Answer at once, with the build's id; it goes on whoever hangs up.
    #[serde(default, rename = "async", deserialize_with = "switch")]
    #[param(rename = "async")]
    detached: bool,
}

/// Builds an image, or finds it built.
#[utoipa::path(post, path = "/v1/images", operation_id = "buildImage", tag = "images", params(BuildQuery), request_body = BuildRequest, responses(
    (status = 200, description = "What the build says, as server-sent events", content_type = "text/event-stream", body = BuildMessage),
    (status = 202, description = "It was begun", body = BuildAccepted),
    (status = "default", description = "It was not begun", body = ErrorReply)))]
pub async fn build(
    State(engine): State<Shared>,
    Query(query): Query<BuildQuery>,
    Body(request): Body<BuildRequest>,
) -> Result<Response> {
    let follower = blocking(move || engine.build(&request)).await?;
    if !query.detached {
        return Ok(stream::build(follower));
    }
    follower.build().detach();
    let accepted = BuildAccepted {
        build_id: follower.build().id.clone(),
    };
    Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
}

/// All images, the newest first.
#[utoipa::path(get, path = "/v1/images", operation_id = "listImages", tag = "images", responses(
    (status = 200, description = "They", body = Images),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn list(State(engine): State<Shared>) -> Result<Json<Images>> {
    let images = blocking(move || engine.images()).await?;
    Ok(Json(Images { images }))
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{image}", operation_id = "getImage", tag = "images",
    params(("image" = String, Path, description = "A name, an id, or its first digits, 4 and more")),
    responses((status = 200, description = "It", body = Image),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn show(State(engine): State<Shared>, Path(image): Path<String>) -> Result<Json<Image>> {
    Ok(Json(blocking(move || engine.image(&image)).await?))
}

/// Deletes an image with its checkpoints. Sandboxes of it run on.
#[utoipa::path(delete, path = "/v1/images/{image}", operation_id = "deleteImage", tag = "images",
    params(("image" = String, Path, description = "A name, an id, or its first digits, 4 and more")),
    responses((status = 204, description = "It is no more"),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn delete(State(engine): State<Shared>, Path(image): Path<String>) -> Result<StatusCode> {
    blocking(move || engine.delete_image(&image)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How a build is. Kept for an hour after its end.
#[utoipa::path(get, path = "/v1/builds/{build}", operation_id = "getBuild", tag = "images", params(("build" = String, Path, description = "Its id")),
    responses((status = 200, description = "It", body = Build),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn build_state(State(engine): State<Shared>, Path(build): Path<String>) -> Result<Json<Build>> {
    Ok(Json(engine.builds().get(&build)?.show()))
}

/// Stops a build.
#[utoipa::path(delete, path = "/v1/builds/{build}", operation_id = "cancelBuild", tag = "images", params(("build" = String, Path, description = "Its id")),
    responses((status = 204, description = "It is being stopped, or has ended"),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn build_cancel(State(engine): State<Shared>, Path(build): Path<String>) -> Result<StatusCode> {
    let build = engine.builds().get(&build)?;
    blocking(move || {
        build.cancel();
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a build has said and says.
#[utoipa::path(get, path = "/v1/builds/{build}/logs", operation_id = "followBuild", tag = "images", params(("build" = String, Path, description = "Its id")),
    responses((status = 200, description = "From the beginning, as server-sent events", content_type = "text/event-stream", body = BuildMessage),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn build_logs(State(engine): State<Shared>, Path(build): Path<String>) -> Result<Response> {
    let build = engine.builds().get(&build)?;
    Ok(stream::build(build.follow()))
}
