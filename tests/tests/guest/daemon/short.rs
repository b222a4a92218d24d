//! A daemon whose host runs out of something in the middle of a call, at each step of it in turn.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::http::Answer;
use spore_tests::left;
use spore_tests::shortage::{SHORTAGES, Shortage, Shortages, watch};

use super::{Daemon, entries};
use crate::image::{NAME, image};

/// Serves on a host that runs out of things.
pub fn serve(root: &Path) {
    watch(root);
    super::serve(root);
}

/// What is done while something is short, and what undoes it.
struct Work<'a> {
    name: &'static str,
    lacks: &'static [Shortage],
    work: Box<dyn Fn() -> Answer + 'a>,
    undo: Box<dyn Fn(&Value) + 'a>,
}

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

pub fn whatever_the_host_lacks_is_told_and_nothing_is_lost() {
    let daemon = Daemon::start_as("short daemon", image().copy());
    let http = &daemon.http;
    let stays = daemon.create(json!({}));
    daemon.sh(&stays, "echo here >/tmp/is");
    let here = format!("/v1/sandboxes/{}", id(&stays));
    let delete = |what: &str, id: &str| http.call(&format!("DELETE /v1/{what}/{id}"));

    let all = |made: &Value| {
        for sandbox in made["sandboxes"].as_array().unwrap() {
            delete("sandboxes", id(sandbox)).expect(204);
        }
    };
    let works = [
        Work {
            name: "create",
            lacks: &SHORTAGES,
            work: Box::new(|| http.json("POST /v1/sandboxes", &json!({"image": NAME}))),
            undo: Box::new(|made| drop(delete("sandboxes", id(made)).expect(204))),
        },
        Work {
            name: "create many",
            lacks: &[Shortage::Descriptors, Shortage::Processes],
            work: Box::new(|| http.json("POST /v1/sandboxes", &json!({"image": NAME, "count": 2}))),
            undo: Box::new(all),
        },
        Work {
            name: "fork",
            lacks: &SHORTAGES,
            work: Box::new(|| http.json(&format!("POST {here}/fork"), &json!({"count": 1}))),
            undo: Box::new(all),
        },
        Work {
            name: "checkpoint",
            lacks: &SHORTAGES,
            work: Box::new(|| http.json(&format!("POST {here}/checkpoints"), &json!({}))),
            undo: Box::new(|made| drop(delete("checkpoints", id(made)).expect(204))),
        },
        Work {
            name: "upload",
            lacks: &SHORTAGES,
            work: Box::new(|| http.send(&format!("PUT {here}/files?path=/tmp/file"), &[], b"x")),
            undo: Box::new(|_| {}),
        },
        Work {
            name: "exec",
            lacks: &SHORTAGES,
            work: Box::new(|| http.json(&format!("POST {here}/exec"), &json!({"cmd": ["true"]}))),
            undo: Box::new(|_| {}),
        },
        Work {
            name: "image",
            lacks: &SHORTAGES,
            work: Box::new(|| http.call(&format!("GET /v1/images/{NAME}"))),
            undo: Box::new(|_| {}),
        },
    ];
    let shortages = Shortages::of(daemon.root());
    for work in &works {
        for shortage in work.lacks {
            let mut but = 0;
            loop {
                shortages.begin(*shortage, but);
                let answer = (work.work)();
                let failed = shortages.end();
                let what = format!("{} without {shortage:?} but for {but}", work.name);
                if answer.status < 300 {
                    (work.undo)(&answer.json());
                } else {
                    let expected = (503, "insufficient_capacity".into());
                    assert_eq!(answer.error(), expected, "{what}: {}", answer.json());
                    let resource = answer.json()["error"]["details"]["resource"].clone();
                    // No memory for a thread is told as no more of them (pthread_create(3)).
                    let is_thread = *shortage == Shortage::Memory && resource == "processes";
                    assert!(
                        is_thread || resource == shortage.to_string(),
                        "{what}: {}",
                        answer.json()
                    );
                    assert!(failed > 0, "{what}: {}", answer.json());
                }
                if failed == 0 {
                    break;
                }
                but += 1;
            }
            println!("{} without {shortage:?}: {but} steps", work.name);
            check(&daemon, &stays);
        }
    }
    assert_eq!(daemon.sh(&stays, "cat /tmp/is"), "here");

    // What is to go goes, if not at once then when it is asked again.
    for shortage in SHORTAGES {
        for but in 0..8 {
            let goes = daemon.create(json!({}));
            shortages.begin(shortage, but);
            let answer = delete("sandboxes", id(&goes));
            shortages.end();
            if answer.status != 204 {
                assert_eq!(
                    answer.error(),
                    (503, "insufficient_capacity".into()),
                    "{}",
                    answer.json()
                );
                delete("sandboxes", id(&goes)).expect(204);
            }
        }
        check(&daemon, &stays);
    }
    delete("sandboxes", id(&stays)).expect(204);
}

/// Only what there should be is there.
fn check(daemon: &Daemon, stays: &Value) {
    let host = || daemon.http.call("GET /v1/host").expect(200);
    assert_eq!(host()["sandboxes"], 1);
    // What a sandbox was promised is free a moment after it was deleted, if somebody was just looking at it.
    left::soon("all but one promise is free", Duration::from_secs(30), || {
        host()["memory"]["committedMB"] == stays["memory"]["grantedMB"]
    });
    let listed = daemon.http.call("GET /v1/sandboxes").expect(200);
    assert_eq!(listed["sandboxes"].as_array().unwrap().len(), 1);
    left::soon_nothing(Duration::from_secs(30), || {
        // A shell and what stays; templates have no directory.
        let runs = entries(&daemon.root().join("run"));
        let mut left = entries(&daemon.root().join("tmp"));
        if runs.len() > 2 {
            left.extend(runs);
        }
        left
    });
}
