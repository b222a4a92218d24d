//! What is done when nobody asks: noticing sandboxes that ended by themselves or whose time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spore_types::SandboxState;

use super::pressure::Relief;
use super::sandbox::Sandbox;
use super::{Engine, now};

/// Between two looks.
const ROUND: Duration = Duration::from_millis(250);
/// Rounds between two sweeps of control groups, and of what in the store could not be removed when it was to be: looking
/// into a directory takes a descriptor.
const SWEEP: u32 = 20;
/// How long a VM may take to say that it has not ended.
const ASK: Duration = Duration::from_millis(1);

/// The thread. Dropping it ends it.
pub struct Keeper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts it.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(engine: Arc<Engine>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("keeper".into()).spawn(move || {
            let (mut rounds, mut pressure) = (0u32, Relief::default());
            while !stopped.load(Ordering::Relaxed) {
                let now = now();
                for sandbox in engine.list() {
                    let cause = match over(&sandbox, now) {
                        Some(over) => Some(over.to_owned()),
                        None => ended(&sandbox),
                    };
                    if let Some(cause) = cause {
                        engine.end(&sandbox, &cause);
                    }
                }
                pressure.look(&engine);
                if rounds % SWEEP == 0 {
                    engine.groups.sweep();
                    if let Err(error) = engine.host.store().sweep() {
                        tracing::warn!(%error, "what nobody owns could not be removed");
                    }
                }
                rounds += 1;
                std::thread::sleep(ROUND);
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, nothing is left to keep.
            let _ = thread.join();
        }
    }
}

/// Why a sandbox's time is over, if it is.
fn over(sandbox: &Sandbox, now: u64) -> Option<&'static str> {
    let changing = sandbox.changing();
    if changing.expires_at.is_some_and(|at| at <= now) {
        return Some("expired");
    }
    let limit = changing.idle_timeout_seconds?;
    (sandbox.activity().idle_at(now) >= limit.into()).then_some("idle")
}

/// Why a sandbox's VM has ended, if it has and nobody works with it: whoever does will hear.
fn ended(sandbox: &Sandbox) -> Option<String> {
    let mut work = sandbox.try_work()?;
    let held = work.held().ok()?;
    if sandbox.changing().state == SandboxState::Paused {
        return held
            .guest
            .vm()
            .is_gone()
            .then(|| "its VM process is gone".to_owned());
    }
    // Once it was asked, it says so by itself, and there is something to read.
    if held.awaited && !readable(held.guest.vm().control()) {
        return None;
    }
    held.awaited = true;
    match held.guest.vm().wait_end(ASK) {
        Ok(None) => None,
        Ok(Some(ended)) => Some(ended.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn readable(stream: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&stream, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}
