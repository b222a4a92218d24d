//! A long random walk over everything an engine can be asked, held against a model.
//!
//! The model is what each sandbox should have: a program that holds memory of a known digest, files in memory and on
//! disk, a size, a clock that is not before its parent's, and ids that nobody had before. The walk is decided by a
//! seed alone; `SPORE_SOAK_SEED` repeats one, `SPORE_SOAK_SECONDS` says how long it goes on.

use std::collections::{BTreeMap, BTreeSet};

use spore_snapshot::CheckpointId;
use spore_tests::sandbox::{LIMIT, Sandbox};
use spore_tests::soak::{Random, Soak};
use spore_tests::{hold, left};
use spore_vmm::pool::{Budget, Pool};

use super::{anybody, nothing_is_left, plan, sandbox};
use crate::image::{Copy, FLOOR_MB, image};
use crate::restored::file_system_of_is_clean;

/// Sandboxes that live at once.
const LIVING: usize = 6;
/// Checkpoints beside the image's.
const CHECKPOINTS: usize = 4;
/// What one program holds, in MiB.
const HELD_MB: u32 = 8;

/// What a sandbox should have.
#[derive(Clone, Default)]
struct Model {
    /// FIFO and seed of each program that holds memory.
    held: Vec<(String, u64)>,
    files: BTreeMap<String, u64>,
    more_mb: u32,
    clock_ns: u64,
}

/// The bytes of a file.
fn content(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = 1 + random.below(3000);
    (0..words).flat_map(|_| random.draw().to_le_bytes()).collect()
}

struct Living {
    sandbox: Sandbox,
    model: Model,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Fork,
    LiveFork,
    Checkpoint,
    DeleteCheckpoint,
    Kill,
    Destroy,
    Resize,
    Write,
    Hold,
    Pause,
    Verify,
    KillTemplate,
}

struct Walk {
    copy: Copy,
    pool: Pool,
    random: Random,
    living: Vec<Living>,
    checkpoints: Vec<(CheckpointId, Model)>,
    /// Machine ids of all there ever were.
    ids: BTreeSet<Vec<u8>>,
    digests: BTreeMap<u64, String>,
    trail: Vec<String>,
    counts: BTreeMap<String, u32>,
}

impl Drop for Walk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = self.trail.len().saturating_sub(30);
            eprintln!("its last acts: {:#?}", &self.trail[last..]);
        }
    }
}

pub fn a_random_walk_never_leaves_what_a_model_says() {
    let copy = image().copy();
    // Now, since the image may just have been built.
    let soak = Soak::begin("walk");
    let budget = Budget {
        templates: 2,
        shells_per_template: 1,
        shells: 2,
    };
    let mut walk = Walk {
        pool: Pool::new(copy.store().clone(), budget).unwrap(),
        random: soak.random(0),
        living: Vec::new(),
        checkpoints: vec![(image().checkpoint(), Model::default())],
        ids: BTreeSet::new(),
        digests: BTreeMap::new(),
        trail: Vec::new(),
        counts: BTreeMap::new(),
        copy,
    };
    let mut acts = 0;
    while soak.goes_on() {
        walk.step();
        acts += 1;
    }
    for index in 0..walk.living.len() {
        walk.verify(index);
    }
    eprintln!("walk: {acts} acts in {:?}: {:?}", soak.elapsed(), walk.counts);
    walk.end();
}

impl Walk {
    fn did(&mut self, what: String) {
        self.trail.push(what);
    }

