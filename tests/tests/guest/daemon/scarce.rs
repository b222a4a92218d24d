//! A daemon whose host runs out of something.

use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::left;

use super::Daemon;
use crate::image::{NAME, image};

/// Descriptors of a daemon that has few: for a template, a shell, and some sandboxes.
const FEW: &str = "--nofile=64:64";
/// More sandboxes than that.
const MANY: usize = 64;

pub fn descriptors_that_run_out_are_told_and_nothing_is_lost() {
    let daemon = Daemon::through(image().copy(), &["prlimit", FEW]);
    let create = || daemon.http.json("POST /v1/sandboxes", &json!({"image": NAME}));
    let mut made: Vec<Value> = Vec::new();
    let refused = loop {
        let answer = create();
        if answer.status != 201 {
            break answer;
        }
        made.push(answer.json());
        assert!(made.len() < MANY, "they never run out");
    };
    assert_eq!(
        refused.error(),
        (503, "insufficient_capacity".into()),
        "{}",
        refused.json()
    );
    assert_eq!(refused.json()["error"]["details"]["resource"], "descriptors");
    assert!(made.len() > 1);

    // What there is goes on, nothing is promised for what is not, and there is room again when one has gone.
    let host = daemon.http.call("GET /v1/host").expect(200);
    assert_eq!(host["sandboxes"], made.len());
    let gone = made.pop().unwrap();
    let delete = |sandbox: &Value| format!("DELETE /v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    daemon.http.call(&delete(&gone)).expect(204);
    assert_eq!(daemon.sh(&made[0], "echo here"), "here");
    left::soon("there is room again", Duration::from_secs(30), || {
        let answer = create();
        let is_made = answer.status == 201;
        made.extend(is_made.then(|| answer.json()));
        is_made
    });
    for sandbox in &made {
        daemon.http.call(&delete(sandbox)).expect(204);
    }
    let tmp = std::fs::read_dir(daemon.root().join("tmp")).unwrap().count();
    assert_eq!(tmp, 0);
}
