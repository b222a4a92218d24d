//! Builds: run in threads of their own, followed by any number of callers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use spore_builder::observe::{BuildEvent, Observer};
use spore_builder::options::BuildNetwork;
use spore_builder::{Cancel, HostMemory, Limits, Manifest, Options};
use spore_types::{BuildMessage, BuildRequest, BuildState, ErrorCode, EventKind, NetworkPolicy};
use tokio::sync::watch;

use super::create::policy;
use super::events::cause;
use super::images::show;
use super::{Engine, now};
use crate::error::{Error, Result};
use crate::time::millis;

/// How long an ended build is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Bytes of output that are kept of a build; what comes after is not.
const MAX_LOG: usize = 16 << 20;
/// The longest time limit of a step, in seconds.
const MAX_STEP: u32 = 86_400;

/// A build that runs, or has.
pub struct Build {
    /// Its id.
    pub id: String,
    name: Option<String>,
    /// What makes it equal to another.
    key: String,
    started: Instant,
    started_at: u64,
    cancel: Cancel,
    /// It goes on although nobody follows it.
    detached: AtomicBool,
    followers: AtomicUsize,
    log: Mutex<Log>,
    changed: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    messages: Vec<Arc<BuildMessage>>,
    output_bytes: usize,
    ended: Option<(Instant, Duration)>,
}

/// Follows a build. When the last one goes, a build that is not detached is cancelled.
pub struct Follower {
    build: Arc<Build>,
    changed: watch::Receiver<usize>,
    seen: usize,
}

impl Build {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: BuildMessage) {
        self.say_in(self.log(), message);
    }

    /// Says the last thing of it. Who hears that finds it ended.
    fn end(&self, message: BuildMessage, took: Duration) {
        let mut log = self.log();
        log.ended = Some((Instant::now(), took));
        self.say_in(log, message);
    }

    fn say_in(&self, mut log: MutexGuard<'_, Log>, message: BuildMessage) {
        if let BuildMessage::Output { text } = &message {
            let before = log.output_bytes;
            log.output_bytes += text.len();
            if before > MAX_LOG {
                return;
            }
            if log.output_bytes > MAX_LOG {
                log.messages.push(Arc::new(BuildMessage::Output {
                    text: format!(
                        "\n[the output is longer than {} MiB; the rest is not kept]\n",
                        MAX_LOG >> 20
                    ),
                }));
            }
        }
        log.messages.push(Arc::new(message));
        let count = log.messages.len();
        drop(log);
        self.changed.send_replace(count);
    }

    /// Follows it from its beginning.
    pub fn follow(self: &Arc<Self>) -> Follower {
        self.followers.fetch_add(1, Ordering::SeqCst);
        Follower {
            build: self.clone(),
            changed: self.changed.subscribe(),
            seen: 0,
        }
    }

    /// Lets it go on although nobody follows it.
    pub fn detach(&self) {
        self.detached.store(true, Ordering::SeqCst);
    }

    /// Stops it.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// As the API shows it.
    pub fn show(&self) -> spore_types::Build {
        let log = self.log();
        let took = log.ended.map_or_else(|| self.started.elapsed(), |(_, took)| took);
        let (mut state, mut image, mut error) = (BuildState::Running, None, None);
        match log.messages.last().map(|last| &**last) {
            Some(BuildMessage::Image { image: built }) => {
                (state, image) = (BuildState::Succeeded, Some(built.clone()));
            }
            Some(BuildMessage::Error { error: why }) => {
                (state, error) = (BuildState::Failed, Some(why.clone()));
            }
            _ => {}
        }
        spore_types::Build {
            id: self.id.clone(),
            state,
            name: self.name.clone(),
            started_at: self.started_at,
            took_ms: millis(took),
            image,
            error,
        }
    }
}