    fn step(&mut self) {
        let act = self.random.pick(&[
            (Act::Fork, 16),
            (Act::LiveFork, 12),
            (Act::Checkpoint, 6),
            (Act::DeleteCheckpoint, 3),
            (Act::Kill, 6),
            (Act::Destroy, 6),
            (Act::Resize, 10),
            (Act::Write, 24),
            (Act::Hold, 6),
            (Act::Pause, 4),
            (Act::Verify, 16),
            (Act::KillTemplate, 2),
        ]);
        // What is drawn does not depend on what is possible, so that acts are the same however long they take.
        let (which, amount) = (self.random.draw(), self.random.draw());
        let living = self.living.len();
        let at = |length: usize| usize::try_from(which % length.max(1) as u64).unwrap();
        let count = usize::try_from(amount % 3).unwrap() + 1;
        match act {
            Act::Fork if living < LIVING => self.fork(at(self.checkpoints.len())),
            Act::LiveFork if living > 0 && living + count <= LIVING => self.live_fork(at(living), count),
            Act::Checkpoint if living > 0 && self.checkpoints.len() <= CHECKPOINTS => {
                self.checkpoint(at(living))
            }
            Act::DeleteCheckpoint if self.checkpoints.len() > 1 => {
                let index = 1 + at(self.checkpoints.len() - 1);
                self.did(format!("delete checkpoint {index}"));
                let (id, _) = self.checkpoints.remove(index);
                self.copy.store().delete_checkpoint(&id).unwrap();
            }
            Act::Kill | Act::Destroy if living > 1 => {
                self.did(format!("{act:?} {}", at(living)));
                let gone = self.living.swap_remove(at(living)).sandbox;
                match act {
                    Act::Kill => left::kill(gone.pid()),
                    _ => self.pool.destroy(gone.into_guest()),
                }
            }
            Act::Resize if living > 0 => self.resize(
                at(living),
                [0, 64, 128, 192][usize::try_from(amount % 4).unwrap()],
            ),
            Act::Write if living > 0 => self.write(at(living), amount),
            Act::Hold if living > 0 && self.living[at(living)].model.held.len() < 4 => {
                self.hold(at(living), amount % 5)
            }
            Act::Pause if living > 0 => {
                self.did(format!("pause {}", at(living)));
                let vm = self.living[at(living)].sandbox.parts().0.vm();
                vm.pause().unwrap();
                vm.resume().unwrap();
            }
            Act::Verify if living > 0 => {
                self.did(format!("verify {}", at(living)));
                self.verify(at(living));
            }
            Act::KillTemplate => {
                let (id, _) = self.checkpoints[at(self.checkpoints.len())];
                if let Some(pid) = self.pool.template_pid(&id) {
                    self.did(format!("kill template {pid}"));
                    // The pool may have dropped it meanwhile: its refill thread keeps to the budget.
                    left::kill_if_there(pid);
                }
            }
            _ => return,
        }
        *self.counts.entry(format!("{act:?}")).or_default() += 1;
    }

    /// Takes in a fork, which must be somebody new.
    fn take_in(&mut self, mut sandbox: Sandbox, model: Model) {
        assert!(
            self.ids.insert(sandbox.get("/etc/machine-id").unwrap()),
            "somebody had this id before"
        );
        assert_eq!(
            sandbox.get("/proc/sys/kernel/hostname").unwrap().trim_ascii(),
            sandbox.id().as_bytes()
        );
        self.living.push(Living { sandbox, model });
        let last = self.living.len() - 1;
        self.clock(last);
    }

    /// That no clock went back, in a sandbox or on the way to it.
    fn clock(&mut self, index: usize) {
        let living = &mut self.living[index];
        let now = living.sandbox.agent.ping().unwrap().monotonic_ns;
        assert!(
            now >= living.model.clock_ns,
            "{now} after {}",
            living.model.clock_ns
        );
        living.model.clock_ns = now;
    }

    fn fork(&mut self, from: usize) {
        self.did(format!("fork checkpoint {from}"));
        let (id, model) = self.checkpoints[from].clone();
        let forked = self.pool.fork(&id, anybody()).unwrap();
        self.take_in(sandbox(forked), model);
    }

    fn live_fork(&mut self, of: usize, count: usize) {
        self.did(format!("live fork {of}, {count} times"));
        self.clock(of);
        let model = self.living[of].model.clone();
        let store = self.copy.store().clone();
        for fork in self.living[of].sandbox.live_fork(&store, count) {
            self.take_in(fork, model.clone());
        }
        self.clock(of);
    }

