//! Several clients at once, each with a model of what is its own, while VMs, templates and the daemon are killed
//! and garbage is collected.
//!
//! A client that hears nothing, because the daemon was killed, does not know whether what it asked for was done; the
//! model then has both. Whatever else it is told must be so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spore_snapshot::store::{Keep, Store, StoreError};
use spore_tests::http::{Answer, Http};
use spore_tests::left;
use spore_tests::soak::{Random, Soak};

use super::Daemon;
use crate::image::{FLOOR_MB, NAME};

/// Clients at once.
const CLIENTS: u64 = 3;
/// Sandboxes that one has.
const MOST: usize = 3;
/// Checkpoints that one has.
const CHECKPOINTS: usize = 2;
/// Where a sandbox's word is.
const WORD: &str = "/var/word";
/// Between two accidents.
const CALM: Duration = Duration::from_millis(1500);
/// What a checkpoint may take that nobody waits for any more.
const WRITTEN: Duration = Duration::from_secs(60);

/// What all share.
struct World {
    http: Http,
    root: PathBuf,
    /// Sandboxes whose VM somebody has killed, or is about to.
    killed: Mutex<BTreeSet<String>>,
    /// Processes without a directory that somebody has killed, or is about to: templates, and copies that write
    /// checkpoints.
    copies_killed: AtomicU32,
    over: AtomicBool,
    counts: Mutex<BTreeMap<&'static str, u32>>,
}

impl World {
    fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    /// What can be found out about a sandbox that is not as it should be.
    fn known_of(&self, id: &str) -> String {
        let run = self.root.join("run").join(id);
        let console = std::fs::read_to_string(run.join("console.log")).unwrap_or_default();
        let end = console.len().saturating_sub(2000);
        format!(
            "\nit is {:?}\nits processes are {:?}\nso far {:?}\nits console ends with {:?}",
            self.http
                .try_send(&format!("GET /v1/sandboxes/{id}"), &[], b"")
                .map(|it| it.json()),
            left::vms_using(&run),
            lock(&self.counts),
            console.get(end..).unwrap_or_default()
        )
    }

