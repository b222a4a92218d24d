//! A daemon whose host runs out of something.

use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::left;

use super::Daemon;
use crate::image::{NAME, image};

/// Descriptors of a daemon that has few: for a template, a shell, and some sandboxes. A sandbox takes some five of them,
/// so each of these runs out at another step of making one.
const FEW: [[&str; 2]; 5] = [
    ["prlimit", "--nofile=60"],
    ["prlimit", "--nofile=61"],
    ["prlimit", "--nofile=62"],
    ["prlimit", "--nofile=63"],
    ["prlimit", "--nofile=64"],
];
/// More sandboxes than that.
const MANY: usize = 64;

pub fn descriptors_that_run_out_are_told_and_nothing_is_lost() {
    for few in &FEW {
        run_out_of(few);
    }
}

fn run_out_of(few: &'static [&'static str]) {
    let daemon = Daemon::through(image().copy(), few);
    let create = || daemon.http.json("POST /v1/sandboxes", &json!({"image": NAME}));
    let mut made: Vec<Value> = Vec::new();
    // Whoever asks again is told the same, and what would serve others is not given up for it. The first may have met
    // a shell that was just being made, which is the next one's.
    let mut refusals = 0;
    while refusals < 3 {
        let answer = create();
        if answer.status == 201 {
            refusals = 0;
            made.push(answer.json());
            assert!(made.len() < MANY, "they never run out");
            continue;
        }
        assert_eq!(
            answer.error(),
            (503, "insufficient_capacity".into()),
            "{}",
            answer.json()
        );
        assert_eq!(answer.json()["error"]["details"]["resource"], "descriptors");
        refusals += 1;
    }
    assert!(made.len() > 2);

    // What there is goes on, nothing is promised for what is not, and there is room again when some have gone. The room
    // of one may be taken by the next shell.
    left::soon("the host is shown", Duration::from_secs(30), || {
        let answer = daemon.http.call("GET /v1/host");
        if answer.status != 200 {
            // A shell that is just being tried has the last of them.
            assert_eq!(answer.json()["error"]["details"]["resource"], "descriptors");
            return false;
        }
        assert_eq!(answer.json()["sandboxes"], made.len());
        true
    });
    let place = |sandbox: &Value| format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let delete = |sandbox: &Value| format!("DELETE {}", place(sandbox));
    for gone in made.split_off(made.len() - 2) {
        daemon.http.call(&delete(&gone)).expect(204);
    }
    // They are taken apart after the answer.
    left::soon("a command can be run again", Duration::from_secs(30), || {
        let exec = format!("POST {}/exec", place(&made[0]));
        let answer = daemon.http.json(&exec, &json!({"cmd": ["echo", "here"]}));
        if answer.status != 200 {
            assert_eq!(answer.json()["error"]["details"]["resource"], "descriptors");
            return false;
        }
        assert_eq!(answer.json()["stdout"], "here\n");
        true
    });
    left::soon("there is room again", Duration::from_secs(30), || {
        let answer = create();
        let is_made = answer.status == 201;
        made.extend(is_made.then(|| answer.json()));
        is_made
    });
    for sandbox in &made {
        daemon.http.call(&delete(sandbox)).expect(204);
    }
    let tmp = daemon.root().join("tmp");
    left::soon(
        "nothing is left of what was refused",
        Duration::from_secs(30),
        || std::fs::read_dir(&tmp).unwrap().next().is_none(),
    );
}
