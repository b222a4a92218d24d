//! What the daemon does not do.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};
use spore_tests::sandbox::LIMIT;
use spore_tests::{left, role};

use super::Daemon;
use crate::image::NAME;

pub fn what_is_wrong_is_refused_with_a_code_and_nothing_is_left() {
    let daemon = Daemon::start();
    let http = &daemon.http;
    let sandbox = daemon.create(json!({}));
    let here = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let post = |body: &str| http.send("POST /v1/sandboxes", &[], body.as_bytes());

    // Bodies. The field is named.
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let long = format!(r#"{{"image":"{}"}}"#, "x".repeat(2 << 20));
    let told = format!(r#"{{"image":"proofs","env":{{"A":"{}"}}}}"#, "x".repeat(4000));
    for (body, named) in [
        (r#"{"image":"proofs","env":{"A=B":""}}"#, "A=B"),
        (&told, "is the most"),
        ("", "must be an object"),
        ("{}", "either image or checkpoint"),
        (r#"{"image":"proofs","memoryMB":0}"#, "at least 1"),
        ("{", "EOF"),
        ("[]", "an object"),
        (r#"{"image":7}"#, "string"),
        (r#"{"image":"proofs","memoryMb":1}"#, "memoryMb"),
        (r#"{"image":"proofs","memoryMB":-1}"#, "-1"),
        (r#"{"image":"proofs","memoryMB":1.5}"#, "1.5"),
        (
            r#"{"image":"proofs","checkpoint":"c"}"#,
            "either image or checkpoint",
        ),
        (r#"{"image":"proofs","count":0}"#, "1 to 64"),
        (r#"{"image":"proofs","count":65}"#, "1 to 64"),
        (r#"{"image":"proofs","timeoutSeconds":0}"#, "1 to 2592000"),
        (r#"{"image":"proofs","network":"all"}"#, "all"),
        (
            r#"{"image":"proofs","network":{"allow":["not an address/"]}}"#,
            "network.allow",
        ),
        (r#"{"image":"proofs","diskMB":1}"#, "disks only grow"),
        (
            r#"{"image":"proofs","exec":{"cmd":["true"],"tty":{"rows":1,"cols":1}}}"#,
            "tty",
        ),
        (&deep, "unknown field"),
    ] {
        let answer = post(body);
        assert_eq!(
            answer.error(),
            (400, "invalid_request".into()),
            "{:.60}: {answer:?}",
            body
        );
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains(named), "{body:.60}: {message}");
    }
    assert_eq!(post(&long).error(), (413, "too_large".into()));
    let not_text = http.send("POST /v1/sandboxes", &[], b"{\"image\":\"\xff\"}");
    assert_eq!(not_text.error(), (400, "invalid_request".into()));
    let many: serde_json::Map<_, _> = (0..65).map(|n| (n.to_string(), json!(""))).collect();
    let many = http.json("POST /v1/sandboxes", &json!({"image": NAME, "metadata": many}));
    assert_eq!(many.error(), (400, "invalid_request".into()));
    let above = http.json("POST /v1/sandboxes", &json!({"image": NAME, "memoryMB": 999_999}));
    assert_eq!(above.error(), (400, "above_maximum".into()));

    // Paths and ids.
    for (call, status, code) in [
        ("GET /v1/nothing", 404, "no_such_call"),
        ("PUT /v1/sandboxes", 405, "no_such_call"),
        ("GET /v1/sandboxes/..%2f..%2fetc", 404, "not_found"),
        ("GET /v1/sandboxes/a%00b", 404, "not_found"),
        ("GET /v1/sandboxes/%ff", 400, "invalid_request"),
        ("GET /v1/images/..%2f..%2fetc", 404, "not_found"),
        ("DELETE /v1/images/a%00b", 404, "not_found"),
        ("GET /v1/checkpoints/..%2fx", 404, "not_found"),
        ("GET /v1/builds/b", 404, "not_found"),
        ("GET /v1/sandboxes?colour=red", 400, "invalid_request"),
    ] {
        assert_eq!(http.call(call).error(), (status, code.into()), "{call}");
    }
    for (query, named) in [
        ("path=etc/passwd", "absolute"),
        ("path=", "empty"),
        ("path=/a%00b", "NUL"),
        ("path=/a&mode=rwx", "octal"),
        ("", "path"),
        ("path=/a&colour=red", "colour"),
    ] {
        let answer = http.send(&format!("PUT {here}/files?{query}"), &[], b"x");
        assert_eq!(
            answer.error(),
            (400, "invalid_request".into()),
            "{query}: {answer:?}"
        );
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains(named), "{query}: {message}");
    }
    // Who sends a file that is refused can send it, and hears why.
    let sent = http.send("PUT /v1/sandboxes/vm-0/files?path=/a", &[], &vec![b'x'; 3 << 20]);
    assert_eq!(sent.error(), (404, "not_found".into()));
    let sent = http.send(&format!("PUT {here}/files?path=/proc"), &[], &vec![b'x'; 3 << 20]);
    assert_eq!(sent.error(), (422, "guest_refused".into()));
    let above = http.json(&format!("PATCH {here}"), &json!({"memoryMB": 999_999}));
    assert_eq!(above.error(), (400, "above_maximum".into()));

    // Manifests: before a stream begins, with what is wrong.
    for (manifest, code) in [
        (
            json!({"base": "busybox", "steps": [{"type": "no_such"}]}),
            "invalid_manifest",
        ),
        (json!({"base": "nowhere", "steps": []}), "unknown_base"),
        (
            json!({"base": "busybox", "steps": [], "builderMemoryMB": 1}),
            "invalid_manifest",
        ),
        (Value::Null, "invalid_manifest"),
    ] {
        let answer = http.json("POST /v1/images", &json!({"manifest": manifest}));
        assert_eq!(answer.error(), (400, code.into()), "{manifest}");
    }

    // Requests that are none, or not whole: the daemon goes on.
    for bytes in [&b"\0\0\0\0"[..], b"GET / HTTP/9\r\n\r\n", b"NONSENSE\r\n\r\n"] {
        let answer = http.raw(bytes);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"),
            "{answer:?}"
        );
    }
    {
        use std::io::Write;
        let mut half = http.connect();
        half.write_all(b"POST /v1/sandboxes HTTP/1.1\r\nhost: s\r\ncontent-length: 100\r\n\r\n{\"im")
            .unwrap();
    }
    // An upload that breaks off leaves the file as it was.
    daemon.sh(&sandbox, "echo old >/tmp/file");
    {
        use std::io::Write;
        let mut half = http.connect();
        // More than is kept until it is sent on.
        let head = "HTTP/1.1\r\nhost: s\r\ncontent-length: 1000000";
        let text = format!(
            "PUT {here}/files?path=/tmp/file {head}\r\n\r\n{}",
            "new".repeat(100_000)
        );
        half.write_all(text.as_bytes()).unwrap();
        left::soon("it is begun", LIMIT, || {
            daemon
                .sh(&sandbox, "cat /tmp/file; ls -A /tmp")
                .contains(".spore-")
        });
    }
    left::soon("nothing else is left", LIMIT, || {
        let seen = daemon.sh(&sandbox, "cat /tmp/file; ls -A /tmp");
        assert!(seen.starts_with("old\n"), "{seen}");
        !seen.contains(".spore-")
    });

    let all = http.call("GET /v1/sandboxes").expect(200);
    assert_eq!(all["sandboxes"].as_array().unwrap().len(), 1, "{all}");
    let openapi = http.call("GET /v1/openapi.json").expect(200);
    assert_eq!(openapi["openapi"], "3.1.0");
    assert!(openapi["paths"].as_object().unwrap().len() > 15);
}

pub fn a_host_promises_no_more_than_it_may() {
    let copy = crate::image::image().copy();
    // Room for one sandbox of the image, and for less than two: 1 MiB is rounded away.
    let total = spore_builder::HostMemory::read().unwrap().total().get();
    let factor = 900.0 / f64::from(total - 1024);
    std::fs::write(copy.store().root().join("overcommit"), factor.to_string()).unwrap();
    let daemon = Daemon::on(copy);
    let http = &daemon.http;
    let refused = http.json("POST /v1/sandboxes", &json!({"image": NAME, "count": 2}));
    assert_eq!(refused.error(), (503, "insufficient_capacity".into()));
    let one = daemon.create(json!({}));
    let refused = http.json("POST /v1/sandboxes", &json!({"image": NAME}));
    assert_eq!(refused.error(), (503, "insufficient_capacity".into()));
    let fit = refused.json()["error"]["details"]["fitMB"].as_u64().unwrap();
    assert!((380..400).contains(&fit), "{fit}");
    assert_eq!(
        http.call("GET /v1/host").expect(200)["memory"]["largestFitMB"],
        fit
    );
    let here = format!("PATCH /v1/sandboxes/{}", one["id"].as_str().unwrap());
    let refused = http.json(&here, &json!({"memoryMB": 1024}));
    assert_eq!(refused.error(), (503, "insufficient_capacity".into()));
    assert_eq!(
        http.json(&here, &json!({"memoryMB": 640})).expect(200)["memory"]["grantedMB"],
        640
    );

    http.json("POST /v1/host/drain", &json!({"draining": true}))
        .expect(200);
    let build = json!({"base": "busybox", "steps": [], "builderMemoryMB": 512, "runtimeMemoryMB": 512});
    for (call, body) in [
        ("POST /v1/sandboxes".to_owned(), json!({"image": NAME})),
        (
            format!("POST /v1/sandboxes/{}/fork", one["id"].as_str().unwrap()),
            json!({}),
        ),
        ("POST /v1/images".to_owned(), json!({"manifest": build})),
    ] {
        assert_eq!(
            http.json(&call, &body).error(),
            (503, "draining".into()),
            "{call}"
        );
    }
    assert_eq!(daemon.sh(&one, "echo on"), "on");
    let host = http
        .json("POST /v1/host/drain", &json!({"draining": false}))
        .expect(200);
    assert_eq!(host["draining"], false);
}

pub fn two_daemons_do_not_share_a_directory_or_a_socket() {
    let mut daemon = Daemon::start();
    let second = || role::start("daemon", daemon.root());
    assert_eq!(second().line(), "", "the second does not serve");
    assert_eq!(daemon.http.call("GET /healthz").status, 200);

    let mode = std::fs::metadata(super::socket(daemon.root())).unwrap().mode();
    assert_eq!(mode & 0o777, 0o660);
    // One that is stopped waits for nobody who follows what happens.
    let events = daemon.http.events("GET /v1/events", &[], &Value::Null);
    daemon.stop();
    assert!(events.is_ended());
    // What a later Spore has made is not touched.
    let version = daemon.root().join("version");
    std::fs::write(&version, "2\n").unwrap();
    assert_eq!(role::start("daemon", daemon.root()).line(), "");
    std::fs::remove_file(&version).unwrap();
    daemon.again();

    // What is at the socket's path and is no socket stays.
    let other = crate::image::image().copy();
    let socket = super::socket(other.store().root());
    std::fs::write(&socket, "a file").unwrap();
    assert_eq!(role::start("daemon", other.store().root()).line(), "");
    assert_eq!(std::fs::read(&socket).unwrap(), b"a file");
    // One that nobody listens at is taken over.
    std::fs::remove_file(&socket).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    drop(Daemon::on(other));
}