    fn checkpoint(&mut self, of: usize) {
        self.did(format!("checkpoint {of}"));
        self.clock(of);
        let store = self.copy.store();
        let id = self.living[of].sandbox.checkpoint(store, plan(store)).unwrap();
        let model = self.living[of].model.clone();
        self.checkpoints.push((id, model));
        self.clock(of);
    }

    fn resize(&mut self, index: usize, more_mb: u32) {
        self.did(format!("resize {index} to {more_mb} more"));
        let living = &mut self.living[index];
        let granted = living.sandbox.resize(FLOOR_MB + more_mb);
        assert_eq!(granted.granted_mb, FLOOR_MB + more_mb);
        living.model.more_mb = more_mb;
    }

    fn write(&mut self, index: usize, amount: u64) {
        let place = if amount.is_multiple_of(2) { "/run" } else { "/var" };
        let path = format!("{place}/file-{}", amount / 2 % 8);
        let seed = amount >> 8;
        self.did(format!("write {path} in {index}"));
        let living = &mut self.living[index];
        living.sandbox.put(&path, content(seed));
        if amount >> 4 & 3 == 0 {
            living.sandbox.agent.sync().unwrap();
        }
        living.model.files.insert(path, seed);
    }

    fn hold(&mut self, index: usize, seed: u64) {
        let living = &mut self.living[index];
        let fifo = format!("/run/hold-{}", living.model.held.len());
        living.sandbox.sh(&hold::start(HELD_MB, seed + 1, &fifo));
        living.model.held.push((fifo, seed + 1));
        self.did(format!("hold in {index}"));
    }

    fn verify(&mut self, index: usize) {
        self.clock(index);
        let Living { sandbox, model } = &mut self.living[index];
        for (path, seed) in &model.files {
            let found = sandbox.get(path).unwrap_or_else(|| panic!("{path} is not there"));
            assert!(
                found == content(*seed),
                "{path} of {index} is not as it was written"
            );
        }
        for place in ["/run", "/var"] {
            let entries = sandbox.agent.list_dir(place).unwrap().into_iter();
            let files = entries.filter(|entry| entry.name.starts_with("file-"));
            let names: BTreeSet<_> = files.map(|entry| format!("{place}/{}", entry.name)).collect();
            let expected = model
                .files
                .keys()
                .filter(|path| path.starts_with(place))
                .cloned()
                .collect();
            assert_eq!(names, expected, "files of {index}");
        }
        for (fifo, seed) in &model.held {
            let expected = self
                .digests
                .entry(*seed)
                .or_insert_with(|| hold::expected(HELD_MB, *seed));
            assert_eq!(
                &sandbox.sh(&hold::ask(fifo)),
                expected,
                "memory behind {fifo} of {index}"
            );
        }
        let stats = sandbox.vm().stats().unwrap();
        assert_eq!(stats.plugged_bytes, u64::from(model.more_mb) << 20);
        assert_eq!(stats.requested_bytes, stats.plugged_bytes);
        // The driver gives a block back first and has the kernel forget it then.
        left::soon("every block is online", LIMIT, || {
            let blocks = sandbox.agent.memory(true).unwrap().blocks.unwrap();
            blocks.online == blocks.present
        });
        let complaints = "dmesg | grep -iE 'ext4.*(error|warning)|i/o error|corrupt|bug:|oops' || true";
        assert_eq!(sandbox.sh(complaints), "");
    }

    /// The file system of the last is clean, and nothing is left of all.
    fn end(mut self) {
        let last = self.living.pop();
        self.living.clear();
        if let Some(last) = last {
            file_system_of_is_clean(self.copy.store(), last.sandbox);
        }
        let root = self.copy.store().root().to_owned();
        let none = Pool::new(self.copy.store().clone(), Budget::default()).unwrap();
        drop(std::mem::replace(&mut self.pool, none));
        nothing_is_left(&root);
    }
}