    fn is_killed(&self, id: &str) -> bool {
        lock(&self.killed).contains(id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A sandbox and what its word may be: one, unless a write was not heard of.
#[derive(Clone, Debug)]
struct Mine {
    id: String,
    words: Vec<String>,
}

struct Client<'a> {
    world: &'a World,
    random: Random,
    name: String,
    sandboxes: Vec<Mine>,
    checkpoints: Vec<(String, Vec<String>)>,
    words: u32,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Create,
    Check,
    Write,
    Fork,
    Checkpoint,
    DeleteCheckpoint,
    Pause,
    Grow,
    Delete,
    HangUp,
    Look,
}

/// What came of a call.
enum Told {
    /// As it should be.
    Done(Value),
    /// Nothing was heard: the daemon was killed.
    Nothing,
    /// The sandbox it was about had been killed.
    Gone,
    /// The copy that was made for it had been.
    Unmade,
}

impl Client<'_> {
    /// A call about a sandbox, or about none. Anything but `status` must have a reason.
    fn call(&self, of: Option<&str>, call: &str, body: &Value, status: u16) -> Told {
        let bytes = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let before = self.world.copies_killed.load(Ordering::SeqCst);
        match self.world.http.try_send(call, &[], bytes.as_bytes()) {
            None => Told::Nothing,
            Some(answer) if answer.status == status => Told::Done(answer.json()),
            // A copy goes with the sandbox too, whose files it has open.
            Some(answer)
                if is_loss(&answer)
                    && (self.world.copies_killed.load(Ordering::SeqCst) > before
                        || of.is_some_and(|id| self.world.is_killed(id))) =>
            {
                Told::Unmade
            }
            Some(answer) => {
                assert!(
                    of.is_some_and(|id| self.world.is_killed(id)) && is_end(&answer),
                    "{}: {call} {bytes}: {} {}{}",
                    self.name,
                    answer.status,
                    String::from_utf8_lossy(&answer.body),
                    of.map_or_else(String::new, |id| self.world.known_of(id))
                );
                Told::Gone
            }
        }
    }

    fn step(&mut self) {
        let act = self.random.pick(&[
            (Act::Create, 12),
            (Act::Check, 24),
            (Act::Write, 12),
            (Act::Fork, 8),
            (Act::Checkpoint, 5),
            (Act::DeleteCheckpoint, 3),
            (Act::Pause, 5),
            (Act::Grow, 5),
            (Act::Delete, 8),
            (Act::HangUp, 4),
            (Act::Look, 6),
        ]);
        let room = MOST - self.sandboxes.len();
        let which = self.random.below(self.sandboxes.len().max(1));
        let done = match act {
            Act::Create if room > 0 => self.create(),
            Act::Fork if room > 0 && which < self.sandboxes.len() => self.fork(which, room),
            Act::Checkpoint if self.checkpoints.len() < CHECKPOINTS && which < self.sandboxes.len() => {
                self.checkpoint(which)
            }
            Act::DeleteCheckpoint if !self.checkpoints.is_empty() => self.delete_checkpoint(),
            Act::Look => self.look(),
            Act::Create | Act::Fork | Act::Checkpoint | Act::DeleteCheckpoint => return,
            _ if which >= self.sandboxes.len() => return,
            Act::Check => self.check(which),
            Act::Write => self.write(which),
            Act::Pause => self.pause(which),
            Act::Grow => self.grow(which),
            Act::Delete => self.delete(which),
            Act::HangUp => self.hang_up(which),
        };
        match done {
            Told::Done(_) => self.world.count(act.name()),
            Told::Nothing => self.world.count("unheard"),
            Told::Unmade => self.world.count("unmade"),
            Told::Gone => {
                self.world.count("gone");
                self.sandboxes.remove(which);
            }
        }
    }

    fn take_in(&mut self, sandbox: &Value, words: Vec<String>) {
        let id = sandbox["id"].as_str().unwrap().to_owned();
        self.sandboxes.push(Mine { id, words });
    }

    fn create(&mut self) -> Told {
        let from = self.random.below(self.checkpoints.len() + 2);
        let mut body = json!({"metadata": {"client": self.name}, "memoryMB": FLOOR_MB});
        let words = match self.checkpoints.get(from) {
            Some((id, words)) => {
                body["checkpoint"] = json!(id);
                words.clone()
            }
            None => {
                body["image"] = json!(NAME);
                vec![String::new()]
            }
        };
        let told = self.call(None, "POST /v1/sandboxes", &body, 201);
        if let Told::Done(sandbox) = &told {
            self.take_in(sandbox, words);
        }
        told
    }

    /// That its word is what it should be.
    fn check(&mut self, which: usize) -> Told {
        let mine = self.sandboxes[which].clone();
        let body = json!({"cmd": ["sh", "-c", format!("cat {WORD} 2>/dev/null; true")]});
        let call = format!("POST /v1/sandboxes/{}/exec", mine.id);
        let told = self.call(Some(&mine.id), &call, &body, 200);
        if let Told::Done(result) = &told {
            let word = result["stdout"].as_str().unwrap();
            assert!(
                mine.words.iter().any(|may| may == word),
                "{}: {} has {word:?}, not one of {:?}",
                self.name,
                mine.id,
                mine.words
            );
            self.sandboxes[which].words = vec![word.to_owned()];
        }
        told
    }

    fn write(&mut self, which: usize) -> Told {
        self.words += 1;
        let word = format!("{}-{}", self.name, self.words);
        let id = &self.sandboxes[which].id;
        let call = format!("PUT /v1/sandboxes/{id}/files?path={WORD}");
        let told = match self.world.http.try_send(&call, &[], word.as_bytes()) {
            None => Told::Nothing,
            Some(answer) if answer.status == 200 => Told::Done(Value::Null),
            Some(answer) => {
                let gone = self.world.is_killed(id) && is_end(&answer);
                assert!(
                    gone,
                    "{call}: {} {}{}",
                    answer.status,
                    answer.json(),
                    self.world.known_of(id)
                );
                Told::Gone
            }
        };
        match told {
            Told::Done(_) => self.sandboxes[which].words = vec![word],
            _ => self.sandboxes[which].words.push(word),
        }
        told
    }

    fn fork(&mut self, which: usize, room: usize) -> Told {
        let mine = self.sandboxes[which].clone();
        let count = 1 + self.random.below(room);
        let call = format!("POST /v1/sandboxes/{}/fork", mine.id);
        let told = self.call(Some(&mine.id), &call, &json!({"count": count}), 201);
        if let Told::Done(forked) = &told {
            let forks = forked["sandboxes"].as_array().unwrap();
            assert_eq!(forks.len(), count, "{forked}");
            for fork in forks {
                self.take_in(fork, mine.words.clone());
            }
        }
        told
    }

    fn checkpoint(&mut self, which: usize) -> Told {
        let mine = self.sandboxes[which].clone();
        let call = format!("POST /v1/sandboxes/{}/checkpoints", mine.id);
        let told = self.call(Some(&mine.id), &call, &json!({}), 201);
        if let Told::Done(made) = &told {
            let id = made["id"].as_str().unwrap().to_owned();
            self.checkpoints.push((id, mine.words));
        }
        told
    }

    fn delete_checkpoint(&mut self) -> Told {
        let which = self.random.below(self.checkpoints.len());
        let (id, _) = self.checkpoints.swap_remove(which);
        self.call(None, &format!("DELETE /v1/checkpoints/{id}"), &Value::Null, 204)
    }

    fn pause(&mut self, which: usize) -> Told {
        let id = self.sandboxes[which].id.clone();
        let call = |what: &str| format!("POST /v1/sandboxes/{id}/{what}");
        match self.call(Some(&id), &call("pause"), &Value::Null, 200) {
            Told::Done(_) => {}
            Told::Nothing => {
                // It may stand still now. Letting it run does no harm, if it can be asked at all.
                self.world.http.try_send(&call("resume"), &[], b"");
                return Told::Nothing;
            }
            told => return told,
        }
        // A daemon may be killed here too, and what it is told then is not heard.
        let mut told = self.call(Some(&id), &call("resume"), &Value::Null, 200);
        while matches!(told, Told::Nothing) {
            told = self.call(Some(&id), &call("resume"), &Value::Null, 200);
        }
        told
    }

    fn grow(&mut self, which: usize) -> Told {
        let id = &self.sandboxes[which].id;
        let asked = json!({"memoryMB": FLOOR_MB + 64});
        self.call(Some(id), &format!("PATCH /v1/sandboxes/{id}"), &asked, 200)
    }

    fn delete(&mut self, which: usize) -> Told {
        let id = self.sandboxes[which].id.clone();
        let call = format!("DELETE /v1/sandboxes/{id}");
        let told = self.call(Some(&id), &call, &Value::Null, 204);
        match told {
            Told::Gone | Told::Unmade => {}
            Told::Done(_) => drop(self.sandboxes.remove(which)),
            Told::Nothing => {
                // It is gone or it is not; whatever it is then is the daemon's to end.
                self.sandboxes.remove(which);
            }
        }
        told
    }

    /// A client that goes while its command runs.
    fn hang_up(&mut self, which: usize) -> Told {
        let id = &self.sandboxes[which].id;
        let body = json!({"cmd": ["sleep", "1000"]});
        let call = format!("POST /v1/sandboxes/{id}/exec");
        drop(self.world.http.begin(&call, body.to_string().as_bytes()));
        Told::Done(Value::Null)
    }

    fn look(&mut self) -> Told {
        let calls = [
            "GET /v1/host",
            "GET /v1/sandboxes",
            "GET /metrics",
            "GET /v1/checkpoints",
        ];
        let which = self.random.below(calls.len());
        self.call(None, calls[which], &Value::Null, 200)
    }
}

impl Act {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Check => "check",
            Self::Write => "write",
            Self::Fork => "fork",
            Self::Checkpoint => "checkpoint",
            Self::DeleteCheckpoint => "delete checkpoint",
            Self::Pause => "pause",
            Self::Grow => "grow",
            Self::Delete => "delete",
            Self::HangUp => "hang up",
            Self::Look => "look",
        }
    }
}

