//! The daemon's client: its calls, typed, over its Unix socket.
//!
//! It knows the wire (HTTP/1.1, WebSocket, server-sent events), not what a person is told. A connection serves one
//! call; a call has no time limit but the daemon's own. Paths are made by [`path`], which escapes what it is given.

mod build;
mod error;
pub mod exec;
pub mod files;
mod http;
pub mod path;
mod sandbox;
pub mod sse;

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use hyper::body::Incoming;
use hyper::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

pub use error::ClientError;
use http::Payload;

/// A client of the daemon at one socket. Its calls block.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

/// What the daemon answered.
pub struct Answer<T> {
    /// The body as it came.
    pub text: String,
    kind: PhantomData<T>,
}

impl<T> Answer<T> {
    fn new(text: String) -> Self {
        Self {
            text,
            kind: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Answer<T> {
    /// The body, understood.
    ///
    /// # Errors
    /// [`ClientError::Answer`] when it is not what this client knows.
    pub fn value(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.text).map_err(|error| ClientError::Answer(error.to_string()))
    }
}

impl Client {
    /// For the daemon at `socket`; nothing is connected yet.
    ///
    /// # Errors
    /// When there is no event loop to be had.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Local)?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
        })
    }

    /// Runs something that talks to the daemon.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Whether anybody listens.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if that cannot be told.
    pub fn listens(&self) -> Result<bool, ClientError> {
        match self.block_on(http::connect(&self.socket)) {
            Ok(_) => Ok(true),
            Err(ClientError::NoDaemon(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn ask<T>(&self, method: Method, path: &str, payload: Payload) -> Result<Answer<T>, ClientError> {
        let response = http::send(&self.socket, method, path, http::JSON, payload).await?;
        http::text(response).await.map(Answer::new)
    }

    fn call<T>(&self, method: Method, path: &str, payload: Payload) -> Result<Answer<T>, ClientError> {
        self.block_on(self.ask(method, path, payload))
    }

    /// `GET`.
    ///
    /// # Errors
    /// [`ClientError`], as of every call.
    pub fn get<T>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        self.call(Method::GET, path, http::nothing())
    }

    /// `POST` of a JSON body.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn post<T>(&self, path: &str, body: &impl Serialize) -> Result<Answer<T>, ClientError> {
        self.call(Method::POST, path, http::json(body)?)
    }

    /// `POST` without a body.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn act<T>(&self, path: &str) -> Result<Answer<T>, ClientError> {
        self.call(Method::POST, path, http::nothing())
    }

    /// `PATCH` of a JSON body.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn patch<T>(&self, path: &str, body: &impl Serialize) -> Result<Answer<T>, ClientError> {
        self.call(Method::PATCH, path, http::json(body)?)
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.call::<()>(Method::DELETE, path, http::nothing()).map(drop)
    }

    /// Follows `/v1/events`, after the event with this id or after now, until `each` says no or fails.
    ///
    /// # Errors
    /// As [`get`](Self::get), [`ClientError::BrokenOff`] when the daemon goes, and those of `each`.
    pub fn events<E: From<ClientError>>(
        &self,
        after: Option<u64>,
        mut each: impl FnMut(sse::Message) -> Result<(), E>,
    ) -> Result<(), E> {
        let after = after.map(|id| id.to_string());
        let headers: Vec<_> = after.iter().map(|id| ("last-event-id", id.as_str())).collect();
        let never = self.block_on(async {
            let sent = http::send(&self.socket, Method::GET, "/v1/events", &headers, http::nothing());
            let response = http::good(sent.await?).await?;
            follow::<Infallible, E>(response, "the events", |message| each(message).map(|()| None)).await
        });
        never.map(|never| match never {})
    }
}

/// Reads server-sent events until `each` has found what it looked for.
async fn follow<T, E: From<ClientError>>(
    mut response: Response<Incoming>,
    what: &'static str,
    mut each: impl FnMut(sse::Message) -> Result<Option<T>, E>,
) -> Result<T, E> {
    let mut parser = sse::Parser::default();
    while let Some(piece) = http::piece(&mut response).await? {
        for message in parser.push(&piece)? {
            if let Some(found) = each(message)? {
                return Ok(found);
            }
        }
    }
    Err(ClientError::BrokenOff(what).into())
}
