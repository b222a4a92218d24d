//! What `spore` does with the daemon where there is one, and by itself where there is none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use fake::{Fake, NOT_FOUND, err, out, spore};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const IMAGE: &str = concat!(
    r#"{"id":"00112233445566","names":["hello"],"contentHash":"","baseDigest":"","createdAt":1,"#,
    r#""sizeBytes":1048576,"builderMemoryMB":2048,"checkpoints":[{"id":"c","floorMB":1024,"cpus":1}]}"#
);
const SHOWN: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    r#"{"id":"00112233445566","names":["hello"],"contentHash":"","baseDigest":"","createdAt":1,"#,
    r#""sizeBytes":1048576,"builderMemoryMB":2048,"checkpoints":[{"id":"c","floorMB":1024,"cpus":1}]}"#
);
const LISTED: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    r#"{"images":[{"id":"00112233445566","names":["hello"],"contentHash":"","baseDigest":"","createdAt":1,"#,
    r#""sizeBytes":1048576,"builderMemoryMB":2048,"checkpoints":[{"id":"c","floorMB":1024,"cpus":1}]}]}"#
);
const GONE: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const ELSEWHERE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"dataDir\":\"/elsewhere\"}";
const MADE: &str = concat!(
    "HTTP/1.1 201 Created\r\nconnection: close\r\n\r\n",
    r#"{"id":"sb1","state":"running","image":"00112233445566","origin":"shell","#,
    r#""memory":{"floorMB":1024,"requestedMB":2048,"grantedMB":2048,"maxMB":16384},"cpus":1,"#,
    r#""network":{"policy":"none"},"metadata":{},"createdAt":1,"lastUsedAt":1,"#,
    r#""times":{"releasedUs":1000,"wokeUs":2000,"readyUs":3000}}"#
);

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A manifest that is right, in a file.
fn manifest(fake: &Fake) -> Value {
    let manifest = json!({"base": "busybox", "name": "hello", "steps": [], "runtimeMemoryMB": 512});
    std::fs::write(fake.dir.path().join("hello.json"), manifest.to_string()).unwrap();
    manifest
}

#[test]
fn images_are_the_daemons_and_look_as_they_do_without_it() {
    let fake = Fake::new(&[("GET /v1/images", LISTED), ("GET /v1/images/hello", SHOWN)]);
    let table = out(&fake.spore(&["images"]));
    let row = table
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect::<Vec<_>>();
    assert_eq!(
        row[..5],
        ["hello", "001122334455", "1024", "1.0", "MiB"],
        "{table}"
    );
    assert_eq!(
        json(&out(&fake.spore(&["images", "--json"]))),
        json!({"images": [json(IMAGE)]})
    );
    assert_eq!(json(&out(&fake.spore(&["image", "show", "hello"]))), json(IMAGE));
}

#[test]
fn images_are_removed_when_all_of_them_were_found() {
    let fake = Fake::new(&[
        ("GET /v1/images/hello", SHOWN),
        ("GET /v1/images/0011", SHOWN),
        ("GET /v1/images/nope", NOT_FOUND),
        ("DELETE /v1/images/00112233445566", GONE),
    ]);
    let refused = fake.spore(&["image", "rm", "hello", "nope"]);
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(fake.calls(), ["GET /v1/images/hello", "GET /v1/images/nope"]);
    let removed = fake.spore(&["image", "rm", "hello", "0011", "--json"]);
    assert_eq!(json(&out(&removed)), json!({"removed": ["00112233445566"]}));
    assert_eq!(fake.calls()[2..], ["DELETE /v1/images/00112233445566"]);
}

#[test]
fn where_nobody_listens_spore_works_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let alone = |words: &[&str]| spore(&dir.path().join("none"), dir.path(), words);
    assert_eq!(json(&out(&alone(&["images", "--json"]))), json!({"images": []}));
    assert!(dir.path().join("home/spore").is_dir(), "the data directory");
    for words in [&["image", "show", "nope"][..], &["run", "nope", "--", "true"]] {
        let tried = alone(words);
        assert_eq!(tried.status.code(), Some(2), "{words:?}: {}", err(&tried));
        assert!(err(&tried).contains("nope"), "{}", err(&tried));
    }
}

