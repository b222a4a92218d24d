//! The store when the power fails, or a sync or rename does, at every such call of everything that it can be asked.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use common::calls::{Kind, watched};
use common::power::{After, Synced};
use common::*;
use rustix::io::Errno;
use spore_snapshot::disk::{Durability, Overlay};
use spore_snapshot::store::{Keep, PruneSteps, StepEntry, Store, StoreError, Trust};
use spore_snapshot::{CheckpointId, Digest, ImageId};

/// What was made on the way.
#[derive(Clone, Default)]
struct Made {
    base: Option<Digest>,
    layer: Option<Digest>,
    checkpoint: Option<CheckpointId>,
}

type Step = fn(&Path, &Store, &mut Made) -> Result<(), StoreError>;

fn first() -> ImageId {
    "01234567".parse().unwrap()
}

/// Everything that changes a store, in an order in which each has something to do.
const STEPS: [(&str, Step); 12] = [
    ("open", |_, store, _| Store::open(store.root()).map(drop)),
    ("import a base", |dir, store, made| {
        let path = dir.join("base.img");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(DISK).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"ext4", 1080).unwrap();
        made.base = Some(store.import_raw(&path)?);
        Ok(())
    }),
    ("adopt a layer", |dir, store, made| {
        let path = dir.join("layer");
        // Of a try that failed.
        let _ = std::fs::remove_file(&path);
        let mut disk = Overlay::create(&path, DISK, Vec::new(), Durability::Durable)?;
        disk.write_at(&[3; 100_000], 1 << 20)?;
        disk.seal()?;
        made.layer = Some(store.adopt_layer(&path)?);
        Ok(())
    }),
    ("remember a step", |_, store, made| {
        let step = StepEntry {
            layers: vec![made.layer.unwrap()],
            label: "RUN it".into(),
            took_ms: 1,
        };
        store.put_step(&Digest::of(b"key"), &step)
    }),
    ("publish a checkpoint", |_, store, made| {
        let writer = store.begin_checkpoint()?;
        let mut memory = writer.memory(SPAN)?;
        memory.write(0, &[7; 8192])?;
        let (memory, state) = (memory.finish()?, writer.state(b"state")?);
        made.checkpoint = Some(writer.publish(meta(&[made.layer.unwrap()]), state, memory)?);
        Ok(())
    }),
    ("put an image", |_, store, made| {
        let record = image("01234567", made.base.unwrap(), &[made.layer.unwrap()]);
        store.put_image(&record, Some(&"name".parse().unwrap()))
    }),
    ("add a checkpoint to it", |_, store, made| {
        store
            .update_image(&first(), |record| {
                record.checkpoints = vec![entry(64, made.checkpoint.unwrap())];
            })
            .map(drop)
    }),
    ("put another under its name", |_, store, made| {
        let record = image("89abcdef", made.base.unwrap(), &[made.layer.unwrap()]);
        store.put_image(&record, Some(&"name".parse().unwrap()))
    }),
    ("delete the first", |_, store, _| {
        gone_is_done(store.delete_image(&first()))
    }),
    ("delete the checkpoint", |_, store, made| {
        gone_is_done(store.delete_checkpoint(&made.checkpoint.unwrap()))
    }),
    ("delete the other", |_, store, _| {
        gone_is_done(store.delete_image(&"89abcdef".parse().unwrap()))
    }),
    ("collect garbage", |_, store, _| {
        store.prune_steps(PruneSteps::ALL)?;
        let all = Keep {
            drop_bases: true,
            ..Keep::default()
        };
        store.gc(&all).map(drop)
    }),
];

/// A deletion that failed may have come so far that there is nothing left to delete.
fn gone_is_done(result: Result<(), StoreError>) -> Result<(), StoreError> {
    match result {
        Err(StoreError::NotFound { .. }) => Ok(()),
        result => result,
    }
}

/// What is in a store, a line each.
fn contents(store: &Store) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for image in store.list_images().unwrap() {
        found.insert(format!("image {}", image.record.id));
        for checkpoint in &image.record.checkpoints {
            found.insert(format!("image {} has {}", image.record.id, checkpoint.id));
        }
        for name in &image.names {
            found.insert(format!("{name} is {}", image.record.id));
        }
    }
    found.extend(
        store
            .list_checkpoints()
            .unwrap()
            .into_iter()
            .map(|(id, manifest)| {
                manifest.unwrap();
                format!("checkpoint {id}")
            }),
    );
    found.extend(
        store
            .list_layers()
            .unwrap()
            .iter()
            .map(|id| format!("layer {id}")),
    );
    found.extend(store.list_bases().unwrap().iter().map(|id| format!("base {id}")));
    found
}

/// That whatever is in a store is whole, and that there is nothing else.
fn is_consistent(store: &Store) {
    for image in store.list_images().unwrap() {
        for layer in [image.record.base_digest].iter().chain(&image.record.disk_layers) {
            store.layer_with(layer, Trust::Nothing).unwrap();
        }
    }
    for (id, _) in store.list_checkpoints().unwrap() {
        store.open_checkpoint_with(&id, Trust::Nothing).unwrap();
    }
    for digest in store
        .list_layers()
        .unwrap()
        .iter()
        .chain(&store.list_bases().unwrap())
    {
        store.layer_with(digest, Trust::Nothing).unwrap();
    }
    assert_eq!(entries(store, "tmp"), [""; 0]);
    assert_eq!(entries(store, "run"), [""; 0]);
}

