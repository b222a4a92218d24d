//! Requests to calls, and what calls come to to answers.

mod checkpoints;
mod events;
mod exec;
mod extract;
mod feed;
mod files;
mod host;
mod idempotency;
mod images;
mod reply;
mod sandboxes;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Json, Router, middleware};
use spore_types::ErrorCode;
use spore_vmm::cancel::Cancel;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::idempotency::Replies;
use crate::engine::Engine;
use crate::error::Error;

/// The longest body of a call, in bytes, but for images and files.
const MAX_BODY: usize = 1 << 20;
/// The longest body of an image's.
const MAX_IMAGE_BODY: usize = 64 << 20;

/// What every call has.
pub(crate) type Shared = Arc<Engine>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Spore",
        description = "Sandboxes, images and checkpoints of one host. See docs/api.md.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    // What a client says in a WebSocket is in no call's body.
    components(schemas(spore_types::ExecControl))
)]
struct Api;

/// Work that blocks, in a thread where it may.
///
/// Who asks and goes away does not hear of it; what it returns is dropped then, which undoes it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> crate::error::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(error)),
    }
}

/// Cancels when it is dropped, as what belongs to a call is when its client hangs up. A call that has ended has nothing
/// left to cancel.
#[derive(Default)]
struct HangUp(Cancel);

impl HangUp {
    /// What it cancels.
    fn cancel(&self) -> Cancel {
        self.0.clone()
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// As [`blocking`], for work that takes its time: it is told when nobody waits for it any more.
async fn while_wanted<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> crate::error::Result<T> + Send + 'static,
) -> crate::error::Result<T> {
    let hang_up = HangUp::default();
    let cancel = hang_up.cancel();
    blocking(move || work(&cancel)).await
}

/// Calls that are answered where they were read.
static IN_PLACE: AtomicUsize = AtomicUsize::new(0);
/// The most of them at once. Each takes a thread from the runtime, which makes another.
pub(crate) const MOST_IN_PLACE: usize = 4;

/// One of them.
struct InPlace;

impl InPlace {
    /// If there may be another.
    fn begin() -> Option<Self> {
        let place = Self;
        (IN_PLACE.fetch_add(1, Ordering::Relaxed) < MOST_IN_PLACE).then_some(place)
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        IN_PLACE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// As [`blocking`], for work that takes milliseconds, which waking two threads would add to: in this thread, unless
/// many do so.
async fn promptly<T: Send + 'static>(
    work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
) -> crate::error::Result<T> {
    match InPlace::begin() {
        Some(_place) => tokio::task::block_in_place(work),
        None => blocking(work).await,
    }
}

fn calls(replies: &Arc<Replies>) -> OpenApiRouter<Shared> {
    let idempotent = || middleware::from_fn_with_state(replies.clone(), idempotency::once);
    let making = OpenApiRouter::new()
        .routes(routes!(sandboxes::create))
        .routes(routes!(sandboxes::fork))
        .routes(routes!(checkpoints::make))
        .layer(idempotent());
    let building = OpenApiRouter::new()
        .routes(routes!(images::build))
        .layer(DefaultBodyLimit::max(MAX_IMAGE_BODY));
    let files = OpenApiRouter::new()
        .routes(routes!(files::read, files::write, files::remove))
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(images::list))
        .routes(routes!(images::show, images::delete))
        .routes(routes!(images::build_state, images::build_cancel))
        .routes(routes!(images::build_logs))
        .routes(routes!(sandboxes::list))
        .routes(routes!(sandboxes::show, sandboxes::update, sandboxes::delete))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(sandboxes::logs))
        .routes(routes!(exec::run, exec::stream))
        .routes(routes!(files::list))
        .routes(routes!(files::make_dir))
        .routes(routes!(checkpoints::list))
        .routes(routes!(checkpoints::show, checkpoints::delete))
        .routes(routes!(host::show))
        .routes(routes!(host::drain))
        .routes(routes!(host::health))
        .routes(routes!(host::metrics))
        .routes(routes!(events::follow))
        .merge(making)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(building)
        .merge(files)
}

/// All calls.
pub fn router(engine: Shared) -> Router {
    let replies = Arc::new(Replies::default());
    let (router, api) = calls(&replies).split_for_parts();
    let counted = engine.clone();
    router
        .route(
            "/v1/openapi.json",
            get(move || std::future::ready(Json(api.clone()))),
        )
        .fallback(|| async {
            reply::error(Error::new(
                ErrorCode::NoSuchCall,
                "there is no such call; see /v1/openapi.json",
            ))
        })
        .method_not_allowed_fallback(reply::wrong_method)
        .layer(middleware::from_fn_with_state(counted, reply::counted))
        .with_state(engine)
}

/// The interface, as OpenAPI 3.1 in JSON.
///
/// # Errors
/// When it cannot be put into JSON.
pub fn openapi() -> serde_json::Result<String> {
    let (_, api) = calls(&Arc::default()).split_for_parts();
    serde_json::to_string_pretty(&api)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    /// Generators of clients name their functions by it (OpenAPI 3.1, Operation Object).
    #[test]
    fn every_operation_has_an_id_of_its_own() {
        let description: Value = serde_json::from_str(&super::openapi().unwrap()).unwrap();
        let mut ids = BTreeSet::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(
                    ids.insert(id.to_owned()),
                    "{method} {path}: {id} is another's too"
                );
            }
        }
        assert!(ids.len() > 30, "{ids:?}");
    }
}
