//! Files of a sandbox, in and out, piece by piece.

use std::io::{Read, Write};

use hyper::Method;
use hyper::body::Bytes;
use spore_types::FileInfo;
use tokio::sync::mpsc;

use super::{Answer, Client, ClientError, http, path};

/// Bytes read at a time.
const PIECE: usize = 256 * 1024;
/// Pieces on their way.
const PIECES: usize = 4;
/// Where the daemon tells a file's permission bits.
const MODE: &str = "x-spore-mode";

impl Client {
    /// Writes a file in a sandbox: all of what `source` has, or nothing.
    ///
    /// # Errors
    /// As of every call; an error of `source` is [`ClientError::Local`].
    pub fn write_file(
        &self,
        id: &str,
        to: &str,
        mode: Option<u32>,
        mut source: impl Read + Send + 'static,
    ) -> Result<Answer<FileInfo>, ClientError> {
        let (give, pieces) = mpsc::channel(PIECES);
        let (failed, failure) = std::sync::mpsc::sync_channel(1);
        // A thread and no task: a read of a terminal or a pipe that never comes keeps nobody from leaving.
        std::thread::spawn(move || {
            let mut buffer = vec![0; PIECE];
            loop {
                let piece = match source.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        let shown = std::io::Error::new(error.kind(), error.to_string());
                        let _ = failed.try_send(error);
                        Err(shown)
                    }
                };
                let last = piece.is_err();
                if give.blocking_send(piece).is_err() || last {
                    return;
                }
            }
        });
        let call = path::file(id, to, mode);
        let headers = &[("content-type", "application/octet-stream")];
        let text = self.block_on(async {
            let payload = http::pieces(pieces);
            let response = http::send(&self.socket, Method::PUT, &call, headers, payload).await?;
            http::text(response).await
        });
        match (text, failure.try_recv()) {
            (Ok(text), _) => Ok(Answer::new(text)),
            (Err(_), Ok(own)) => Err(ClientError::Local(own)),
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Reads a file of a sandbox. `begin` hears its permission bits, once it is known that there is such a file, and
    /// says where it goes.
    ///
    /// # Errors
    /// As of every call; those of `begin` and of what it gave are [`ClientError::Local`].
    pub fn read_file<W: Write>(
        &self,
        id: &str,
        from: &str,
        begin: impl FnOnce(u32) -> std::io::Result<W>,
    ) -> Result<W, ClientError> {
        let call = path::file(id, from, None);
        self.block_on(async {
            let sent = http::send(&self.socket, Method::GET, &call, &[], http::nothing());
            let mut response = http::good(sent.await?).await?;
            let mode = response.headers().get(MODE).and_then(|mode| mode.to_str().ok());
            let mode = mode
                .and_then(|mode| u32::from_str_radix(mode, 8).ok())
                .unwrap_or(0o644);
            let mut to = begin(mode).map_err(ClientError::Local)?;
            while let Some(piece) = http::piece(&mut response).await? {
                to.write_all(&piece).map_err(ClientError::Local)?;
            }
            to.flush().map_err(ClientError::Local)?;
            Ok(to)
        })
    }
}
