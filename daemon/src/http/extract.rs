//! What is read of a request, refused in our words.

use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use spore_types::ErrorCode;

use crate::error::Error;

/// How long a client may take to send a body.
const SENDING: Duration = Duration::from_secs(60);
/// How long what was refused is read on, and how much of it. Who sends more has to look at the answer meanwhile.
const PASSING: Duration = Duration::from_secs(2);
const MAX_PASSED: usize = 4 << 20;

/// A JSON body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let bytes = body(request, state).await?;
        if bytes.is_empty() {
            return Err(Error::invalid(
                "the body: there is none; it must be an object, such as {}",
            ));
        }
        // A list of a type's values in order would do for serde; nobody means that.
        if bytes
            .trim_ascii_start()
            .first()
            .is_some_and(|first| *first == b'[')
        {
            return Err(Error::invalid("the body: it must be an object"));
        }
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| Error::invalid(format!("the body: {error}")))
    }
}

/// All of a request's body.
pub async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Error> {
    let read = tokio::time::timeout(SENDING, Bytes::from_request(request, state)).await;
    let read = read.map_err(|_| {
        Error::new(
            ErrorCode::TimedOut,
            format!("the body did not come within {} s", SENDING.as_secs()),
        )
    })?;
    read.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(inner) if inner.status() == 413 => {
            Error::new(ErrorCode::TooLarge, "the body is longer than this call takes")
        }
        other => Error::invalid(format!("the body: {}", other.body_text())),
    })
}

/// Reads on for a moment what a client sends that has been refused. One that sends its head and then its body would else
/// find the connection closed, and not the reason.
pub async fn pass_over(pieces: &mut BodyDataStream) {
    let mut passed = 0;
    let _ = tokio::time::timeout(PASSING, async {
        while let Some(Ok(piece)) = pieces.next().await {
            passed += piece.len();
            if passed > MAX_PASSED {
                break;
            }
        }
    })
    .await;
}

/// What is in the path.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(rejection) => Err(Error::invalid(format!("the path: {}", rejection.body_text()))),
        }
    }
}

/// What is behind the path's question mark.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Error::invalid(format!("the query: {}", rejection.body_text()))),
        }
    }
}

/// A switch in a query: `1` or `true`, `0` or `false`, absent.
pub fn switch<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(from)?;
    match &*text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(serde::de::Error::custom("a switch is 1 or 0")),
    }
}
