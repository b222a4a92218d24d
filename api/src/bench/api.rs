//! The daemon as its clients see it: what it adds to a fork, how many questions it answers, and what it keeps.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use serde::Serialize;
use serde_json::{Value, json};

use super::BenchError;
use super::host::HostReport;
use super::stats::Percentiles;

/// How long questions are asked.
const ASKING: Duration = Duration::from_secs(5);
/// Connections that ask.
const ASKERS: usize = 4;
/// How deep in a hierarchy of control groups those of VMs are looked for.
const GROUPS_DEPTH: usize = 8;
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// What is measured.
#[derive(Clone, Debug)]
pub struct ApiPlan {
    /// Name or id of an image that the daemon has.
    pub image: String,
    /// Creates at each concurrency.
    pub count: usize,
    /// How many at once, in turn.
    pub concurrency: Vec<usize>,
    /// Creates and deletes between two looks at the daemon; none: no such look.
    pub cycles: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiReport {
    /// The machine.
    pub host: HostReport,
    /// By concurrency.
    pub creates: Vec<Creates>,
    /// Answers to `GET /v1/sandboxes/{id}` a second, over a few connections.
    pub gets_per_second: f64,
    /// What the daemon had before and after many cycles.
    pub growth: Option<Growth>,
}

/// Creates at one concurrency.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Creates {
    /// How many at once.
    pub concurrency: usize,
    /// Creates, by where the sandbox came from.
    pub origins: BTreeMap<String, usize>,
    /// Creates that failed, by code.
    pub failed: BTreeMap<String, usize>,
    /// A create, asked to answered.
    pub create: Option<Percentiles>,
    /// Of that, what is not the fork itself: the request's way to the pool and the answer's back.
    pub share: Option<Percentiles>,
    /// A create with a command: asked to its result (T4).
    pub create_and_exec: Option<Percentiles>,
    /// A delete.
    pub delete: Option<Percentiles>,
}

/// What a daemon has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Holdings {
    /// Descriptors.
    pub descriptors: usize,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Threads.
    pub threads: u64,
    /// Files and directories in its data directory.
    pub files: usize,
    /// Control groups of VMs on this host, in all hierarchies.
    pub groups: usize,
}

/// The daemon before and after.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Growth {
    /// Creates and deletes in between.
    pub cycles: usize,
    /// Before.
    pub before: Holdings,
    /// After.
    pub after: Holdings,
}

/// A connection that is kept.
struct Connection(BufReader<UnixStream>);

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Connection {
    fn open(socket: &Path) -> io::Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(socket)?)))
    }

    fn call(&mut self, call: &str, body: &str) -> io::Result<(u16, Value)> {
        let request = format!(
            "{call} HTTP/1.1\r\nhost: spore\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| malformed("no status"))?;
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse().map_err(|_| malformed("no length"))?;
            }
        }
        if length > MAX_ANSWER {
            return Err(malformed("an answer that is too long"));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }
}

/// What one connection measured, in nanoseconds.
#[derive(Default)]
struct Taken {
    create: Vec<u64>,
    share: Vec<u64>,
    create_and_exec: Vec<u64>,
    delete: Vec<u64>,
    origins: BTreeMap<String, usize>,
    failed: BTreeMap<String, usize>,
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Taken {
    /// Makes a sandbox, with a command or without, and deletes it.
    fn cycle(&mut self, connection: &mut Connection, image: &str, command: bool) -> io::Result<()> {
        let body = match command {
            true => json!({"image": image, "exec": {"cmd": ["true"]}}),
            false => json!({"image": image}),
        };
        let asked = Instant::now();
        let (status, made) = connection.call("POST /v1/sandboxes", &body.to_string())?;
        let took = nanos(asked);
        if status != 201 {
            let code = made["error"]["code"].as_str().unwrap_or("no answer");
            *self.failed.entry(code.to_owned()).or_default() += 1;
            return Ok(());
        }
        if command {
            self.create_and_exec.push(took);
        } else {
            let origin = made["origin"].as_str().unwrap_or_default();
            *self.origins.entry(origin.to_owned()).or_default() += 1;
            self.create.push(took);
            let ready = made["times"]["readyUs"].as_u64().unwrap_or_default() * 1000;
            self.share.push(took.saturating_sub(ready));
        }
        let id = made["id"].as_str().unwrap_or_default().to_owned();
        let asked = Instant::now();
        connection.call(&format!("DELETE /v1/sandboxes/{id}"), "")?;
        self.delete.push(nanos(asked));
        Ok(())
    }

    fn add(&mut self, other: Self) {
        self.create.extend(other.create);
        self.share.extend(other.share);
        self.create_and_exec.extend(other.create_and_exec);
        self.delete.extend(other.delete);
        for (from, to) in [
            (other.origins, &mut self.origins),
            (other.failed, &mut self.failed),
        ] {
            for (name, count) in from {
                *to.entry(name).or_default() += count;
            }
        }
    }
}

/// Shares `count` among `threads` that work at once, each on a connection of its own.
fn at_once<T: Send>(
    socket: &Path,
    threads: usize,
    work: impl Fn(usize, &mut Connection) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let work = &work;
                scope.spawn(move || work(number, &mut Connection::open(socket)?))
            })
            .collect();
        let joined = running.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.collect()
    })
}

