//! Streams of bytes while a guest is stopped, saved and copied.

use std::thread::JoinHandle;
use std::time::Duration;

use spore_protocol::{ExecOutput, ExecRequest};
use spore_tests::left;
use spore_tests::sandbox::{LIMIT, Sandbox};

use super::{is_whole, plan};
use crate::image::image;

fn input() -> Vec<u8> {
    let words = (0..100_000u32).map(|i| i.wrapping_mul(2_654_435_761));
    words.flat_map(u32::to_le_bytes).collect()
}

/// Sends bytes through a guest and back, over a connection of its own.
fn transfer(sandbox: &mut Sandbox) -> JoinHandle<ExecOutput> {
    let mut agent = sandbox.another_agent();
    let request = ExecRequest::new(["tee", "/run/passed"]);
    let transfer = std::thread::spawn(move || agent.exec_collect(&request, &input()).unwrap());
    left::soon("nothing passes", LIMIT, || {
        sandbox
            .get("/run/passed")
            .is_some_and(|passed| !passed.is_empty())
    });
    transfer
}

/// That all of them came back.
fn arrived(transfer: JoinHandle<ExecOutput>) {
    let output = transfer.join().unwrap();
    assert!(output.outcome.status.success(), "{:?}", output.outcome);
    let input = input();
    assert_eq!(output.stdout.len(), input.len());
    let differ = |&at: &usize| output.stdout[at] != input[at];
    let wrong: Vec<usize> = (0..input.len()).filter(differ).collect();
    assert!(
        wrong.is_empty(),
        "{} bytes are wrong, the first at {}, the last at {}",
        wrong.len(),
        wrong[0],
        wrong[wrong.len() - 1]
    );
}

/// That bytes pass a guest both ways.
fn passes(sandbox: &mut Sandbox) {
    let transfer = transfer(sandbox);
    arrived(transfer);
    is_whole(sandbox);
}

pub fn a_transfer_goes_on_through_pause_and_resume() {
    let mut fork = image().fork();
    let transfer = transfer(&mut fork);
    for _ in 0..5 {
        fork.vm().pause().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        fork.vm().resume().unwrap();
    }
    arrived(transfer);
    // What a client sends while it stands still arrives when it goes on.
    let mut agent = fork.another_agent();
    fork.vm().pause().unwrap();
    let asked = std::thread::spawn(move || agent.ping().unwrap());
    std::thread::sleep(Duration::from_millis(200));
    fork.vm().resume().unwrap();
    asked.join().unwrap();
    passes(&mut fork);
}

pub fn a_transfer_in_flight_at_a_checkpoint_loses_nothing() {
    let store = image().store();
    let mut parent = image().fork();
    let transfer = transfer(&mut parent);
    let id = parent.checkpoint(store, plan(store)).unwrap();
    arrived(transfer);
    // In its forks the stream is over, and others work both ways.
    for _ in 0..2 {
        passes(&mut Sandbox::fork(store, &id));
    }
    passes(&mut parent);
    store.delete_checkpoint(&id).unwrap();
}

pub fn a_transfer_in_flight_at_a_live_fork_loses_nothing() {
    let store = image().store();
    let mut parent = image().fork();
    let transfer = transfer(&mut parent);
    let mut forks = parent.live_fork(store, 2);
    arrived(transfer);
    for fork in &mut forks {
        passes(fork);
    }
    passes(&mut parent);
}
