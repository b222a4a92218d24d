//! What outlives what.

use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::left;

use super::Daemon;

/// What a few commands may take in guests whose kernels are interpreted, on a processor that others use.
const SOON: Duration = Duration::from_secs(60);

pub fn sandboxes_outlive_a_killed_daemon_and_one_that_was_stopped() {
    let mut daemon = Daemon::start();
    let first = daemon.create(json!({"metadata": {"a": "b"}, "env": {"X": "1"}, "memoryMB": 1024}));
    let second = daemon.create(json!({}));
    daemon.sh(&first, "echo mine >/run/word");
    let root = daemon.root().to_owned();
    let vm_of = |id: &Value| {
        let id = id.as_str().unwrap();
        let run = root.join("run").join(id);
        left::vms_using(&run).pop().unwrap()
    };
    let lost = vm_of(&second["id"]);
    // What it has ready for the next is no sandbox: it is gone with it, and nobody is told.
    left::soon("a shell is ready", SOON, || {
        daemon.http.call("GET /v1/host").expect(200)["shells"] == 1
    });
    daemon.kill();
    assert!(left::runs(vm_of(&first["id"])), "it runs without a daemon");
    left::kill(lost);
    daemon.again();

    let mut events = daemon
        .http
        .events("GET /v1/events", &[("last-event-id", "1")], &Value::Null);
    assert_eq!(events.next_of("started")["adopted"], 1);
    let told = events.next_of("sandboxLost");
    assert_eq!(told["sandbox"], second["id"]);
    assert!(told["cause"].as_str().unwrap().contains("ended"), "{told}");

    let here = format!("/v1/sandboxes/{}", first["id"].as_str().unwrap());
    let again = daemon.http.call(&format!("GET {here}")).expect(200);
    for field in [
        "id",
        "image",
        "checkpoint",
        "memory",
        "metadata",
        "createdAt",
        "times",
        "origin",
    ] {
        assert_eq!(again[field], first[field], "{field}");
    }
    assert_eq!(daemon.sh(&first, "cat /run/word; echo $X"), "mine\n1");
    assert_eq!(
        daemon.http.call("GET /v1/host").expect(200)["memory"]["committedMB"],
        1024
    );

    // It can do all that it could: grow, be forked and checkpointed.
    let grown = daemon
        .http
        .json(&format!("PATCH {here}"), &json!({"memoryMB": 1280}));
    assert_eq!(grown.expect(200)["memory"]["grantedMB"], 1280);
    let forked = daemon
        .http
        .json(&format!("POST {here}/fork"), &json!({}))
        .expect(201);
    assert_eq!(daemon.sh(&forked["sandboxes"][0], "cat /run/word"), "mine");
    let next = std::iter::from_fn(|| events.next_data()).find(|event| {
        let kind = event["type"].as_str().unwrap();
        ["sandboxLost", "sandboxCreated"].contains(&kind)
    });
    assert_eq!(next.unwrap()["sandbox"], forked["sandboxes"][0]["id"]);
    daemon
        .http
        .json(&format!("POST {here}/checkpoints"), &json!({"name": "c"}))
        .expect(201);

    // Killed between an act and its record: what the VM itself says counts.
    daemon.http.call(&format!("POST {here}/pause")).expect(200);
    daemon.kill();
    let record = root.join(format!("run/{}/sandbox.json", first["id"].as_str().unwrap()));
    let text = std::fs::read_to_string(&record).unwrap();
    let mut before: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(before["changing"]["state"], "paused");
    assert_eq!(before["changing"]["grantedMb"], 1280);
    before["changing"]["state"] = json!("running");
    before["changing"]["grantedMb"] = json!(1024);
    std::fs::write(&record, before.to_string()).unwrap();
    daemon.again();
    let adopted = daemon.http.call(&format!("GET {here}")).expect(200);
    assert_eq!(adopted["state"], "paused");
    assert_eq!(adopted["memory"]["grantedMB"], 1280);
    daemon.http.call(&format!("POST {here}/resume")).expect(200);

    daemon.stop();
    assert!(!root.join("d.sock").exists());
    daemon.again();
    let all = daemon.http.call("GET /v1/sandboxes").expect(200);
    assert_eq!(all["sandboxes"].as_array().unwrap().len(), 2, "{all}");
    assert_eq!(daemon.sh(&first, "cat /run/word"), "mine");
    assert_eq!(daemon.http.call(&format!("DELETE {here}")).status, 204);
    left::soon_nothing(SOON, || {
        left::vms_using(&root.join("run").join(first["id"].as_str().unwrap()))
    });
}

