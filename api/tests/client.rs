//! What `spore` makes of a daemon's answers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use fake::{Fake, NOT_FOUND, err, out, spore};

const NO_ROOM: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\n",
    r#"{"error":{"code":"insufficient_capacity","message":"no room","details":{"largestFitMB":512}}}"#
);

#[test]
fn who_finds_no_daemon_is_told_where_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none");
    let tried = spore(&socket, dir.path(), &["ps"]);
    assert_eq!(tried.status.code(), Some(1));
    let said = err(&tried);
    assert!(
        said.contains(socket.to_str().unwrap()) && said.contains("`spore serve`"),
        "{said}"
    );
    // The socket of a daemon that was killed.
    drop(UnixListener::bind(&socket).unwrap());
    assert!(err(&spore(&socket, dir.path(), &["ps"])).contains("`spore serve`"));
    let exec = spore(&socket, dir.path(), &["exec", "sb1", "--", "true"]);
    assert_eq!(exec.status.code(), Some(125));
}

#[test]
fn a_refusal_is_told_with_its_code() {
    let fake = Fake::new(&[
        ("POST /v1/sandboxes/nope/pause", NOT_FOUND),
        ("POST /v1/sandboxes", NO_ROOM),
    ]);
    let tried = fake.spore(&["pause", "nope"]);
    assert_eq!(
        (tried.status.code(), err(&tried).as_str()),
        (Some(2), "spore: there is no sandbox\n")
    );
    let tried = fake.spore(&["create", "hello", "--json"]);
    assert_eq!(tried.status.code(), Some(1));
    let error: serde_json::Value = serde_json::from_str(&err(&tried)).unwrap();
    assert_eq!(error["error"]["code"], "insufficient_capacity");
    assert_eq!(error["error"]["details"]["largestFitMB"], 512);
}

#[test]
fn a_command_for_a_sandbox_that_is_not_there_is_a_failure_of_our_own() {
    let fake = Fake::new(&[("GET /v1/sandboxes/nope/exec", NOT_FOUND)]);
    let tried = fake.spore(&["exec", "nope", "--", "true"]);
    assert_eq!(tried.status.code(), Some(125));
    assert!(err(&tried).contains("there is no sandbox"));
    let head = fake.seen.recv().unwrap().head.to_ascii_lowercase();
    assert!(head.contains("upgrade: websocket"), "{head}");
}

const SANDBOXES: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    r#"{"sandboxes":[{"id":"sb1","state":"paused","image":"00112233445566","origin":"shell","#,
    r#""memory":{"floorMB":1024,"requestedMB":2048,"grantedMB":2048,"maxMB":16384},"cpus":1,"#,
    r#""network":{"policy":"nat","address":"172.30.0.2"},"metadata":{},"createdAt":1,"lastUsedAt":1,"#,
    r#""times":{"releasedUs":1,"wokeUs":2,"readyUs":3}}]}"#
);
const IMAGES: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
    r#"{"images":[{"id":"00112233445566","names":["hello"],"contentHash":"","baseDigest":"","createdAt":1,"#,
    r#""sizeBytes":1,"builderMemoryMB":1,"checkpoints":[]}]}"#
);

#[test]
fn sandboxes_are_a_table_for_people_and_the_answer_itself_for_programs() {
    let fake = Fake::new(&[
        ("GET /v1/sandboxes?", SANDBOXES),
        ("GET /v1/sandboxes?metadata.job%20no=a%26b", SANDBOXES),
        ("GET /v1/images", IMAGES),
    ]);
    let table = out(&fake.spore(&["ps"]));
    let mut lines = table.lines();
    let words = |line: Option<&str>| line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        words(lines.next()),
        "ID IMAGE STATE MEMORY CPUS NETWORK AGE EXPIRES"
    );
    let row = words(lines.next());
    assert!(
        row.starts_with("sb1 hello paused 2048/16384 MiB 1 nat 172.30.0.2 "),
        "{row}"
    );
    assert_eq!(lines.next(), None);
    let json = out(&fake.spore(&["ps", "--json"]));
    assert_eq!(json.trim_end(), SANDBOXES.split_once("\r\n\r\n").unwrap().1);
    let some = fake.spore(&["ps", "-q", "--metadata", "job no=a&b"]);
    assert_eq!(out(&some), "sb1\n");
}