/// Whether an answer says that a sandbox has ended, in one of the ways it may be noticed.
fn is_end(answer: &Answer) -> bool {
    [404, 409, 410, 502].contains(&answer.status)
}

/// Whether an answer says that a copy was lost before it was of use.
fn is_loss(answer: &Answer) -> bool {
    let message = answer.json()["error"]["message"].to_string();
    answer.error() == (500, "internal".into()) && message.contains("the copy came to nothing")
}

/// What happens to a host.
fn accidents(world: &World, daemon: &mut Daemon, mut random: Random, soak: &Soak) {
    let root = daemon.root().to_owned();
    let store = Store::attach(&root);
    while soak.goes_on() && !world.over.load(Ordering::Relaxed) {
        std::thread::sleep(CALM);
        match random.below(8) {
            0 | 1 => {
                let all = world.http.call("GET /v1/sandboxes").json();
                let ids = all["sandboxes"].as_array().unwrap();
                if let Some(sandbox) = ids.get(random.below(ids.len().max(1))) {
                    let id = sandbox["id"].as_str().unwrap();
                    lock(&world.killed).insert(id.to_owned());
                    let own = root.join("run").join(id);
                    // A fork has layers open that were its parent's, but writes only what is its own.
                    for pid in left::vms_using(&own) {
                        if !left::written_files(pid, &own).is_empty() {
                            left::kill_if_there(pid);
                        }
                    }
                    world.count("VM killed");
                }
            }
            2 => {
                // A template has nothing of a sandbox open, nor has a copy that is not armed yet. Looked at last thing
                // before: it may just be becoming a sandbox.
                let run = root.join("run");
                for pid in left::vms_using(&root) {
                    if left::written_files(pid, &run).is_empty() {
                        world.copies_killed.fetch_add(1, Ordering::SeqCst);
                        left::kill_if_there(pid);
                        world.count("template killed");
                    }
                }
            }
            3 | 4 => {
                daemon.kill();
                daemon.again();
                world.count("daemon killed");
            }
            _ => match store.gc(&Keep::default()) {
                Ok(_) => world.count("garbage collected"),
                Err(StoreError::Busy) => world.count("garbage left"),
                Err(error) => panic!("{error}"),
            },
        }
    }
}

