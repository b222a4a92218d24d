//! Threads for connections.
//!
//! A few threads wait in `accept` on the same socket, so that a connection usually finds a
//! thread, its stack and its buffers ready and touched. The last one to leave `accept` starts
//! another before it serves.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::conversation::{Agent, Buffers, Conn};

/// The stack of every thread; only what is touched costs anything.
pub const STACK_BYTES: usize = 256 * 1024;

/// Threads waiting for a connection from the start.
const READY: usize = 2;
/// More idle threads than this end.
const MAX_IDLE: usize = 4;
/// More connections than this wait.
const MAX_THREADS: usize = 256;

struct Pool {
    agent: &'static Agent,
    listener: Arc<OwnedFd>,
    idle: AtomicUsize,
    threads: AtomicUsize,
}

/// Serves connections of `listener` on threads of its own, until the process ends.
pub fn forever(agent: &'static Agent, listener: Arc<OwnedFd>) {
    let pool = Arc::new(Pool {
        agent,
        listener,
        idle: AtomicUsize::new(0),
        threads: AtomicUsize::new(0),
    });
    for _ in 0..READY {
        Pool::add_thread(&pool);
    }
}

impl Pool {
    fn add_thread(pool: &Arc<Self>) {
        if pool.threads.fetch_add(1, Ordering::Relaxed) >= MAX_THREADS {
            pool.threads.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        pool.idle.fetch_add(1, Ordering::Relaxed);
        let in_thread = Arc::clone(pool);
        let thread = std::thread::Builder::new()
            .name("serve".to_owned())
            .stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || Self::run(&in_thread)) {
            eprintln!("spore-agent: cannot start a thread: {error}");
            pool.idle.fetch_sub(1, Ordering::Relaxed);
            pool.threads.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn run(pool: &Arc<Self>) {
        let mut buffers = Buffers::default();
        loop {
            let connection = match accept_with(&*pool.listener, SocketFlags::CLOEXEC) {
                Ok(connection) => Conn::new(connection),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    // Out of descriptors or memory: others may free some.
                    eprintln!("spore-agent: accept: {error}");
                    std::thread::sleep(Duration::from_millis(200));
                    continue;
                }
            };
            if pool.idle.fetch_sub(1, Ordering::Relaxed) == 1 {
                Self::add_thread(pool);
            }
            let served = catch_unwind(AssertUnwindSafe(|| {
                pool.agent.converse(&connection, &mut buffers)
            }));
            drop(connection);
            if served.is_err() {
                buffers = Buffers::default();
            }
            buffers.recycle();
            if pool.idle.fetch_add(1, Ordering::Relaxed) >= MAX_IDLE {
                pool.idle.fetch_sub(1, Ordering::Relaxed);
                pool.threads.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }
}