impl Follower {
    /// What it says next, when it does; `None` after its end.
    pub async fn next(&mut self) -> Option<Arc<BuildMessage>> {
        loop {
            self.changed.borrow_and_update();
            {
                let log = self.build.log();
                if let Some(message) = log.messages.get(self.seen) {
                    self.seen += 1;
                    return Some(message.clone());
                }
                if log.ended.is_some() {
                    return None;
                }
            }
            self.changed.changed().await.ok()?;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let last = self.build.followers.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && !self.build.detached.load(Ordering::SeqCst) && self.build.log().ended.is_none() {
            self.build.cancel();
        }
    }
}

/// All builds.
pub struct Builds {
    most: u32,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    builds: BTreeMap<String, Arc<Build>>,
    count: u64,
}

impl Builds {
    /// At most so many at once.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A build that runs, or ended within the last hour.
    ///
    /// # Errors
    /// `not_found`.
    pub fn get(&self, id: &str) -> Result<Arc<Build>> {
        let found = self.lock().builds.get(id).cloned();
        found.ok_or_else(|| Error::not_found("build", id))
    }

    /// How many run.
    pub fn running(&self) -> u32 {
        let running = self.lock().running();
        u32::try_from(running).unwrap_or(u32::MAX)
    }

    /// Stops all of them.
    pub fn cancel_all(&self) {
        let builds: Vec<_> = self.lock().builds.values().cloned().collect();
        builds.iter().for_each(|build| build.cancel());
    }