fn creates(socket: &Path, plan: &ApiPlan, concurrency: usize) -> io::Result<Creates> {
    let each = plan.count.div_ceil(concurrency);
    let taken = at_once(socket, concurrency, |_, connection| {
        let mut taken = Taken::default();
        for round in 0..each * 2 {
            taken.cycle(connection, &plan.image, round % 2 == 1)?;
            // A shell is made meanwhile, if there is time for that: what is measured says where it came from.
            if concurrency == 1 {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(taken)
    })?;
    let mut all = Taken::default();
    taken.into_iter().for_each(|taken| all.add(taken));
    Ok(Creates {
        concurrency,
        create: Percentiles::of(&all.create),
        share: Percentiles::of(&all.share),
        create_and_exec: Percentiles::of(&all.create_and_exec),
        delete: Percentiles::of(&all.delete),
        origins: all.origins,
        failed: all.failed,
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
fn gets(socket: &Path, image: &str) -> io::Result<f64> {
    let mut connection = Connection::open(socket)?;
    let (status, made) = connection.call("POST /v1/sandboxes", &json!({"image": image}).to_string())?;
    let id = made["id"].as_str().filter(|_| status == 201);
    let here = format!("/v1/sandboxes/{}", id.ok_or_else(|| malformed("no sandbox"))?);
    let started = Instant::now();
    let counts = at_once(socket, ASKERS, |_, connection| {
        let mut count = 0u64;
        while started.elapsed() < ASKING {
            match connection.call(&format!("GET {here}"), "")? {
                (200, _) => count += 1,
                (status, _) => return Err(malformed(&format!("{status} instead of 200"))),
            }
        }
        Ok(count)
    });
    let took = started.elapsed().as_secs_f64();
    connection.call(&format!("DELETE {here}"), "")?;
    Ok(counts?.iter().sum::<u64>() as f64 / took)
}

/// Whatever is below a directory, at most so deep.
fn below(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for entry in entries {
        // Not through links; what goes away meanwhile is not there.
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(below(&entry.path(), depth - 1));
        }
        all.push(entry.path());
    }
    all
}

/// Directories in those that the daemon names for its VMs.
fn groups() -> usize {
    let ours =
        |path: &PathBuf| path.is_dir() && path.parent().is_some_and(|parent| parent.ends_with("spore-vms"));
    below(Path::new("/sys/fs/cgroup"), GROUPS_DEPTH)
        .iter()
        .filter(|path| ours(path))
        .count()
}

fn holdings(pid: i32, data: &Path) -> io::Result<Holdings> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(proc.join("status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse().ok()).unwrap_or_default()
    };
    Ok(Holdings {
        descriptors: std::fs::read_dir(proc.join("fd"))?.count(),
        resident_kib: field("VmRSS:"),
        threads: field("Threads:"),
        files: below(data, usize::MAX).len(),
        groups: groups(),
    })
}

fn growth(socket: &Path, plan: &ApiPlan) -> io::Result<Growth> {
    let mut connection = Connection::open(socket)?;
    let peer = socket_peercred(connection.0.get_ref().as_fd())?;
    let pid = peer.pid.as_raw_nonzero().get();
    let mut taken = Taken::default();
    // What is made once is made before.
    for _ in 0..10 {
        taken.cycle(&mut connection, &plan.image, false)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let (_, host) = connection.call("GET /v1/host", "")?;
    let data = PathBuf::from(host["dataDir"].as_str().unwrap_or_default());
    let before = holdings(pid, &data)?;
    for _ in 0..plan.cycles {
        taken.cycle(&mut connection, &plan.image, false)?;
    }
    // The last are taken apart behind the answer.
    std::thread::sleep(Duration::from_secs(2));
    Ok(Growth {
        cycles: plan.cycles,
        before,
        after: holdings(pid, &data)?,
    })
}

/// Measures a daemon.
///
/// # Errors
/// When it does not answer, or does not have the image.
pub fn run(socket: &Path, plan: &ApiPlan, say: &mut dyn FnMut(&str)) -> Result<ApiReport, BenchError> {
    let failed = |source| BenchError::File {
        path: socket.to_owned(),
        source,
    };
    let host = HostReport::look();
    let mut all = Vec::new();
    for &concurrency in &plan.concurrency {
        say(&format!("{} creates, {concurrency} at once", plan.count));
        all.push(creates(socket, plan, concurrency).map_err(failed)?);
    }
    say("questions");
    let gets_per_second = gets(socket, &plan.image).map_err(failed)?;
    let growth = match plan.cycles {
        0 => None,
        cycles => {
            say(&format!("{cycles} creates and deletes"));
            Some(growth(socket, plan).map_err(failed)?)
        }
    };
    Ok(ApiReport {
        host: host.after(),
        creates: all,
        gets_per_second,
        growth,
    })
}
