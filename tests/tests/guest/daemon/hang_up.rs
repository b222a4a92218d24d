//! Clients that hang up in the middle of what takes long.

use serde_json::{Value, json};
use spore_tests::left;
use spore_tests::sandbox::LIMIT;

use super::{Daemon, entries};
use crate::image::NAME;

/// What the cold boot of a checkpoint is asked to have, in MiB.
const BOOTED_MB: u64 = 256;
/// What the sandbox is asked to have: seconds of growth.
const LARGE_MB: u64 = 16_384;
/// What the first blocks take of the host: a sixty-fourth of them is written for their pages' descriptions.
const GROWN: u64 = 8 << 20;
/// The time limit of a command whose guest does not keep it, in seconds: longer than its beginning takes to be seen.
const LIMIT_S: u64 = 30;

pub fn who_hangs_up_ends_what_takes_long_and_who_does_not_is_told_at_the_limit() {
    let daemon = Daemon::start();
    let standing = daemon.create(json!({}));
    std::thread::scope(|scope| {
        scope.spawn(|| a_guest_that_keeps_no_limit(&daemon, &standing));
        hanging_up(&daemon);
    });
}

/// One that stands still, for one.
fn a_guest_that_keeps_no_limit(daemon: &Daemon, sandbox: &Value) {
    let here = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let http = &daemon.http;
    std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            let command =
                json!({"cmd": ["sh", "-c", "echo >/run/begun; sleep 1000"], "timeoutSeconds": LIMIT_S});
            http.json(&format!("POST {here}/exec"), &command).error()
        });
        let begun = format!("GET {here}/files?path=/run/begun");
        left::soon("it has begun", LIMIT, || http.call(&begun).status == 200);
        http.call(&format!("POST {here}/pause")).expect(200);
        assert_eq!(told.join().unwrap(), (504, "timed_out".into()));
    });
    http.call(&format!("POST {here}/resume")).expect(200);
    let running = || daemon.sh(sandbox, "grep -ls '^sleep' /proc/[0-9]*/cmdline | wc -l");
    left::soon("the command has ended", LIMIT, || running() == "0");
}

fn hanging_up(daemon: &Daemon) {
    let http = &daemon.http;
    let sandbox = daemon.create(json!({}));
    let here = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let committed = || {
        let host = http.call("GET /v1/host").expect(200);
        host["memory"]["committedMB"].as_u64().unwrap()
    };
    let granted = || {
        let shown = http.call(&format!("GET {here}")).expect(200);
        shown["memory"]["grantedMB"].as_u64().unwrap()
    };
    let unique = || {
        let shown = http.call(&format!("GET {here}?usage=1")).expect(200);
        shown["usage"]["uniqueBytes"].as_u64().unwrap()
    };
    let (has, mine) = (committed(), granted());
    let vms = || entries(&daemon.root().join("run")).len();
    // Two sandboxes, and a shell.
    let others = 3;
    let begin = |call: String, body: Value| {
        let asked = http.begin(&call, body.to_string().as_bytes());
        left::soon("it has begun", LIMIT, || committed() > has);
        asked
    };

    // A sandbox whose first command goes on.
    let asked = begin(
        "POST /v1/sandboxes".to_owned(),
        json!({"image": NAME, "exec": {"cmd": ["sleep", "1000"]}}),
    );
    drop(asked);
    left::soon("its promise is free", LIMIT, || committed() == has);
    left::soon("what there was of it is gone, and a shell there", LIMIT, || {
        vms() == others
    });

    // Disks that are booted: the VM is ended, and all it had is gone.
    let mut events = http.events("GET /v1/events", &[], &Value::Null);
    let asked = begin(
        format!("POST {here}/checkpoints"),
        json!({"finalizeMemoryMB": BOOTED_MB, "name": "unwanted"}),
    );
    left::soon("its VM is there", LIMIT, || vms() > others);
    drop(asked);
    left::soon("its promise is free", LIMIT, || committed() == has);
    left::soon("its VM is gone", LIMIT, || vms() <= others);
    let refused = http.call("GET /v1/checkpoints/unwanted");
    assert_eq!(refused.error(), (404, "not_found".into()));

    // Growth: it stays with what it has got, which is what it is said to have.
    let before = unique();
    let asked = begin(format!("PATCH {here}"), json!({"memoryMB": LARGE_MB}));
    left::soon("it has grown somewhat", LIMIT, || unique() > before + GROWN);
    drop(asked);
    // That of the checkpoint would have come before.
    let told = loop {
        let event = events.next_data().unwrap();
        assert_ne!(event["type"], "checkpointCreated");
        if event["type"] == "sandboxResized" {
            break event["grantedMB"].as_u64().unwrap();
        }
    };
    assert!(mine < told && told < LARGE_MB, "{told}");
    assert_eq!((granted(), committed()), (told, has - mine + told));

    // And it goes on from there.
    let more = told + 128;
    let grown = http
        .json(&format!("PATCH {here}"), &json!({"memoryMB": more}))
        .expect(200);
    assert_eq!(grown["memory"]["grantedMB"], more, "{grown}");
    assert_eq!(committed(), has - mine + more);
}