    /// The build of this key that runs and is not being cancelled, followed; or a new one if there may be, and whether it
    /// is.
    fn join_or_begin(
        &self,
        key: String,
        name: Option<String>,
        may_begin: impl FnOnce() -> Result<()>,
    ) -> Result<(Follower, bool)> {
        let mut inner = self.lock();
        inner.builds.retain(|_, build| {
            let log = build.log();
            log.ended.is_none_or(|(at, _)| at.elapsed() < REMEMBERED)
        });
        let same = inner
            .builds
            .values()
            .find(|build| build.key == key && build.log().ended.is_none() && !build.cancel.is_cancelled());
        if let Some(build) = same {
            return Ok((build.follow(), false));
        }
        may_begin()?;
        if inner.running() >= self.most as usize {
            let message = format!("{} builds run already on this host; try again", self.most);
            return Err(Error::new(ErrorCode::Busy, message));
        }
        inner.count += 1;
        let id = format!("b{}-{}", now(), inner.count);
        let build = Arc::new(Build {
            id: id.clone(),
            name,
            key,
            started: Instant::now(),
            started_at: now(),
            cancel: Cancel::default(),
            detached: AtomicBool::new(false),
            followers: AtomicUsize::new(0),
            log: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        inner.builds.insert(id, build.clone());
        Ok((build.follow(), true))
    }
}

impl Inner {
    fn running(&self) -> usize {
        let builds = self.builds.values();
        builds.filter(|build| build.log().ended.is_none()).count()
    }
}

impl Follower {
    /// The build.
    pub fn build(&self) -> &Arc<Build> {
        &self.build
    }
}

fn network(asked: &spore_types::BuildNetwork) -> Result<BuildNetwork> {
    let reached = match asked {
        spore_types::BuildNetwork::Auto => return Ok(BuildNetwork::IfPossible),
        spore_types::BuildNetwork::None => return Ok(BuildNetwork::Off),
        spore_types::BuildNetwork::Nat => NetworkPolicy::Nat,
        spore_types::BuildNetwork::Allow(entries) => NetworkPolicy::Allow(entries.clone()),
    };
    policy(&reached).map(BuildNetwork::To)
}

impl Engine {
    /// Begins a build, or joins an equal one that runs.
    ///
    /// # Errors
    /// What is wrong with the manifest, `busy`, `draining`, `insufficient_capacity`.
    pub fn build(self: &Arc<Self>, request: &BuildRequest) -> Result<Follower> {
        let limits = Limits {
            host_memory: HostMemory::read().map_err(Error::internal)?,
        };
        let text = serde_json::to_vec(&request.manifest).map_err(Error::internal)?;
        let manifest = Manifest::parse(&text, &limits)
            .map_err(|error| Error::new(ErrorCode::InvalidManifest, error.to_string()))?;
        let step_limit = match request.step_timeout_seconds {
            None => spore_builder::options::STEP_LIMIT,
            Some(seconds @ 1..=MAX_STEP) => Duration::from_secs(seconds.into()),
            Some(seconds) => {
                let message = format!("stepTimeoutSeconds {seconds}: it must be 1 to {MAX_STEP}");
                return Err(Error::invalid(message));
            }
        };
        let network = network(&request.network)?;
        // What is refused before anything boots is an answer, not the end of a stream.
        let base = self
            .host
            .bases()
            .get(manifest.base())
            .map_err(spore_builder::BuildError::from)?;
        spore_builder::Plan::new(&manifest, &base).map_err(spore_builder::BuildError::from)?;

        let key = serde_json::to_string(request).map_err(Error::internal)?;
        let name = manifest.name().map(|name| name.as_str().to_owned());
        let (follower, new) = self.builds.join_or_begin(key, name, || self.must_take_work())?;
        if !new {
            return Ok(follower);
        }
        let build = follower.build.clone();
        let memory = manifest
            .builder_memory()
            .get()
            .max(manifest.runtime_memory().get());
        let promise = match self.ledger.promise_build(memory) {
            Ok(promise) => promise,
            Err(error) => {
                self.close(&build, Err(error.clone()));
                return Err(error);
            }
        };
        let options = Options {
            no_cache: request.no_cache,
            step_limit,
            network,
            cancel: build.cancel.clone(),
        };
        self.events.tell(EventKind::BuildStarted {
            build: build.id.clone(),
        });
        build.say(BuildMessage::Build {
            build_id: build.id.clone(),
        });
        let engine = self.clone();
        let thread = std::thread::Builder::new().name("build".into());
        let running = build.clone();
        let spawned = thread.spawn(move || {
            let mut teller = Teller {
                build: &running,
                begun: Vec::new(),
            };
            let built = spore_builder::build(&engine.host, &manifest, &options, &mut teller);
            teller.say_first(teller.begun.len());
            let result = built.map(|built| show(&built.image)).map_err(Error::from);
            // Who hears of the end may use the memory.
            drop(promise);
            engine.close(&running, result);
        });
        if let Err(error) = spawned {
            self.close(&build, Err(Error::internal(error)));
        }
        Ok(follower)
    }

    fn close(&self, build: &Build, result: Result<spore_types::Image>) {
        let took = build.started.elapsed();
        self.metrics.build_ended(result.is_ok(), took);
        let (image, error, cause) = match &result {
            Ok(image) => (Some(image.id.clone()), None, None),
            Err(error) => (None, Some(error.code()), Some(cause(error))),
        };
        let last = match result {
            Ok(image) => BuildMessage::Image { image },
            Err(error) => BuildMessage::Error {
                error: error.into_body(),
            },
        };
        build.end(last, took);
        self.events.tell(EventKind::BuildEnded {
            build: build.id.clone(),
            image,
            error,
            cause,
        });
    }
}

/// Tells a build's events as messages.
struct Teller<'a> {
    build: &'a Build,
    /// The beginning of a character whose rest is still to come.
    begun: Vec<u8>,
}

impl Observer for Teller<'_> {
    fn event(&mut self, event: BuildEvent<'_>) {
        match event {
            BuildEvent::Output(bytes) => {
                self.begun.extend_from_slice(bytes);
                self.say_first(whole_characters(&self.begun));
            }
            event => {
                self.say_first(self.begun.len());
                self.build.say(message(event));
            }
        }
    }
}

impl Teller<'_> {
    /// So many bytes of what there is.
    fn say_first(&mut self, count: usize) {
        let bytes: Vec<u8> = self.begun.drain(..count).collect();
        if !bytes.is_empty() {
            self.build.say(message(BuildEvent::Output(&bytes)));
        }
    }
}

