//! Sandboxes that are had for a while, beside other things to wait for.

use hyper::Method;
use spore_types::{CreateSandbox, CreatedSandbox, Sandbox};

use super::{Client, ClientError, http, path};

impl Client {
    /// Makes one. Whoever drops the future ends one that is being made.
    ///
    /// # Errors
    /// As of every call.
    pub async fn create(&self, request: &CreateSandbox) -> Result<Sandbox, ClientError> {
        let made = self.ask::<CreatedSandbox>(Method::POST, "/v1/sandboxes", http::json(request)?);
        Ok(made.await?.value()?.sandbox)
    }

    /// Ends one.
    ///
    /// # Errors
    /// As of every call.
    pub async fn end(&self, id: &str) -> Result<(), ClientError> {
        let call = path::sandbox(id);
        let ended = self.ask::<()>(Method::DELETE, &call, http::nothing());
        ended.await.map(drop)
    }
}