#[test]
fn a_sandbox_is_asked_for_in_the_words_of_the_api() {
    let fake = Fake::new(&[]);
    let words = [
        "new",
        "hello",
        "--memory",
        "2048",
        "-e",
        "A=b",
        "--metadata",
        "k=v",
        "--timeout",
        "60",
        "--network",
        "nat",
    ];
    assert_eq!(fake.spore(&words).status.code(), Some(1));
    let seen = fake.seen.recv().unwrap();
    assert_eq!(seen.call, "POST /v1/sandboxes");
    let body: spore_types::CreateSandbox = serde_json::from_str(&seen.body).unwrap();
    assert_eq!(
        (body.image.as_deref(), body.memory_mb, body.timeout_seconds),
        (Some("hello"), Some(2048), Some(60))
    );
    assert_eq!((body.env["A"].as_str(), body.metadata["k"].as_str()), ("b", "v"));
    assert_eq!(body.network, spore_types::NetworkPolicy::Nat);
}

#[test]
fn events_are_lines_until_the_daemon_goes() {
    let fake = Fake::new(&[(
        "GET /v1/events",
        concat!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
            ": alive\n\nid: 42\nevent: draining\n",
            "data: {\"id\":42,\"timeMs\":0,\"type\":\"draining\",\"draining\":true}\n\n"
        ),
    )]);
    let followed = fake.spore(&["events", "--after", "41"]);
    assert_eq!(
        out(&followed),
        "42 1970-01-01T00:00:00.000Z draining draining=true\n"
    );
    assert_eq!(followed.status.code(), Some(1));
    let head = fake.seen.recv().unwrap().head.to_ascii_lowercase();
    assert!(head.contains("last-event-id: 41"), "{head}");
}

#[test]
fn a_file_comes_with_its_mode_and_a_file_that_breaks_off_does_not_come() {
    let fake = Fake::new(&[
        (
            "GET /v1/sandboxes/sb1/files?path=%2Fbin%2Fgood",
            "HTTP/1.1 200 OK\r\nx-spore-mode: 0700\r\ncontent-length: 4\r\n\r\ngood",
        ),
        (
            "GET /v1/sandboxes/sb1/files?path=%2Fbin%2Fhalf",
            "HTTP/1.1 200 OK\r\nx-spore-mode: 0700\r\ncontent-length: 8\r\n\r\nhalf",
        ),
    ]);
    assert!(fake.spore(&["cp", "sb1:/bin/good", "."]).status.success());
    let file = fake.dir.path().join("good");
    assert_eq!(std::fs::read(&file).unwrap(), b"good");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(out(&fake.spore(&["cp", "sb1:/bin/good", "-"])), "good");
    assert_eq!(fake.spore(&["cp", "sb1:/bin/half", "."]).status.code(), Some(1));
    let mut left: Vec<_> = std::fs::read_dir(fake.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["good", "sock"]);
}

#[test]
fn each_that_can_be_removed_is_removed() {
    let fake = Fake::new(&[
        ("DELETE /v1/sandboxes/sb1", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("DELETE /v1/sandboxes/nope", NOT_FOUND),
        ("DELETE /v1/sandboxes/sb2", "HTTP/1.1 204 No Content\r\n\r\n"),
    ]);
    let tried = fake.spore(&["rm", "sb1", "nope", "sb2"]);
    assert_eq!(
        (tried.status.code(), out(&tried).as_str()),
        (Some(2), "sb1\nsb2\n")
    );
}

#[test]
fn completions_and_manuals_know_the_commands() {
    let fake = Fake::new(&[]);
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&fake.spore(&["completions", shell])).contains("checkpoints"));
    }
    assert!(out(&fake.spore(&["man"])).contains(".TH"));
    assert!(fake.spore(&["man", "pages"]).status.success());
    let page = std::fs::read_to_string(fake.dir.path().join("pages/spore-exec.1")).unwrap();
    assert!(page.contains("interactive"));
}