#[test]
fn the_daemon_of_another_data_directory_is_not_asked() {
    let fake = Fake::new(&[("GET /v1/host", ELSEWHERE), ("GET /v1/images", LISTED)]);
    let here = fake.spore(&["images", "--json", "--data", "here"]);
    assert_eq!(json(&out(&here)), json!({"images": []}), "{}", err(&here));
    assert_eq!(fake.calls(), ["GET /v1/host"]);
}

#[test]
fn the_daemon_of_the_data_directory_is_asked_by_whatever_path() {
    let elsewhere = std::path::Path::new("/elsewhere");
    assert!(!elsewhere.exists(), "a directory of this test");
    let fake = Fake::new(&[("GET /v1/host", ELSEWHERE), ("GET /v1/images", LISTED)]);
    let there = fake.spore(&["images", "--json", "--data", "/elsewhere"]);
    assert_eq!(json(&out(&there))["images"][0]["names"], json!(["hello"]));
    assert_eq!(fake.calls(), ["GET /v1/host", "GET /v1/images"]);
}

#[test]
fn nothing_is_done_behind_the_back_of_a_daemon_that_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    // Connecting to it fails for root as well.
    let _other = UnixDatagram::bind(&socket).unwrap();
    let tried = spore(&socket, dir.path(), &["images"]);
    assert_eq!(tried.status.code(), Some(1));
    let said = err(&tried);
    assert!(
        said.contains(socket.to_str().unwrap()) && said.contains("--socket"),
        "{said}"
    );
    assert!(!dir.path().join("home").exists());
    let run = spore(&socket, dir.path(), &["run", "hello", "--", "true"]);
    assert_eq!(run.status.code(), Some(125));
}

const BUILT: &str = concat!(
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
    "event: build\ndata: {\"type\":\"build\",\"buildId\":\"b1\"}\n\n: alive\n\n",
    "event: phase\ndata: {\"type\":\"phase\",\"phase\":\"booting\",\"message\":\"booting with 7 MiB\"}\n\n",
    "event: stepStarted\ndata: {\"type\":\"stepStarted\",\"step\":0,\"of\":2,\"label\":\"run a\"}\n\n",
    "event: output\ndata: {\"type\":\"output\",\"text\":\"one\\ntw\"}\n\n",
    "event: news\ndata: {\"type\":\"news\"}\n\n",
    "event: output\ndata: {\"type\":\"output\",\"text\":\"o\\n\"}\n\n",
    "event: stepDone\ndata: {\"type\":\"stepDone\",\"step\":0,\"tookMs\":1500}\n\n",
    "event: image\ndata: {\"type\":\"image\",\"image\":",
    r#"{"id":"00112233445566","names":["hello"],"contentHash":"","baseDigest":"","createdAt":1,"#,
    r#""sizeBytes":1048576,"builderMemoryMB":2048,"checkpoints":[{"id":"c","floorMB":1024,"cpus":1}]}"#,
    "}\n\n",
);

