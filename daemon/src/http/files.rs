//! `/v1/sandboxes/{id}/files`, `/ls`, `/mkdir`.

use std::io::{self, Read, Write};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use spore_types::{DirEntries, ErrorCode, ErrorReply, FileInfo};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::extract::{Path, Query, pass_over, switch};
use super::{Shared, blocking};
use crate::engine::agent::Cut;
use crate::engine::files;
use crate::error::{Error, Result};

/// The largest file that is taken, in bytes.
const MAX_FILE: u64 = 1 << 30;
/// Pieces of a file on their way between guest and client.
const PIECES: usize = 8;

/// Which file.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct FileQuery {
    /// Absolute path in the guest.
    path: String,
    /// Permission bits in octal; absent: those it has, or 0644.
    mode: Option<String>,
    /// Remove a directory with all that is in it.
    #[serde(default, deserialize_with = "switch")]
    recursive: bool,
}

/// Writes into a channel; fails when nobody reads from it any more.
struct Pipe(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file's bytes.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/files", operation_id = "readFile", tag = "files", params(("id" = String, Path), FileQuery), responses(
    (status = 200, description = "They", content_type = "application/octet-stream", body = Vec<u8>),
    (status = "default", description = "An error", body = ErrorReply)))]
pub async fn read(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
) -> Result<Response> {
    files::path(&query.path)?;
    let sandbox = engine.sandbox(&id)?;
    let (pieces, mut reading) = mpsc::channel(PIECES);
    let (give_cut, cut) = oneshot::channel::<(u32, Cut)>();
    let copying = tokio::task::spawn_blocking(move || {
        let mut pipe = Pipe(pieces.clone());
        let begun = |mode, cut| drop(give_cut.send((mode, cut)));
        let copied = files::read(&sandbox, &query.path, begun, &mut pipe);
        if let Err(error) = &copied {
            // The client sees an answer that breaks off, not one that looks whole.
            let _ = pieces.blocking_send(Err(io::Error::other(error.to_string())));
        }
        copied
    });
    let begun = cut.await.ok();
    let mode = begun.as_ref().map_or(0, |(mode, _)| *mode);
    let head = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (HeaderName::from_static("x-spore-mode"), format!("{mode:04o}")),
    ];
    // The first piece tells whether there is a file at all.
    match reading.recv().await {
        Some(Ok(first)) => {
            let rest = ReceiverStream::new(reading);
            let all = tokio_stream::once(Ok(first)).chain(rest);
            // Cut when the answer is dropped: nobody reads on.
            let all = all.map(move |piece| {
                let _held = &begun;
                piece
            });
            Ok((head, Body::from_stream(all)).into_response())
        }
        // Nothing was written, or nothing could be.
        None | Some(Err(_)) => {
            copying.await.map_err(Error::internal)??;
            Ok((head, Body::empty()).into_response())
        }
    }
}

/// Reads from a channel; an end that is not one is an error.
struct Source {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
    ended: bool,
    taken: u64,
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) if piece.is_empty() => self.ended = true,
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => return Err(error),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = out.len().min(self.rest.len());
        out[..count].copy_from_slice(&self.rest.split_to(count));
        self.taken += count as u64;
        Ok(count)
    }
}

/// Writes a file: all of the body, or nothing.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/files", operation_id = "writeFile", tag = "files", params(("id" = String, Path), FileQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "It is there", body = FileInfo),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn write(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Result<Json<FileInfo>> {
    let checked = files::path(&query.path)
        .and_then(|_| files::mode(query.mode.as_deref()))
        .and_then(|mode| Ok((mode, engine.sandbox(&id)?)));
    let (mode, sandbox) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            // Who asks first need not send it.
            if !request.headers().contains_key(header::EXPECT) {
                pass_over(&mut request.into_body().into_data_stream()).await;
            }
            return Err(error);
        }
    };
    let (pieces, feeding) = mpsc::channel(PIECES);
    // Dropped with this future, and what is in it too: a client that goes leaves the old file as it was.
    let (give_cut, _cut) = oneshot::channel::<Cut>();
    let path = query.path.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut source = Source {
            pieces: feeding,
            rest: Bytes::new(),
            ended: false,
            taken: 0,
        };
        let begun = |cut| drop(give_cut.send(cut));
        files::write(&sandbox, &query.path, mode, begun, &mut source)?;
        Ok::<u64, Error>(source.taken)
    });
    let mut body = request.into_body().into_data_stream();
    let mut taken = 0;
    let mut refused = None;
    let stalled = engine.stalled();
    loop {
        let Ok(next) = tokio::time::timeout(stalled, body.next()).await else {
            // If the guest has refused meanwhile, that is what it came to.
            if writing.is_finished() {
                break;
            }
            let message = format!("nothing more of the file came within {} s", stalled.as_secs());
            refused = Some(Error::new(ErrorCode::TimedOut, message));
            break;
        };
        let Some(piece) = next else { break };
        let piece = piece.map_err(|error| io::Error::other(error.to_string()));
        taken += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if taken > MAX_FILE {
            let message = format!("a file may have {MAX_FILE} bytes");
            refused = Some(Error::new(ErrorCode::TooLarge, message));
            break;
        }
        // An empty piece is our mark of the end.
        if piece.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        let failed = piece.is_err();
        if pieces.send(piece).await.is_err() {
            // The guest has refused.
            pass_over(&mut body).await;
            break;
        }
        if failed {
            break;
        }
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    // If the guest has refused meanwhile, nobody takes this.
    let _ = pieces.send(Ok(Bytes::new())).await;
    drop(pieces);
    let size_bytes = writing.await.map_err(Error::internal)??;
    Ok(Json(FileInfo { path, size_bytes }))
}

/// Removes a file, a symbolic link or a directory.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}/files", operation_id = "removeFile", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 204, description = "It is no more"),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn remove(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
) -> Result<StatusCode> {
    files::path(&query.path)?;
    let sandbox = engine.sandbox(&id)?;
    blocking(move || files::remove(&sandbox, &query.path, query.recursive)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is in a directory.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/ls", operation_id = "listDirectory", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 200, description = "It, sorted by name", body = DirEntries),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn list(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
) -> Result<Json<DirEntries>> {
    files::path(&query.path)?;
    let sandbox = engine.sandbox(&id)?;
    Ok(Json(blocking(move || files::list(&sandbox, &query.path)).await?))
}

/// Makes a directory with its parents; one that is there is fine.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/mkdir", operation_id = "makeDirectory", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 204, description = "It is there"),
              (status = "default", description = "An error", body = ErrorReply)))]
pub async fn make_dir(
    State(engine): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
) -> Result<StatusCode> {
    files::path(&query.path)?;
    let mode = files::mode(query.mode.as_deref())?;
    let sandbox = engine.sandbox(&id)?;
    blocking(move || files::make_dir(&sandbox, &query.path, mode)).await?;
    Ok(StatusCode::NO_CONTENT)
}
