//! What the store remembers of the steps of builds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::time::{Duration, SystemTime};

use common::{adopted, image, imported, store};
use spore_snapshot::Digest;
use spore_snapshot::store::{Keep, PruneSteps, StepEntry, Store};

fn key(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn step(layers: &[Digest]) -> StepEntry {
    StepEntry {
        layers: layers.to_vec(),
        label: "run make".to_owned(),
        took_ms: 1500,
    }
}

fn age(store: &Store, name: &str, by: Duration) {
    let path = store.root().join("steps").join(key(name).to_string());
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[test]
fn a_step_is_found_by_its_key_and_keeps_its_layers_from_the_collector() {
    let (dir, store) = store();
    let (base, layer) = (imported(dir.path(), &store), adopted(dir.path(), &store, 1));
    store.put_step(&key("a"), &step(&[base, layer])).unwrap();
    assert_eq!(store.find_step(&key("a")).unwrap(), Some(step(&[base, layer])));
    assert_eq!(store.find_step(&key("b")).unwrap(), None);
    assert!(store.gc(&Keep::default()).unwrap().layers.is_empty());
    assert!(store.step_bytes().unwrap() > 100_000);
    assert_eq!(store.prune_steps(PruneSteps::ALL).unwrap(), 1);
    assert_eq!(store.gc(&Keep::default()).unwrap().layers, [layer]);
}

#[test]
fn a_step_whose_layer_is_lost_or_whose_entry_is_damaged_is_none() {
    let (dir, store) = store();
    let layer = adopted(dir.path(), &store, 1);
    store.put_step(&key("a"), &step(&[layer])).unwrap();
    store.put_step(&key("b"), &step(&[layer])).unwrap();
    std::fs::write(store.root().join("steps").join(key("b").to_string()), "{").unwrap();
    assert_eq!(store.find_step(&key("b")).unwrap(), None);
    assert_eq!(store.list_steps().unwrap().len(), 1);
    std::fs::remove_file(store.root().join("layers").join(layer.to_string())).unwrap();
    assert_eq!(store.find_step(&key("a")).unwrap(), None);
}

#[test]
fn the_least_recently_used_go_first_and_finding_one_is_using_it() {
    let (dir, store) = store();
    let layers: Vec<_> = (1..=3).map(|byte| adopted(dir.path(), &store, byte)).collect();
    for (name, layer) in ["a", "b", "c"].iter().zip(&layers) {
        store.put_step(&key(name), &step(&[*layer])).unwrap();
    }
    age(&store, "a", Duration::from_secs(7200));
    age(&store, "b", Duration::from_secs(3600));
    age(&store, "c", Duration::from_secs(1800));
    store.find_step(&key("a")).unwrap().unwrap();
    let one = store.step_bytes().unwrap() / 3;
    let keep = |bytes| PruneSteps {
        unused_for: None,
        keep_bytes: Some(bytes),
    };
    assert_eq!(store.prune_steps(keep(3 * one)).unwrap(), 0);
    assert_eq!(store.prune_steps(keep(2 * one)).unwrap(), 1);
    assert_eq!(
        store.find_step(&key("b")).unwrap(),
        None,
        "the one used longest ago"
    );
    age(&store, "c", Duration::from_secs(1800));
    let old = PruneSteps {
        unused_for: Some(Duration::from_secs(900)),
        keep_bytes: None,
    };
    assert_eq!(store.prune_steps(old).unwrap(), 1);
    assert!(store.find_step(&key("a")).unwrap().is_some());
}

#[test]
fn pruning_takes_nothing_that_an_image_needs() {
    let (dir, store) = store();
    let (base, layer) = (imported(dir.path(), &store), adopted(dir.path(), &store, 1));
    store.put_step(&key("a"), &step(&[base, layer])).unwrap();
    let record = image("01234567", base, &[base, layer]);
    store.put_image(&record, None).unwrap();
    assert_eq!(store.step_bytes().unwrap(), 0, "it costs nothing to remember");
    store.prune_steps(PruneSteps::ALL).unwrap();
    assert!(store.gc(&Keep::default()).unwrap().layers.is_empty());
    assert!(store.layer(&layer).is_ok());
}
