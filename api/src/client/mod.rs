//! The daemon's client: its calls, typed, over its Unix socket.
//!
//! It knows the wire (HTTP/1.1, WebSocket, server-sent events), not what a person is told. A connection serves one
//! call; a call has no time limit but the daemon's own. Paths are made by [`path`], which escapes what it is given.

mod error;
pub mod exec;
pub mod files;
mod http;
pub mod path;
pub mod sse;

use std::future::Future;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use hyper::Method;
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

    fn call<T>(&self, method: Method, path: &str, payload: Payload) -> Result<Answer<T>, ClientError> {
        let text = self.block_on(async {
            let response = http::send(&self.socket, method, path, http::JSON, payload).await?;
            http::text(response).await
        })?;
        Ok(Answer::new(text))
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
        self.block_on(async {
            let sent = http::send(&self.socket, Method::GET, "/v1/events", &headers, http::nothing());
            let mut response = http::good(sent.await?).await?;
            let mut parser = sse::Parser::default();
            while let Some(piece) = http::piece(&mut response).await? {
                for message in parser.push(&piece)? {
                    each(message)?;
                }
            }
            Err::<(), E>(ClientError::BrokenOff("the events").into())
        })
    }
}