pub fn clients_have_what_they_were_told_whatever_happens_to_the_host() {
    let mut daemon = Daemon::start();
    // Now, since the image that it has may just have been built.
    let soak = Soak::begin("soak");
    let world = World {
        http: daemon.http.clone(),
        root: daemon.root().to_owned(),
        killed: Mutex::default(),
        copies_killed: AtomicU32::new(0),
        over: AtomicBool::new(false),
        counts: Mutex::default(),
    };
    /// Ends the others' work also when one panics.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let mut clients: Vec<Client> = (1..=CLIENTS)
        .map(|number| Client {
            world: &world,
            random: soak.random(number),
            name: format!("client{number}"),
            sandboxes: Vec::new(),
            checkpoints: Vec::new(),
            words: 0,
        })
        .collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            let world = &world;
            scope.spawn(move || {
                let _over = Over(&world.over);
                while !world.over.load(Ordering::Relaxed) {
                    client.step();
                }
            });
        }
        let _over = Over(&world.over);
        accidents(&world, &mut daemon, soak.random(0), &soak);
    });
    for client in &mut clients {
        for which in (0..client.sandboxes.len()).rev() {
            client.check(which);
        }
    }
    eprintln!("soak: {:?} in {:?}", lock(&world.counts), soak.elapsed());
    assert!(!lock(&world.counts).is_empty(), "nothing was done");
    nothing_is_promised_when_all_is_deleted(&daemon);
}

fn nothing_is_promised_when_all_is_deleted(daemon: &Daemon) {
    let http = &daemon.http;
    for calls in ["sandboxes", "checkpoints"] {
        let all = http.call(&format!("GET /v1/{calls}")).expect(200);
        for one in all[calls].as_array().unwrap() {
            if one["kind"] == "image" {
                continue;
            }
            let call = format!("DELETE /v1/{calls}/{}", one["id"].as_str().unwrap());
            let answer = http.call(&call);
            // One that was killed may be noticed just now.
            assert!([204, 404].contains(&answer.status), "{call}: {}", answer.json());
        }
    }
    let began = Instant::now();
    loop {
        let host = http.call("GET /v1/host").expect(200);
        if host["sandboxes"] == 0 && host["memory"]["committedMB"] == 0 {
            break;
        }
        assert!(began.elapsed() < WRITTEN, "{host}");
        std::thread::sleep(Duration::from_millis(50));
    }
    // A checkpoint that its client did not wait for may still be being written.
    let store = Store::attach(daemon.root());
    left::soon_nothing(WRITTEN, || {
        match store.gc(&Keep::default()) {
            Err(StoreError::Busy) => {}
            collected => drop(collected.unwrap()),
        }
        let found = std::fs::read_dir(daemon.root().join("tmp")).unwrap();
        found.map(|entry| entry.unwrap().path()).collect()
    });
}
