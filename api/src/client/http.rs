//! One request on one connection.

use std::io;
use std::path::Path;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::error::{ClientError, Refusal};

/// The longest answer that is kept in memory, in bytes: what a command may have written, as JSON.
const MAX_ANSWER: usize = 128 << 20;

/// A request's body.
pub type Payload = UnsyncBoxBody<Bytes, io::Error>;

/// How a JSON body is announced.
pub const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

/// No body.
pub fn nothing() -> Payload {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A JSON body.
pub fn json(body: &impl Serialize) -> Result<Payload, ClientError> {
    let text = serde_json::to_vec(body).map_err(|error| ClientError::Local(error.into()))?;
    Ok(Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync())
}

/// A body that comes in pieces. An error in it ends the request unfinished.
pub fn pieces(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Payload {
    let frames = stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Reaches whoever listens.
pub async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon(socket.to_owned())
            }
            _ => ClientError::Connect {
                socket: socket.to_owned(),
                source,
            },
        })
}

/// Sends a request; the answer's head is there, its body still comes.
pub async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    payload: Payload,
) -> Result<Response<Incoming>, ClientError> {
    let stream = connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; what is wrong with that, the request hears too.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "spore")
        .header("user-agent", concat!("spore/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(payload)
        .map_err(|error| ClientError::Wire(error.to_string()))?;
    Ok(sender.send_request(request).await?)
}

/// The answer, if it is a success (or the change of protocols that was asked for).
pub async fn good(response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let body = whole(response).await?;
    Err(ClientError::Refused(Refusal::parse(
        status.as_u16(),
        &String::from_utf8_lossy(&body),
    )))
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let collected = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = collected.map_err(|error| ClientError::Wire(error.to_string()))?;
    Ok(body.to_bytes())
}

/// All of a successful answer.
pub async fn text(response: Response<Incoming>) -> Result<String, ClientError> {
    let body = whole(good(response).await?).await?;
    String::from_utf8(body.into()).map_err(|error| ClientError::Answer(error.to_string()))
}

/// The next piece of an answer's body; `None` at its proper end.
pub async fn piece(response: &mut Response<Incoming>) -> Result<Option<Bytes>, ClientError> {
    loop {
        match response.body_mut().frame().await.transpose()? {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
