//! What is said while it happens.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use spore_tests::left;
use spore_tests::sandbox::LIMIT;
use tungstenite::{Message, WebSocket};

use super::Daemon;
use crate::image::{BUILDER_MB, FLOOR_MB, image};

type Socket = WebSocket<UnixStream>;

fn open(daemon: &Daemon, sandbox: &Value, first: Value) -> Socket {
    let stream = daemon.http.connect();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let url = format!("ws://spore/v1/sandboxes/{}/exec", sandbox["id"].as_str().unwrap());
    let (mut socket, _) = tungstenite::client(url, stream).unwrap();
    socket.send(Message::text(first.to_string())).unwrap();
    socket
}

/// Output until it has `wanted`, or until the end, which is what is returned.
fn until(socket: &mut Socket, wanted: Option<&str>) -> (String, Value) {
    let mut text = String::new();
    loop {
        match socket.read().unwrap() {
            Message::Binary(bytes) => {
                text += &String::from_utf8_lossy(&bytes[1..]);
                if wanted.is_some_and(|wanted| text.contains(wanted)) {
                    return (text, Value::Null);
                }
            }
            Message::Text(report) => return (text, serde_json::from_str(&report).unwrap()),
            Message::Close(_) => panic!("closed after {text:?}"),
            _ => {}
        }
    }
}

