//! The daemon on its socket.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::fs::{FlockOperation, Mode, flock};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::config::Config;
use crate::engine::Engine;
use crate::engine::keeper::Keeper;
use crate::http;

/// The longest path of a Unix socket, in bytes (unix(7)).
const MAX_SOCKET_PATH: usize = 107;
/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(30);
/// How long requests may take to end when the daemon is stopped.
const LEAVING: Duration = Duration::from_secs(10);

/// Why a daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] crate::error::Error),
    /// Another daemon has the data directory.
    #[error("another daemon works in {0}")]
    DataInUse(String),
    /// Another daemon has the socket.
    #[error("another daemon listens at {0}")]
    SocketInUse(String),
    /// What is at the socket's path is no socket, or not ours.
    #[error("{path} is there and {what}; it is not removed")]
    NotOurs {
        /// Where.
        path: String,
        /// What.
        what: &'static str,
    },
    /// The path cannot be a socket's.
    #[error("the socket's path has {length} bytes; at most {MAX_SOCKET_PATH} are possible: {path}")]
    PathTooLong {
        /// Which.
        path: String,
        /// Its length.
        length: usize,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::Io { what, source }
}

/// Holds the data directory against other daemons, for as long as it lives.
fn lock(data: &Path) -> Result<File, ServeError> {
    std::fs::create_dir_all(data).map_err(io(format!("making {}", data.display())))?;
    let path = data.join("daemon.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io(format!("opening {}", path.display())))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::DataInUse(data.display().to_string())),
        Err(error) => Err(io(format!("locking {}", path.display()))(error.into())),
    }
}

/// Removes a socket that nobody listens at; anything else stays.
fn clear(path: &Path) -> Result<(), ServeError> {
    let shown = || path.display().to_string();
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(io(shown()))?,
    };
    let not_ours = |what| Err(ServeError::NotOurs { path: shown(), what });
    if !found.file_type().is_socket() {
        return not_ours("is no socket");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return not_ours("belongs to somebody else");
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ServeError::SocketInUse(shown())),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io(format!("removing {}", shown())))
        }
        Err(error) => Err(io(shown())(error)),
    }
}

/// A new socket at `path`, mode 0660.
fn listen(path: &Path) -> Result<StdListener, ServeError> {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(ServeError::PathTooLong {
            path: path.display().to_string(),
            length,
        });
    }
    clear(path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(io(format!("making {}", parent.display())))?;
    }
    // Never open to more than it is to be, not even for a moment. This early there is one thread.
    let before = rustix::process::umask(Mode::from_raw_mode(0o117));
    let bound = StdListener::bind(path);
    rustix::process::umask(before);
    bound.map_err(io(format!("listening at {}", path.display())))
}

/// The socket that systemd made and keeps, if it started us with one (sd_listen_fds(3)).
fn given_by_systemd() -> Option<StdListener> {
    // Anything that is no listening Unix socket is not what was meant.
    listenfd::ListenFd::from_env().take_unix_listener(0).ok()?
}

/// Removes the socket when the daemon goes, if it is its own.
struct Bound<'a>(&'a Path, bool);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if self.1 {
            // Somebody may have removed it.
            let _ = std::fs::remove_file(self.0);
        }
    }
}

/// Serves until SIGTERM or SIGINT. `ready` is called when clients can connect.
///
/// # Errors
/// [`ServeError`].
pub fn serve(config: Config, ready: impl FnOnce()) -> Result<(), ServeError> {
    let _data = lock(&config.data)?;
    let path = config.socket.clone();
    let (listener, ours) = match given_by_systemd() {
        Some(given) => (given, false),
        None => (listen(&path)?, true),
    };
    let _bound = Bound(&path, ours);
    let stalled = config.limits.stalled;
    let engine = Arc::new(Engine::open(config)?);
    let keeper = Keeper::start(engine.clone()).map_err(io("starting a thread"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // One for each connection's work, and one for what a call in place keeps a thread of the runtime from.
        .max_blocking_threads(CONNECTIONS + http::MOST_IN_PLACE)
        .build()
        .map_err(io("starting threads"))?;
    let served = runtime.block_on(accept(listener, stalled, engine.clone(), ready));
    // Those too that were begun while the others were waited for.
    engine.builds().cancel_all();
    drop(keeper);
    runtime.shutdown_timeout(LEAVING);
    engine.leave();
    served
}

async fn accept(
    listener: StdListener,
    stalled: Duration,
    engine: Arc<Engine>,
    ready: impl FnOnce(),
) -> Result<(), ServeError> {
    listener.set_nonblocking(true).map_err(io("the socket"))?;
    let listener = UnixListener::from_std(listener).map_err(io("the socket"))?;
    let router = http::router(engine.clone());
    let mut terminated = signal(SignalKind::terminate()).map_err(io("signals"))?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(io("signals"))?;
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    ready();
    // Only systemd listens; without it there is nothing to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        let next = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let next = tokio::select! {
            next = next => next,
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        };
        let (permit, stream) = match next {
            (Ok(permit), Ok((stream, _))) => (permit, stream),
            (Err(_), _) => break,
            (_, Err(error)) => {
                // Out of descriptors, most likely: some come free when others hang up.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        // Whoever does not read what is said has gone, and what waits for it ends as if it had hung up.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(stalled));
        let connection = http.serve_connection_with_upgrades(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection.into_owned());
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    engine.events().close();
    engine.builds().cancel_all();
    // Other streams may go on for as long as who reads them likes.
    let _ = tokio::time::timeout(LEAVING, graceful.shutdown()).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_of_ours_that_nobody_listens_at_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        clear(&path).unwrap();

        let listening = StdListener::bind(&path).unwrap();
        assert!(matches!(clear(&path), Err(ServeError::SocketInUse(_))));
        drop(listening);
        clear(&path).unwrap();
        assert!(!path.exists());

        std::fs::write(&path, "").unwrap();
        assert!(matches!(
            clear(&path),
            Err(ServeError::NotOurs {
                what: "is no socket",
                ..
            })
        ));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(matches!(clear(&path), Err(ServeError::NotOurs { .. })));
        std::fs::remove_file(&path).unwrap();

        drop(StdListener::bind(&path).unwrap());
        // Only root can give it to somebody else.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            let theirs = "belongs to somebody else";
            assert!(matches!(clear(&path), Err(ServeError::NotOurs { what, .. }) if what == theirs));
            assert!(path.exists());
        }
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_with_its_length() {
        let path = format!("/tmp/{}", "x".repeat(MAX_SOCKET_PATH - 4));
        let error = listen(Path::new(&path)).unwrap_err();
        assert!(
            matches!(error, ServeError::PathTooLong { length: 108, .. }),
            "{error}"
        );
    }
}
