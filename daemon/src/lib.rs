//! The host daemon: sandboxes, images and checkpoints of one host behind HTTP on a Unix socket.
//!
//! [`engine`] does what is asked and knows no HTTP; `http` makes calls of requests; [`serve()`] puts both on a socket.
//! What is said is in `spore-types`.

pub mod config;
pub mod engine;
pub mod error;
mod http;
mod scarce;
mod server;
mod time;

pub use config::{Config, Limits};
pub use http::openapi;
pub use server::{ServeError, serve};