/// That a store which was changing from one of two states to the other is in none but these, or between.
fn is_between(found: &BTreeSet<String>, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let lost: Vec<_> = before
        .intersection(after)
        .filter(|it| !found.contains(*it))
        .collect();
    let strange: Vec<_> = found
        .iter()
        .filter(|it| !before.contains(*it) && !after.contains(*it))
        .collect();
    assert!(
        lost.is_empty() && strange.is_empty(),
        "lost: {lost:?}; strange: {strange:?}"
    );
    // A name moves at once.
    let named = |of: &BTreeSet<String>| of.iter().filter(|it| it.starts_with("name is")).count();
    assert!(named(found) <= 1 && (named(found) == 1 || named(before) + named(after) < 2));
}

/// What a store has after each number of steps. Ids of checkpoints hold a time, so they are of one run.
fn states(dir: &Path, store: &Store, made: &Mutex<Made>, done: &Mutex<Vec<BTreeSet<String>>>) {
    for (_, step) in STEPS {
        let mut now = made.lock().unwrap().clone();
        step(dir, store, &mut now).unwrap();
        *made.lock().unwrap() = now;
        done.lock().unwrap().push(contents(store));
    }
}

#[test]
fn after_a_power_loss_at_any_call_the_store_has_what_it_said_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    std::fs::create_dir(&root).unwrap();
    let store = Store::attach(&root);
    let synced = Mutex::new(Synced::everything(&root));
    let (made, done) = (Mutex::new(Made::default()), Mutex::new(vec![BTreeSet::new()]));
    // Which states to look at: where, how, in which step, before which call.
    let mut crashes = Vec::new();
    let crash = |crashes: &mut Vec<_>, what: String| {
        let step = done.lock().unwrap().len() - 1;
        for after in After::EACH {
            let at = dir.path().join(format!("crash-{}-{after:?}", crashes.len()));
            synced.lock().unwrap().restore(&root, &at, after);
            crashes.push((at, after, step, what.clone()));
        }
    };
    watched(
        || states(dir.path(), &store, &made, &done),
        |call| {
            crash(&mut crashes, format!("{call:?}"));
            if let Some(path) = &call.path
                && path.starts_with(dir.path())
            {
                synced.lock().unwrap().sync(path);
            }
            Ok(())
        },
    );
    crash(&mut crashes, "nothing more".into());
    assert!(crashes.len() > 3 * STEPS.len(), "the calls are watched");
    let done = done.into_inner().unwrap();
    assert_eq!(done.len(), STEPS.len() + 1);
    assert!(done[STEPS.len()].is_empty(), "{:?}", done[STEPS.len()]);
    for (at, after, step, call) in crashes {
        let doing = STEPS.get(step).map_or("", |(name, _)| *name);
        println!("{doing}: power lost before {call}; {after:?}");
        let store = Store::open(&at).unwrap();
        is_consistent(&store);
        is_between(
            &contents(&store),
            &done[step],
            done.get(step + 1).unwrap_or(&done[step]),
        );
        // And it can be used.
        store.gc(&Keep::default()).unwrap();
        is_consistent(&store);
    }
}

#[test]
fn a_call_that_fails_harms_nothing_and_what_failed_can_be_done_again() {
    for (errno, which) in [(Errno::IO, Kind::Sync), (Errno::NOSPC, Kind::Name)] {
        for failing in 0.. {
            let (dir, store) = store();
            let (made, done) = (Mutex::new(Made::default()), Mutex::new(Vec::new()));
            let mut calls = 0;
            // Each step until one fails; then how it was, and that one and the others again.
            let failed = watched(
                || {
                    let mut failed = None;
                    for (name, step) in STEPS {
                        let mut now = made.lock().unwrap().clone();
                        if let Err(error) = step(dir.path(), &store, &mut now) {
                            assert!(failed.is_none(), "{name} fails twice: {error}");
                            println!("{name}: call {failing} fails: {error}");
                            failed = Some((done.lock().unwrap().len(), contents(&store)));
                            assert_eq!(entries(&store, "tmp"), [""; 0]);
                            step(dir.path(), &store, &mut now).unwrap();
                        }
                        *made.lock().unwrap() = now;
                        done.lock().unwrap().push(contents(&store));
                    }
                    failed
                },
                |call| {
                    if call.kind != which {
                        return Ok(());
                    }
                    calls += 1;
                    match calls - 1 == failing {
                        true => Err(errno),
                        false => Ok(()),
                    }
                },
            );
            is_consistent(&store);
            let done = done.into_inner().unwrap();
            assert!(done[STEPS.len() - 1].is_empty());
            if let Some((step, found)) = failed {
                let before = step.checked_sub(1).map(|step| done[step].clone());
                is_between(&found, &before.unwrap_or_default(), &done[step]);
            }
            if calls <= failing {
                assert!(failing > 10, "the calls are watched");
                break;
            }
        }
    }
}