pub fn a_sandbox_that_nobody_uses_is_ended_and_one_that_is_used_is_not() {
    let daemon = Daemon::start();
    let mut events = daemon.http.events("GET /v1/events", &[], &Value::Null);
    let used = daemon.create(json!({}));
    let never = daemon.create(json!({"idleTimeoutSeconds": 0}));
    let idle = daemon.create(json!({"idleTimeoutSeconds": 1}));
    assert_eq!(idle["idleTimeoutSeconds"], 1);
    assert!(idle["lastUsedAt"].as_u64() >= idle["createdAt"].as_u64());
    assert!(never["idleTimeoutSeconds"].is_null());
    let here = |sandbox: &Value| format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let change = |seconds: u32| {
        let asked = json!({"idleTimeoutSeconds": seconds});
        daemon.http.json(&format!("PATCH {}", here(&used)), &asked)
    };
    // A command is use, however long it goes on; looking is none.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            daemon.sh(
                &used,
                "touch /run/begun; until [ -e /run/enough ]; do sleep 0.1; done",
            )
        });
        left::soon("the command", SOON, || {
            daemon.sh(&used, "[ ! -e /run/begun ] || echo yes") == "yes"
        });
        change(1).expect(200);
        while daemon.http.call(&format!("GET {}", here(&idle))).status == 200 {
            std::thread::sleep(Duration::from_millis(50));
        }
        let ended = events.next_of("sandboxEnded");
        assert_eq!(
            (&ended["sandbox"], &ended["cause"]),
            (&idle["id"], &json!("idle"))
        );
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(change(600).expect(200)["idleTimeoutSeconds"], 600);
        daemon.sh(&used, "touch /run/enough");
    });
    // A fork has it of its parent.
    let fork = format!("POST {}/fork", here(&used));
    let forked = daemon.http.json(&fork, &json!({})).expect(201);
    assert_eq!(forked["sandboxes"][0]["idleTimeoutSeconds"], 600);
    assert_eq!(change(2_592_001).error(), (400, "invalid_request".into()));
    daemon.http.call(&format!("GET {}", here(&never))).expect(200);
}

pub fn a_sandbox_that_ends_by_itself_or_by_its_time_is_told() {
    let daemon = Daemon::start();
    let mut events = daemon.http.events("GET /v1/events", &[], &Value::Null);
    let off = daemon.create(json!({}));
    let killed = daemon.create(json!({}));
    let expiring = daemon.create(json!({"timeoutSeconds": 1}));
    let mut created = [&off, &killed, &expiring].map(|_| events.next_of("sandboxCreated")["sandbox"].clone());
    created.sort_by_key(ToString::to_string);
    let mut made = [&off, &killed, &expiring].map(|sandbox| sandbox["id"].clone());
    made.sort_by_key(ToString::to_string);
    assert_eq!(created, made);
    let ended = events.next_of("sandboxEnded");
    assert_eq!(
        (&ended["sandbox"], &ended["cause"]),
        (&expiring["id"], &json!("expired"))
    );
    // For accounts: nobody can ask for it any more.
    for used in ["cpuMs", "rssBytes", "uniqueBytes", "diskBytes"] {
        assert!(ended["usage"][used].as_u64() > Some(0), "{used}: {ended}");
    }

    let body = json!({"cmd": ["sh", "-c", "echo o >/proc/sysrq-trigger; sleep 100"]});
    let here = format!("POST /v1/sandboxes/{}/exec", off["id"].as_str().unwrap());
    let answer = daemon.http.json(&here, &body);
    assert!([410, 502].contains(&answer.status), "{answer:?}");
    let ended = events.next_of("sandboxEnded");
    assert_eq!(ended["sandbox"], off["id"], "{ended}");

    let run = daemon.root().join("run").join(killed["id"].as_str().unwrap());
    left::kill(left::vms_using(&run).pop().unwrap());
    let ended = events.next_of("sandboxEnded");
    assert_eq!(ended["sandbox"], killed["id"]);
    assert!(ended["cause"].as_str().unwrap().contains("gone"), "{ended}");
    assert_eq!(
        daemon.http.call("GET /v1/host").expect(200)["memory"]["committedMB"],
        0
    );

    // What sandboxes are copied from is made again; that it was lost is told when it is missed.
    let run = daemon.root().join("run");
    for pid in left::vms_using(daemon.root()) {
        if left::written_files(pid, &run).is_empty() {
            left::kill_if_there(pid);
        }
    }
    daemon.create(json!({}));
    let lost = events.next_of("templateLost");
    assert_eq!(lost["checkpoint"], off["checkpoint"]);
    assert!(lost["cause"].as_str().unwrap().contains("SIGKILL"), "{lost}");
}
