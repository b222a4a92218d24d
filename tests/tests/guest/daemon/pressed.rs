//! A daemon whose host has too little memory, as far as it is told: its kernel's words are ours.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use spore_tests::left;
use spore_tests::sandbox::LIMIT;

use super::Daemon;
use crate::image::{BUILDER_MB, FLOOR_MB, NAME, image};

/// In a mount namespace of its own, what the kernel says is a file in the store.
const TOLD: [&str; 6] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount --bind \"$SPORE_TESTS_STORE/pressure\" /proc/pressure/memory && exec \"$@\"",
    "sh",
];
/// What a guest has read of its disk, and keeps until somebody wants the memory, in MiB.
const CACHED_MB: u64 = 48;
/// How long a guest may take to give that up.
const GIVEN_UP: Duration = Duration::from_secs(120);

pub fn what_can_be_is_given_back_in_order_and_then_work_is_refused_until_it_is_over() {
    if !rustix::process::geteuid().is_root() || !Path::new("/proc/pressure/memory").exists() {
        println!(
            "SKIPPED: mounting something over what the kernel says of memory takes root, and that it says it"
        );
        return;
    }
    let copy = image().copy();
    let told = copy.store().root().join("pressure");
    let tell =
        |avg10: f64| std::fs::write(&told, format!("some avg10={avg10:.2}\nfull avg10=0.00\n")).unwrap();
    tell(0.0);
    let daemon = Daemon::through(copy, &TOLD);
    let http = &daemon.http;
    let host = || http.call("GET /v1/host").expect(200);
    let sandbox = daemon.create(json!({}));
    let here = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    daemon.sh(
        &sandbox,
        &format!("dd if=/dev/vda of=/dev/null bs=1M count={CACHED_MB}"),
    );
    let unique = || {
        let shown = http.call(&format!("GET {here}?usage=1")).expect(200);
        shown["usage"]["uniqueBytes"].as_u64().unwrap()
    };
    let before = unique();
    assert!(before > CACHED_MB << 20, "{before}");
    left::soon("a shell is armed", LIMIT, || host()["shells"] == 1);
    assert_eq!(host()["templates"], 1);

    let mut events = http.events("GET /v1/events", &[], &Value::Null);
    tell(42.0);
    for dropped in ["shells", "templates", "balloons"] {
        assert_eq!(events.next_of("memoryPressure")["dropped"], dropped);
        let kept = match dropped {
            "shells" => "shells",
            _ => "templates",
        };
        left::soon("it is dropped", LIMIT, || host()[kept] == 0);
    }
    left::soon("the guest has given up what it keeps", GIVEN_UP, || {
        unique() + (CACHED_MB << 18) < before
    });
    assert_eq!(events.next_of("memoryShort")["refusing"], true);

    assert_eq!(host()["memory"]["largestFitMB"], 0);
    let manifest = json!({
        "base": "busybox", "steps": [], "builderMemoryMB": BUILDER_MB, "runtimeMemoryMB": FLOOR_MB,
    });
    for (call, body) in [
        ("POST /v1/sandboxes".to_owned(), json!({"image": NAME})),
        (format!("POST {here}/fork"), json!({})),
        (format!("PATCH {here}"), json!({"memoryMB": FLOOR_MB + 128})),
        ("POST /v1/images".to_owned(), json!({"manifest": manifest})),
    ] {
        let refused = http.json(&call, &body);
        assert_eq!(refused.error(), (503, "insufficient_capacity".into()), "{call}");
        let details = &refused.json()["error"]["details"];
        assert_eq!(
            (&details["resource"], &details["fitMB"]),
            (&json!("memory"), &json!(0))
        );
    }
    assert_eq!(daemon.sh(&sandbox, "echo on"), "on", "what runs runs on");

    tell(0.0);
    assert_eq!(events.next_of("memoryShort")["refusing"], false);
    daemon.create(json!({}));
    assert!(host()["memory"]["largestFitMB"].as_u64() > Some(0));
}
