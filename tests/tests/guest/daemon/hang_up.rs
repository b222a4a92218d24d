//! Clients that hang up in the middle of what takes long.

use serde_json::{Value, json};
use spore_tests::left;
use spore_tests::sandbox::LIMIT;

use super::Daemon;

/// What the cold boot of a checkpoint is asked to have, in MiB.
const BOOTED_MB: u64 = 256;
/// What the sandbox is asked to have: seconds of growth.
const LARGE_MB: u64 = 16_384;

pub fn who_hangs_up_ends_a_checkpoint_and_a_change_of_memory() {
    let daemon = Daemon::start();
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
    let has = committed();
    let begin = |call: String, body: Value| {
        let asked = http.begin(&call, body.to_string().as_bytes());
        left::soon("it has begun", LIMIT, || committed() > has);
        asked
    };

    // Disks that are booted: the VM is ended, and all it had is gone.
    let mut events = http.events("GET /v1/events", &[], &Value::Null);
    let asked = begin(
        format!("POST {here}/checkpoints"),
        json!({"finalizeMemoryMB": BOOTED_MB, "name": "unwanted"}),
    );
    let entries = |of: &str| std::fs::read_dir(daemon.root().join(of)).unwrap().count();
    left::soon("its VM is there", LIMIT, || entries("run") == 3);
    drop(asked);
    left::soon("its promise is free", LIMIT, || committed() == has);
    left::soon("its VM is gone", LIMIT, || entries("run") <= 2);
    let refused = http.call("GET /v1/checkpoints/unwanted");
    assert_eq!(refused.error(), (404, "not_found".into()));

    // Growth: it stays with what it has got, which is what it is said to have.
    let asked = begin(format!("PATCH {here}"), json!({"memoryMB": LARGE_MB}));
    drop(asked);
    // That of the checkpoint would have come before.
    let told = loop {
        let event = events.next_data().unwrap();
        assert_ne!(event["type"], "checkpointCreated");
        if event["type"] == "sandboxResized" {
            break event["grantedMB"].as_u64().unwrap();
        }
    };
    assert!((has..LARGE_MB).contains(&told), "{told}");
    assert_eq!((granted(), committed()), (told, told));

    // And it goes on from there.
    let more = told + 128;
    let grown = http
        .json(&format!("PATCH {here}"), &json!({"memoryMB": more}))
        .expect(200);
    assert_eq!(grown["memory"]["grantedMB"], more, "{grown}");
    assert_eq!(committed(), more);
}
