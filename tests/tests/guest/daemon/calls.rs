//! What the calls do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::left;

use super::Daemon;
use crate::image::{FLOOR_MB, NAME};

fn id(sandbox: &Value) -> &str {
    sandbox["id"].as_str().unwrap()
}

/// Whom the kernel ends first when memory runs out.
fn oom_score_adj(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/oom_score_adj"))
}

/// What a process may have of memory by its control group, in MiB, and the file that says so.
fn memory_limit(pid: u32) -> (u64, PathBuf) {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let second = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let file = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        match controllers {
            "" if second => Some(format!("/sys/fs/cgroup{path}/memory.max")),
            "memory" => Some(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            _ => None,
        }
    });
    let file = PathBuf::from(file.unwrap());
    let limit: u64 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    (limit >> 20, file)
}

pub fn a_sandbox_is_made_worked_with_and_deleted() {
    let daemon = Daemon::start();
    let http = &daemon.http;
    // As `OOMScoreAdjust=` of the unit has it. Only root may.
    let spared = std::fs::write(oom_score_adj(daemon.pid()), "-500").is_ok();
    assert_eq!(http.call("GET /healthz").status, 200);
    let asked = json!({
        "env": {"WHO": "me"}, "metadata": {"team": "a"}, "memoryMB": 100,
        "exec": {"cmd": ["sh", "-c", "echo $WHO; echo no >&2; exit 3"]},
    });
    let sandbox = daemon.create(asked);
    assert_eq!(sandbox["exec"]["exitCode"], 3);
    assert_eq!(sandbox["exec"]["stdout"], "me\n");
    assert_eq!(sandbox["exec"]["stderr"], "no\n");
    let floor = u64::from(FLOOR_MB);
    assert_eq!(sandbox["memory"]["floorMB"], floor);
    assert_eq!(sandbox["memory"]["requestedMB"], 100, "what was asked for");
    assert_eq!(sandbox["memory"]["grantedMB"], floor, "clamped");
    assert!(sandbox["times"]["readyUs"].as_u64().unwrap() > 0);
    let vms = left::vms_using(&daemon.root().join("run"));
    assert!(!vms.is_empty());
    for vm in vms.into_iter().filter(|_| spared) {
        // A shell may end meanwhile.
        let score = std::fs::read_to_string(oom_score_adj(vm));
        assert_eq!(
            score.map_or_else(|_| "0".to_owned(), |score| score.trim().to_owned()),
            "0"
        );
    }
    let here = format!("/v1/sandboxes/{}", id(&sandbox));
    // Where there are control groups, its process may have what its guest may, and 256 MiB and a little more.
    let host = http.call("GET /v1/host").expect(200);
    let grouped = host["confinement"][0].as_str().unwrap();
    let limited = grouped.starts_with("cgroup") && grouped.split(';').next().unwrap().contains("memory");
    let own = daemon.root().join("run").join(id(&sandbox));
    let vm = left::vms_using(&own)[0];
    let group = limited.then(|| {
        let (limit, file) = memory_limit(vm);
        assert!(file.to_str().unwrap().contains(id(&sandbox)), "{file:?}");
        assert_eq!(limit, floor + floor / 32 + 256);
        file
    });

    // Found again, by id and by what its owner calls it.
    let listed = |query: &str| {
        let all = http.call(&format!("GET /v1/sandboxes{query}")).expect(200);
        all["sandboxes"].as_array().unwrap().len()
    };
    assert_eq!(
        (listed(""), listed("?metadata.team=a"), listed("?metadata.team=b")),
        (1, 1, 0)
    );
    let shown = http.call(&format!("GET {here}?usage=1")).expect(200);
    assert!(shown["usage"]["cpuMs"].as_u64().unwrap() > 0);
    assert!(shown["usage"]["uniqueBytes"].as_u64().unwrap() > 0);

    // Memory and metadata.
    let grown = http
        .json(
            &format!("PATCH {here}"),
            &json!({"memoryMB": 640, "metadata": {}}),
        )
        .expect(200);
    assert_eq!(grown["memory"]["grantedMB"], 640);
    if limited {
        assert_eq!(memory_limit(vm).0, 640 + 640 / 32 + 256);
    }
    assert_eq!(grown["metadata"], json!({}));
    let total: u64 = daemon
        .sh(&sandbox, "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse()
        .unwrap();
    assert!(total > 540 * 1024, "MemTotal {total} kB");
    // That a guest gives back what it was given is shown elsewhere; on a busy host it may not, and says how far it came.
    let shrunk = http.json(&format!("PATCH {here}"), &json!({"memoryMB": 1}));
    let granted = match shrunk.status {
        200 => shrunk.json()["memory"]["grantedMB"].clone(),
        _ => {
            assert_eq!(shrunk.error(), (503, "insufficient_capacity".into()));
            shrunk.json()["error"]["details"]["grantedMB"].clone()
        }
    };
    let shown = http.call(&format!("GET {here}")).expect(200);
    assert_eq!(shown["memory"]["grantedMB"], granted);

    // Commands: input, user, directory, time limit, bytes that are no text.
    let exec = |body: Value| http.json(&format!("POST {here}/exec"), &body).expect(200);
    let said = exec(
        json!({"cmd": ["sh", "-c", "cat; pwd; id -u"], "stdin": "in\n", "cwd": "/etc", "user": "65534"}),
    );
    assert_eq!(said["stdout"], "in\n/etc\n65534\n");
    let late = exec(json!({"cmd": ["sleep", "1000"], "timeoutSeconds": 1}));
    assert_eq!(
        (&late["timedOut"], &late["exitCode"]),
        (&json!(true), &json!(124))
    );
    let bytes = exec(json!({"cmd": ["printf", "\\377"], "encoding": "base64"}));
    assert_eq!(bytes["stdout"], "/w==");
    let none = exec(json!({"cmd": ["no-such-program"]}));
    assert_eq!(none["exitCode"], 127);

    // Files.
    let big: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let put = http.send(
        &format!("PUT {here}/files?path=/tmp/a/b%20c&mode=0640"),
        &[],
        &big,
    );
    assert_eq!(put.expect(200)["sizeBytes"], big.len());
    let got = http.call(&format!("GET {here}/files?path=/tmp/a/b%20c"));
    assert_eq!(got.header("x-spore-mode"), Some("0640"));
    assert!(got.body == big, "{} bytes came back", got.body.len());
    let listed = http.call(&format!("GET {here}/ls?path=/tmp/a")).expect(200);
    assert_eq!(listed["entries"][0]["name"], "b c");
    assert_eq!(listed["entries"][0]["kind"], "file");
    assert_eq!(http.call(&format!("POST {here}/mkdir?path=/tmp/d/e")).status, 204);
    assert_eq!(
        http.call(&format!("DELETE {here}/files?path=/tmp/a")).error(),
        (422, "guest_refused".into())
    );
    assert_eq!(
        http.call(&format!("DELETE {here}/files?path=/tmp/a&recursive=1"))
            .status,
        204
    );
    let gone = http.call(&format!("GET {here}/files?path=/tmp/a/b%20c"));
    assert_eq!(gone.error(), (422, "guest_refused".into()));
    assert_eq!(gone.json()["error"]["details"]["kind"], "notFound");
    let empty = http.call(&format!("GET {here}/files?path=/proc/self/environ-not"));
    assert_eq!(empty.status, 422);

    // Standing still.
    assert_eq!(
        http.call(&format!("POST {here}/pause")).expect(200)["state"],
        "paused"
    );
    assert_eq!(
        http.call(&format!("POST {here}/pause")).expect(200)["state"],
        "paused"
    );
    let refused = http.json(&format!("POST {here}/exec"), &json!({"cmd": ["true"]}));
    assert_eq!(refused.error(), (409, "conflict".into()));
    assert_eq!(
        http.call(&format!("POST {here}/resume")).expect(200)["state"],
        "running"
    );
    assert_eq!(daemon.sh(&sandbox, "echo on"), "on");
    assert_eq!(http.call(&format!("GET {here}/logs")).status, 200);

    let host = http.call("GET /v1/host").expect(200);
    assert_eq!(host["sandboxes"], 1);
    assert_eq!(host["memory"]["committedMB"], granted);
    let metrics = String::from_utf8(http.call("GET /metrics").body).unwrap();
    assert!(metrics.contains("spore_sandboxes_created_total 1"), "{metrics}");
    assert!(
        metrics.contains("spore_fork_t3_ready_seconds_bucket"),
        "{metrics}"
    );

    assert_eq!(http.call(&format!("DELETE {here}")).status, 204);
    assert_eq!(
        http.call(&format!("GET {here}")).error(),
        (404, "not_found".into())
    );
    assert_eq!(
        http.call(&format!("DELETE {here}")).error(),
        (404, "not_found".into())
    );
    left::soon("nothing is promised", Duration::from_secs(30), || {
        http.call("GET /v1/host").expect(200)["memory"]["committedMB"] == 0
    });
    if let Some(group) = group {
        left::soon("its control group is gone", Duration::from_secs(60), || {
            !group.exists()
        });
    }
}

pub fn many_are_made_at_once_and_forked_and_checkpointed() {
    let daemon = Daemon::start();
    let http = &daemon.http;
    let made = daemon.create(json!({"count": 3}));
    let made = made["sandboxes"].as_array().unwrap().clone();
    assert_eq!(made.len(), 3);
    let names: BTreeSet<_> = made.iter().map(|one| daemon.sh(one, "hostname")).collect();
    assert_eq!(names.len(), 3);

    // A live fork has the parent's memory and is somebody else.
    let parent = &made[0];
    daemon.sh(parent, "echo mine >/run/word");
    let fork = json!({"count": 2, "env": {"N": "1"}, "metadata": {"of": "parent"}});
    let forked = http
        .json(&format!("POST /v1/sandboxes/{}/fork", id(parent)), &fork)
        .expect(201);
    assert!(forked["pausedUs"].as_u64().unwrap() > 0);
    let forks = forked["sandboxes"].as_array().unwrap();
    assert_eq!(forks.len(), 2);
    for fork in forks {
        assert_eq!(fork["parent"], parent["id"]);
        assert_eq!(fork["origin"], "liveFork");
        assert_eq!(daemon.sh(fork, "cat /run/word; echo $N"), "mine\n1");
    }

    // One with more memory than its parent has.
    let larger = json!({"memoryMB": FLOOR_MB + 128});
    let forked = http
        .json(&format!("POST /v1/sandboxes/{}/fork", id(parent)), &larger)
        .expect(201);
    let larger = &forked["sandboxes"][0];
    assert_eq!(larger["memory"]["grantedMB"], FLOOR_MB + 128);
    assert_eq!(daemon.sh(larger, "cat /run/word"), "mine");
    http.call(&format!("DELETE /v1/sandboxes/{}", id(larger)))
        .expect(204);

    // A checkpoint as it runs, by name.
    let here = format!("POST /v1/sandboxes/{}/checkpoints", id(parent));
    let checkpoint = http.json(&here, &json!({"name": "before"})).expect(201);
    assert_eq!(checkpoint["kind"], "sandbox");
    assert!(checkpoint["pausedUs"].as_u64().unwrap() > 0);
    assert_eq!(
        http.json(&here, &json!({"name": "before"})).error(),
        (409, "conflict".into())
    );
    assert_eq!(
        http.json(&here, &json!({"name": "../up"})).error(),
        (400, "invalid_request".into())
    );
    let again = http
        .json("POST /v1/sandboxes", &json!({"checkpoint": "before"}))
        .expect(201);
    assert_eq!(daemon.sh(&again, "cat /run/word"), "mine");

    // Its disks, booted anew at another size: what was in memory only is gone.
    daemon.sh(parent, "echo disk >/var/word");
    let booted = http
        .json(&here, &json!({"name": "booted", "finalizeMemoryMB": 256}))
        .expect(201);
    assert_eq!(
        (&booted["floorMB"], &booted["pausedUs"]),
        (&json!(256), &Value::Null)
    );
    let small = http
        .json("POST /v1/sandboxes", &json!({"checkpoint": "booted"}))
        .expect(201);
    assert_eq!(small["memory"]["grantedMB"], 256);
    assert_eq!(
        daemon.sh(&small, "cat /var/word; ls /run/word 2>&1 | wc -l"),
        "disk\n1"
    );
    assert_eq!(daemon.sh(&small, "test -e /run/word || echo gone"), "gone");
    assert_eq!(daemon.sh(parent, "cat /run/word"), "mine", "the parent runs on");

    // Checkpoints are deleted; what was forked of them runs on.
    let all = http.call("GET /v1/checkpoints").expect(200);
    assert_eq!(all["checkpoints"].as_array().unwrap().len(), 3);
    assert_eq!(http.call("DELETE /v1/checkpoints/before").status, 204);
    assert_eq!(
        http.call("GET /v1/checkpoints/before").error(),
        (404, "not_found".into())
    );
    let refused = http.json("POST /v1/sandboxes", &json!({"checkpoint": "before"}));
    assert_eq!(refused.error(), (404, "not_found".into()));
    assert_eq!(daemon.sh(&again, "cat /run/word"), "mine");

    // So are images, whose checkpoints cannot be deleted alone.
    let image = http.call(&format!("GET /v1/images/{NAME}")).expect(200);
    let of_image = image["checkpoints"][0]["id"].as_str().unwrap();
    let refused = http.call(&format!("DELETE /v1/checkpoints/{of_image}"));
    assert_eq!(refused.error(), (409, "conflict".into()));
    assert_eq!(http.call(&format!("DELETE /v1/images/{NAME}")).status, 204);
    assert_eq!(
        http.call(&format!("GET /v1/images/{NAME}")).error(),
        (404, "not_found".into())
    );
    assert_eq!(daemon.sh(&made[1], "echo on"), "on");
}

pub fn a_call_with_a_key_is_made_once() {
    let daemon = Daemon::start();
    let body = json!({"image": NAME}).to_string();
    let send = |key: &str, body: &str| {
        daemon
            .http
            .send("POST /v1/sandboxes", &[("idempotency-key", key)], body.as_bytes())
    };
    // Two at once, and one later.
    let answers = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| send("k1", &body)),
            scope.spawn(|| send("k1", &body)),
        ];
        threads.map(|thread| thread.join().unwrap())
    });
    let ids: BTreeSet<_> = answers
        .into_iter()
        .chain([send("k1", &body)])
        .map(|answer| answer.expect(201)["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        send("k1", r#"{"image":"other"}"#).error(),
        (409, "conflict".into())
    );
    assert_eq!(send("", &body).error(), (400, "invalid_request".into()));
    let other = send("k2", &body).expect(201);
    assert!(!ids.contains(id(&other)));

    // A client that hangs up and asks again is told what came of it.
    {
        use std::io::Write;
        let mut gone = daemon.http.connect();
        let text = format!(
            "POST /v1/sandboxes HTTP/1.1\r\nhost: spore\r\nidempotency-key: k3\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        gone.write_all(text.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    send("k3", &body).expect(201);
    let all = daemon.http.call("GET /v1/sandboxes").expect(200);
    assert_eq!(all["sandboxes"].as_array().unwrap().len(), 3);
}