/// How many bytes end with a character, of text that may break off within one: what is none is one too.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(wrong) => at += error.valid_up_to() + wrong,
                None => return at + error.valid_up_to(),
            },
        }
    }
}

/// What is told of an event; a phase in words that a person can be shown as they are.
pub fn message(event: BuildEvent<'_>) -> BuildMessage {
    let phase = |phase: &str, message: String| BuildMessage::Phase {
        phase: phase.to_owned(),
        message,
    };
    match event {
        BuildEvent::Waiting => phase(
            "waiting",
            "waiting for the same build in another process".to_owned(),
        ),
        BuildEvent::DisksCached => phase("disksCached", "disks: cached".to_owned()),
        BuildEvent::NoNetwork { why } => phase("noNetwork", format!("no network for this build: {why}")),
        BuildEvent::Booting { memory_mb } => {
            phase("booting", format!("booting the build VM with {memory_mb} MiB"))
        }
        BuildEvent::Booted { took } => phase("booted", format!("build VM up in {took:.1?}")),
        BuildEvent::StepStarted { step, of, label } => BuildMessage::StepStarted {
            step,
            of,
            label: label.to_owned(),
        },
        BuildEvent::StepCached { step, of, label } => BuildMessage::StepCached {
            step,
            of,
            label: label.to_owned(),
        },
        BuildEvent::Output(bytes) => BuildMessage::Output {
            text: String::from_utf8_lossy(bytes).into_owned(),
        },
        BuildEvent::StepDone { step, took } => BuildMessage::StepDone {
            step,
            took_ms: millis(took),
        },
        BuildEvent::Sealed { took } => phase("sealed", format!("disks sealed; build phase {took:.1?}")),
        BuildEvent::Finalizing { floor_mb } => phase(
            "finalizing",
            format!("finalizing: cold boot of the disks at {floor_mb} MiB"),
        ),
        BuildEvent::Settled { took } => phase("settled", format!("guest up and settled in {took:.1?}")),
        BuildEvent::Checkpointed { took, memory_bytes } => phase(
            "checkpointed",
            format!(
                "checkpoint written in {took:.1?}: {} MiB of memory",
                memory_bytes >> 20
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_torn_between_pieces_of_output() {
        assert_eq!(whole_characters("grüße".as_bytes()), 7);
        assert_eq!(whole_characters(b"gr\xc3"), 2);
        assert_eq!(whole_characters(b"\xf0\x9f\x98"), 0);
        // What is no text is not waited for.
        assert_eq!(whole_characters(b"\xff\xfe"), 2);
        assert_eq!(whole_characters(b"\xff\xc3"), 1);
    }

    #[test]
    fn a_build_reaches_what_was_asked_for_or_is_refused() {
        let allow = |entry: &str| spore_types::BuildNetwork::Allow(vec![entry.to_owned()]);
        for (asked, expected) in [
            (spore_types::BuildNetwork::Auto, "IfPossible"),
            (spore_types::BuildNetwork::None, "Off"),
            (spore_types::BuildNetwork::Nat, "To(Nat)"),
        ] {
            assert_eq!(format!("{:?}", network(&asked).unwrap()), expected);
        }
        assert!(matches!(
            network(&allow("example.com:443")),
            Ok(BuildNetwork::To(_))
        ));
        let refused = network(&allow("a b")).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidRequest);
    }

    #[test]
    fn a_phase_is_told_in_words_that_can_be_shown() {
        let took = Duration::from_millis(12_345);
        assert_eq!(
            message(BuildEvent::Booted { took }),
            BuildMessage::Phase {
                phase: "booted".to_owned(),
                message: "build VM up in 12.3s".to_owned(),
            }
        );
    }
}