pub fn a_command_is_driven_over_a_websocket() {
    let daemon = Daemon::start();
    let sandbox = daemon.create(json!({}));
    // Input, its end, both outputs, the exit code.
    let script = "echo out; echo err >&2; cat; exit 7";
    let mut socket = open(&daemon, &sandbox, json!({"cmd": ["sh", "-c", script]}));
    socket.send(Message::binary(b"typed\n".to_vec())).unwrap();
    socket.send(Message::text(r#"{"type":"stdinEnd"}"#)).unwrap();
    let (text, end) = until(&mut socket, None);
    assert_eq!(
        (&end["type"], &end["exitCode"]),
        (&json!("exit"), &json!(7)),
        "{end}"
    );
    for part in ["out\n", "err\n", "typed\n"] {
        assert!(text.contains(part), "{text:?}");
    }

    // A terminal, its size, and a signal.
    let tty = json!({"cmd": ["sh"], "tty": {"rows": 11, "cols": 22}});
    let mut socket = open(&daemon, &sandbox, tty);
    socket.send(Message::binary(b"stty size\n".to_vec())).unwrap();
    until(&mut socket, Some("11 22"));
    socket
        .send(Message::text(r#"{"type":"resize","rows":33,"cols":44}"#))
        .unwrap();
    socket.send(Message::binary(b"stty size\n".to_vec())).unwrap();
    until(&mut socket, Some("33 44"));
    socket.send(Message::binary(b"exit 5\n".to_vec())).unwrap();
    assert_eq!(until(&mut socket, None).1["exitCode"], 5);
    let mut socket = open(
        &daemon,
        &sandbox,
        json!({"cmd": ["sh", "-c", "echo on; exec sleep 1000"]}),
    );
    until(&mut socket, Some("on"));
    // Input that nobody reads does not hold the signal up.
    socket.send(Message::binary(vec![b'x'; 512 << 10])).unwrap();
    socket
        .send(Message::text(r#"{"type":"signal","signal":15}"#))
        .unwrap();
    assert_eq!(until(&mut socket, None).1["signal"], 15);

    // What cannot be run is said, and so is what is no request.
    let mut socket = open(
        &daemon,
        &sandbox,
        json!({"cmd": ["true"], "user": "nobody-there"}),
    );
    let end = until(&mut socket, None).1;
    assert_eq!(
        (&end["type"], &end["code"]),
        (&json!("error"), &json!("guest_refused")),
        "{end}"
    );
    let mut socket = open(&daemon, &sandbox, json!({"comand": []}));
    let end = until(&mut socket, None).1;
    assert_eq!(end["type"], "error", "{end}");
    assert!(end["message"].as_str().unwrap().contains("comand"), "{end}");

    for (said, named) in [
        (r#"{"type":"stop"}"#, "stop"),
        (r#"{"type":"resize","rows":0,"cols":44}"#, "0 rows"),
        (r#"{"type":"signal","signal":65}"#, "signal 65"),
    ] {
        let mut socket = open(&daemon, &sandbox, json!({"cmd": ["sleep", "1000"]}));
        socket.send(Message::text(said)).unwrap();
        let end = until(&mut socket, None).1;
        assert_eq!(end["code"], "invalid_request", "{end}");
        assert!(end["message"].as_str().unwrap().contains(named), "{end}");
    }

    // Whoever goes takes the command along; so does one that waits for a plain answer.
    let running = || daemon.sh(&sandbox, "grep -ls '^sleep' /proc/[0-9]*/cmdline | wc -l");
    let mut socket = open(
        &daemon,
        &sandbox,
        json!({"cmd": ["sh", "-c", "echo on; exec sleep 777"]}),
    );
    until(&mut socket, Some("on"));
    left::soon("it runs", LIMIT, || running() == "1");
    drop(socket);
    left::soon("the command has ended", LIMIT, || running() == "0");
    {
        let body = json!({"cmd": ["sleep", "777"]}).to_string();
        let mut gone = daemon.http.connect();
        let here = sandbox["id"].as_str().unwrap();
        let head = format!(
            "POST /v1/sandboxes/{here}/exec HTTP/1.1\r\nhost: s\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        gone.write_all((head + &body).as_bytes()).unwrap();
        left::soon("it runs", LIMIT, || running() == "1");
    }
    left::soon("the command has ended", LIMIT, || running() == "0");
}

/// Whether the other end has hung up, though what it said may still be to be read (poll(2)).
fn hung_up(stream: &UnixStream) -> bool {
    let mut one = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut one, Some(&Timespec::default())).unwrap();
    one[0].revents().contains(PollFlags::HUP)
}

pub fn clients_that_stop_in_the_middle_are_hung_up_on() {
    // More than sockets and the daemon keep of it.
    const LARGE: usize = 4 << 20;
    let copy = image().copy();
    std::fs::write(copy.store().root().join("stalled"), "3").unwrap();
    let daemon = Daemon::on(copy);
    let sandbox = daemon.create(json!({}));
    let here = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    daemon.sh(&sandbox, &format!("head -c {LARGE} /dev/zero >/run/large"));
    let say = |text: &str| {
        let mut stream = daemon.http.connect();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };

    // One does not send the file that it said it would: it is told, and there is none.
    let half =
        format!("PUT {here}/files?path=/run/half HTTP/1.1\r\nhost: s\r\ncontent-length: 8\r\n\r\nhalf");
    let mut answer = String::new();
    say(&half).read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 504 ") && answer.contains("timed_out"),
        "{answer}"
    );
    let half = daemon.http.call(&format!("GET {here}/files?path=/run/half"));
    assert_eq!(half.error(), (422, "guest_refused".into()));

    // One does not read a file, another no more of what its command says, which ends then.
    let mut reading = say(&format!(
        "GET {here}/files?path=/run/large HTTP/1.1\r\nhost: s\r\n\r\n"
    ));
    let mut listening = open(&daemon, &sandbox, json!({"cmd": ["yes"]}));
    until(&mut listening, Some("y"));
    left::soon("the daemon has hung up", Duration::from_secs(120), || {
        hung_up(&reading) && hung_up(listening.get_ref())
    });
    let running = || daemon.sh(&sandbox, "grep -ls '^yes' /proc/[0-9]*/cmdline | wc -l");
    left::soon("the command has ended", LIMIT, || running() == "0");
    let mut read = Vec::new();
    // It may end with a reset, as what was sent to it is still there.
    let _ = reading.read_to_end(&mut read);
    assert!(!read.is_empty() && read.len() < LARGE, "{} bytes", read.len());
    drop(listening);
    assert_eq!(daemon.sh(&sandbox, "echo alive"), "alive");
}

fn manifest(command: &str) -> Value {
    json!({"manifest": {
        "base": "busybox", "builderMemoryMB": BUILDER_MB, "runtimeMemoryMB": FLOOR_MB, "name": "streamed",
        "steps": [{"type": "run", "args": {"commands": [command]}}],
    }, "network": "none"})
}

pub fn a_build_tells_what_it_does_and_ends_with_who_wanted_it() {
    let daemon = Daemon::start();
    let body = manifest("echo step says this; echo built >/etc/built");
    let mut events = daemon.http.events("POST /v1/images", &[], &body);
    let build = events.next_of("build")["buildId"].as_str().unwrap().to_owned();
    assert_eq!(events.next_of("stepStarted")["of"], 1);
    // Who asks for the same meanwhile follows the same.
    let mut joined = daemon.http.events("POST /v1/images", &[], &body);
    assert_eq!(joined.next_of("build")["buildId"], build.as_str());
    let mut said = String::new();
    let image = loop {
        let data = events.next_data().unwrap();
        match data["type"].as_str().unwrap() {
            "output" => said += data["text"].as_str().unwrap(),
            "image" => break data["image"].clone(),
            "error" => panic!("{data}"),
            _ => {}
        }
    };
    assert!(said.contains("step says this"), "{said:?}");
    assert_eq!(image["names"], json!(["streamed"]));
    assert_eq!(joined.next_of("image")["image"]["id"], image["id"]);
    assert!(events.next_data().is_none());
    let state = daemon.http.call(&format!("GET /v1/builds/{build}")).expect(200);
    assert_eq!(
        (&state["state"], &state["image"]["id"]),
        (&json!("succeeded"), &image["id"])
    );
    let sandbox = daemon
        .http
        .json("POST /v1/sandboxes", &json!({"image": "streamed"}))
        .expect(201);
    assert_eq!(daemon.sh(&sandbox, "cat /etc/built"), "built");

    // A step that fails is named, and the log can be read again.
    let failing = manifest("echo the reason; exit 9");
    let accepted = daemon.http.json("POST /v1/images?async=1", &failing).expect(202);
    let here = format!("/v1/builds/{}", accepted["buildId"].as_str().unwrap());
    let error = daemon
        .http
        .events(&format!("GET {here}/logs"), &[], &Value::Null)
        .next_of("error");
    assert_eq!(error["error"]["code"], "build_failed");
    assert_eq!(error["error"]["details"]["step"], 0);
    assert!(
        error["error"]["message"].as_str().unwrap().contains("the reason"),
        "{error}"
    );

    // Nobody follows it any more: it is stopped, and nothing of it is left.
    let mut gone = daemon
        .http
        .events("POST /v1/images", &[], &manifest("echo on; sleep 1000"));
    let build = gone.next_of("build")["buildId"].as_str().unwrap().to_owned();
    gone.next_of("output");
    drop(gone);
    let state = || daemon.http.call(&format!("GET /v1/builds/{build}")).expect(200);
    left::soon("the build has ended", Duration::from_secs(20), || {
        state()["state"] == "failed"
    });
    assert_eq!(state()["error"]["code"], "cancelled");
}

pub fn a_build_whose_daemon_or_vm_is_killed_leaves_nothing() {
    let mut daemon = Daemon::start();
    let run = daemon.root().join("run");
    let store = || {
        let found = left::in_store(run.parent().unwrap()).into_iter();
        // The daemon itself is there.
        found
            .filter(|found| found.starts_with("file "))
            .collect::<Vec<_>>()
    };
    let before = daemon.http.call("GET /v1/images").expect(200);
    let body = manifest("echo on; sleep 1000");
    let mut events = daemon.http.events("POST /v1/images", &[], &body);
    let build = events.next_of("build")["buildId"].as_str().unwrap().to_owned();
    events.next_of("output");
    assert_eq!(left::vms_using(&run).len(), 1);
    daemon.kill();
    left::soon_nothing(Duration::from_secs(20), || left::vms_using(&run));
    daemon.again();
    left::soon_nothing(Duration::from_secs(20), store);
    let unknown = daemon.http.call(&format!("GET /v1/builds/{build}"));
    assert_eq!(unknown.error(), (404, "not_found".into()));

    // It can be asked for again, and fails with its VM.
    let mut host = daemon.http.events("GET /v1/events", &[], &Value::Null);
    let mut events = daemon.http.events("POST /v1/images", &[], &body);
    events.next_of("output");
    left::vms_using(&run).into_iter().for_each(left::kill);
    let error = events.next_of("error")["error"].clone();
    assert_eq!(error["code"], "internal", "{error}");
    assert!(error["message"].as_str().unwrap().contains("SIGKILL"), "{error}");
    let ended = host.next_of("buildEnded");
    assert_eq!(ended["error"], "internal");
    assert!(ended["cause"].as_str().unwrap().contains("SIGKILL"), "{ended}");
    left::soon_nothing(Duration::from_secs(20), store);
    let host = daemon.http.call("GET /v1/host").expect(200);
    assert_eq!(host["memory"]["committedMB"], 0);
    assert_eq!(daemon.http.call("GET /v1/images").expect(200), before);
}
