//! Answers.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use spore_types::{ErrorCode, ErrorReply};

use super::Shared;
use crate::error::Error;

/// An error's code, on its answer, for whoever counts.
#[derive(Clone, Copy)]
struct Code(ErrorCode);

/// The answer that an error is.
pub fn error(error: Error) -> Response {
    let code = error.code();
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if code == ErrorCode::Internal {
        tracing::warn!(%error, "an internal error was answered");
    }
    let body = Json(ErrorReply {
        error: error.into_body(),
    });
    let mut response = (status, body).into_response();
    if code == ErrorCode::Busy {
        let second = axum::http::HeaderValue::from_static("1");
        response
            .headers_mut()
            .insert(axum::http::header::RETRY_AFTER, second);
    }
    response.extensions_mut().insert(Code(code));
    response
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        error(self)
    }
}

/// The path is known, the method is not.
pub async fn wrong_method() -> Response {
    let mut response = error(Error::new(
        ErrorCode::NoSuchCall,
        "this call does not have that method; see /v1/openapi.json",
    ));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// Counts errors by their codes.
pub async fn counted(State(engine): State<Shared>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(Code(code)) = response.extensions().get() {
        let name = serde_json::to_value(code).ok();
        engine
            .metrics()
            .error(name.as_ref().and_then(|name| name.as_str()).unwrap_or("internal"));
    }
    response
}