#[test]
fn a_build_is_the_daemons_and_its_progress_is_shown() {
    let fake = Fake::new(&[("POST /v1/images", BUILT)]);
    let asked = manifest(&fake);
    let words = [
        "build",
        "hello.json",
        "--no-cache",
        "--step-timeout",
        "60",
        "--network",
        "none",
    ];
    let built = fake.spore(&words);
    let said = err(&built);
    assert!(built.status.success(), "{said}");
    for line in [
        "booting with 7 MiB",
        "step 1/2: run a",
        "  | one",
        "  | two",
        "step 1 done in 1.5 s",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
    assert!(out(&built).starts_with("hello: built in "), "{}", out(&built));
    let body = json(&fake.seen.recv().unwrap().body);
    let expected = json!({"manifest": asked, "noCache": true, "stepTimeoutSeconds": 60, "network": "none"});
    assert_eq!(body, expected);
    let for_program = fake.spore(&[
        "build",
        "hello.json",
        "--json",
        "--network",
        "example.com:443,198.51.100.0/24",
    ]);
    assert_eq!(json(&out(&for_program)), json(IMAGE));
    let body = json(&fake.seen.recv().unwrap().body);
    assert_eq!(
        body["network"],
        json!({"allow": ["example.com:443", "198.51.100.0/24"]})
    );
}

#[test]
fn a_manifest_comes_from_standard_input_as_well() {
    let fake = Fake::new(&[("POST /v1/images", BUILT)]);
    let asked = manifest(&fake);
    let file = std::fs::File::open(fake.dir.path().join("hello.json")).unwrap();
    let built = fake.command(&["build", "-"]).stdin(file).output().unwrap();
    assert!(built.status.success(), "{}", err(&built));
    assert_eq!(json(&fake.seen.recv().unwrap().body)["manifest"], asked);
}

#[test]
fn a_manifest_that_is_wrong_is_refused_with_its_file_before_anybody_is_asked() {
    let fake = Fake::new(&[]);
    std::fs::write(fake.dir.path().join("bad.json"), r#"{"base": "busybox"}"#).unwrap();
    let refused = fake.spore(&["build", "bad.json"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("bad.json"), "{}", err(&refused));
    assert_eq!(fake.calls(), [""; 0]);
}

#[test]
fn a_build_that_fails_is_told_as_one_that_fails_here() {
    let fake = Fake::new(&[(
        "POST /v1/images",
        concat!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"code\":\"build_failed\",\"message\":\"step 1: no\"}}\n\n",
        ),
    )]);
    manifest(&fake);
    let failed = fake.spore(&["build", "hello.json"]);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(err(&failed), "spore: step 1: no\n");
    let failed = fake.spore(&["build", "hello.json", "--json"]);
    assert_eq!(json(&err(&failed))["error"]["code"], "build_failed");
}

#[test]
fn a_build_that_breaks_off_is_no_success() {
    let fake = Fake::new(&[(
        "POST /v1/images",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: alive\n\n",
    )]);
    manifest(&fake);
    let failed = fake.spore(&["build", "hello.json"]);
    assert_eq!(
        (failed.status.code(), err(&failed).contains("broke off")),
        (Some(1), true)
    );
}

/// Ends `spore` when the daemon has been asked.
fn interrupted(fake: &Fake, words: &[&str], at: &str, signal: Signal) -> std::process::Output {
    let child = fake
        .command(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while fake.seen.recv_timeout(Duration::from_secs(60)).unwrap().call != at {}
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_hangs_up_on_a_build() {
    let fake = Fake::new(&[(
        "POST /v1/images",
        "HTTP/1.1 200 OK\r\nx-stays: 1\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: alive\n\n",
    )]);
    manifest(&fake);
    let cancelled = interrupted(&fake, &["build", "hello.json"], "POST /v1/images", Signal::INT);
    assert_eq!(cancelled.status.code(), Some(130), "{}", err(&cancelled));
    assert_eq!(
        fake.seen.recv_timeout(Duration::from_secs(60)).unwrap().call,
        "hung up"
    );
}

const CREATE: &str = "POST /v1/sandboxes";
const EXEC: &str = "GET /v1/sandboxes/sb1/exec";
const DELETE: &str = "DELETE /v1/sandboxes/sb1";

#[test]
fn a_run_is_a_sandbox_a_command_and_the_end_of_the_sandbox() {
    let fake = Fake::new(&[(CREATE, MADE), (DELETE, GONE)]);
    let words = [
        "run",
        "hello",
        "--memory",
        "2048",
        "--disk",
        "8192",
        "--cpus",
        "2",
        "--network",
        "nat",
        "--env",
        "A=b",
        "--workdir",
        "/srv",
        "--user",
        "me",
        "--timeout",
        "9",
        "--",
        "make",
        "all",
    ];
    let ran = fake.spore(&words);
    assert_eq!(
        (ran.status.code(), out(&ran), err(&ran)),
        (Some(7), "hi\n".into(), "oh\n".into())
    );
    let seen: Vec<_> = fake.seen.try_iter().collect();
    let calls: Vec<_> = seen.iter().map(|seen| seen.call.as_str()).collect();
    assert_eq!(calls, [CREATE, EXEC, "exec", DELETE]);
    let made = json(&seen[0].body);
    let wanted = json!({"image": "hello", "memoryMB": 2048, "diskMB": 8192, "cpus": 2, "network": "nat"});
    for (field, value) in wanted.as_object().unwrap() {
        assert_eq!(&made[field], value, "{field}");
    }
    assert!(
        made["idleTimeoutSeconds"].is_u64(),
        "it is not left for ever if `spore` is killed"
    );
    let run: spore_types::ExecRequest = serde_json::from_str(&seen[2].body).unwrap();
    assert_eq!(
        (run.cmd, run.env["A"].as_str()),
        (vec!["make".into(), "all".into()], "b")
    );
    assert_eq!(
        (run.cwd.as_deref(), run.user.as_deref(), run.timeout_seconds),
        (Some("/srv"), Some("me"), Some(9))
    );
}

#[test]
fn a_run_tells_a_program_all_at_once() {
    let fake = Fake::new(&[(CREATE, MADE), (DELETE, GONE)]);
    let ran = fake.spore(&["run", "hello", "--json", "--", "make"]);
    assert_eq!((ran.status.code(), err(&ran).as_str()), (Some(7), ""));
    let expected = json!({
        "exitCode": 7, "timedOut": false, "oomKills": 1, "stdout": "hi\n", "stderr": "oh\n",
        "memory": {"floorMB": 1024, "requestedMB": 2048, "grantedMB": 2048},
        "timesMs": {"released": 1.0, "woke": 2.0, "ready": 3.0},
    });
    assert_eq!(json(&out(&ran)), expected);
}

#[test]
fn a_run_whose_command_cannot_be_run_ends_its_sandbox() {
    let fake = Fake::new(&[(CREATE, MADE), (EXEC, NOT_FOUND), (DELETE, GONE)]);
    let ran = fake.spore(&["run", "hello", "--", "true"]);
    // Something was started: it is no refusal.
    assert_eq!(ran.status.code(), Some(125), "{}", err(&ran));
    assert_eq!(fake.calls(), [CREATE, EXEC, DELETE]);
}

#[test]
fn a_run_that_is_interrupted_ends_its_sandbox() {
    let fake = Fake::new(&[(CREATE, MADE), (DELETE, GONE)]);
    let ran = interrupted(
        &fake,
        &["run", "hello", "--", "wait for ever"],
        EXEC,
        Signal::TERM,
    );
    assert_eq!((ran.status.code(), err(&ran).as_str()), (Some(143), ""));
    assert_eq!(fake.calls().last().map(String::as_str), Some(DELETE));
}

#[test]
fn a_run_that_is_refused_has_nothing_to_end() {
    let fake = Fake::new(&[(CREATE, NOT_FOUND)]);
    let ran = fake.spore(&["run", "nope", "--", "true"]);
    assert_eq!(ran.status.code(), Some(2));
    assert_eq!(fake.calls(), [CREATE]);
}

#[test]
fn a_sandbox_that_may_be_left_is_told_of_and_the_exit_code_stays() {
    let fake = Fake::new(&[(CREATE, MADE)]);
    let ran = fake.spore(&["run", "hello", "--", "true"]);
    assert_eq!(ran.status.code(), Some(7));
    assert!(err(&ran).contains("sb1 may be left"), "{}", err(&ran));
}
