//! The builder, end to end.

use std::time::{Duration, Instant};

use serde_json::json;
use spore_builder::observe::BuildEvent;
use spore_builder::{BuildError, ErrorCode, Host, Manifest, Options};
use spore_snapshot::checkpoint::CheckpointKind;
use spore_tests::data::Scratch;
use spore_tests::sandbox::Sandbox;
use spore_tests::{hold, host, left};
use spore_vmm::guest::GuestError;
use spore_vmm::process::VmError;

use crate::image::{BUILDER_MB, FLOOR_MB, NAME, On, fails, hold_step, image, manifest, proofs, run_step};

/// The least memory a VM can have, and so the one that boots fastest, in MiB.
const LEAST: u32 = 256;

fn host_in(scratch: &Scratch) -> Host {
    Host::open(scratch.path(), &host::cache(), None).unwrap()
}

/// Nothing is there but the disks after steps that succeeded.
pub fn assert_nothing_was_built(host: &Host) {
    assert_eq!(left::in_store(host.store().root()), [""; 0]);
    let mut layers = host.store().list_layers().unwrap();
    let steps = host.store().list_steps().unwrap();
    layers.retain(|layer| !steps.iter().any(|step| step.entry.layers.contains(layer)));
    assert_eq!(layers, []);
    assert!(host.store().list_checkpoints().unwrap().is_empty());
    assert!(host.store().list_images().unwrap().is_empty());
}

/// Kills the one VM of a store, which may still have to be started.
fn kill_vm_of(host: &Host) {
    let started = Instant::now();
    loop {
        if let [vm] = left::vms_using(host.store().root())[..] {
            return left::kill(vm);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "no VM is there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn assert_gone(error: &BuildError) {
    match error {
        BuildError::Guest(GuestError::Vm(VmError::Gone { status, .. })) => {
            assert!(status.contains("SIGKILL"), "{status}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error.code(), ErrorCode::Internal);
}

pub fn equal_builds_at_once_run_once_and_all_get_the_result() {
    let image = image();
    let [first, second] = &image.builds;
    assert_eq!(first.checkpoint, second.checkpoint);
    assert_eq!(first.image.record, second.image.record);
    let (ran, ran_events, waited, waited_events) = match first.build.is_some() {
        true => (first, &image.events[0], second, &image.events[1]),
        false => (second, &image.events[1], first, &image.events[0]),
    };
    assert!(ran.build.is_some() && ran.finalize.is_some());
    assert_eq!((waited.build, waited.finalize), (None, None));
    assert_eq!(waited_events[..], ["Waiting", "DisksCached"]);

    // And the one that ran said what it did.
    let kinds: Vec<_> = ran_events
        .iter()
        .map(|event| event.split(' ').next().unwrap())
        .collect();
    let mut expected = vec!["Booting", "Booted"];
    expected.extend(["StepStarted", "StepDone"].repeat(7));
    expected.extend(["Sealed", "Finalizing", "Settled", "Checkpointed"]);
    assert_eq!(kinds, expected);
    assert!(
        ran_events[0].contains(&BUILDER_MB.to_string()),
        "{}",
        ran_events[0]
    );
    assert_eq!(image.output, "a step was here\n");
}

pub fn every_step_of_a_build_shows_in_a_fork() {
    let image = image();
    let record = &image.builds[0].image.record;
    assert_eq!(record.builder_memory_mb, BUILDER_MB);
    assert_eq!(record.disk_layers.len(), 1 + 7, "the base, and one a step");
    assert_eq!(record.checkpoints.len(), 1);
    assert_eq!(record.checkpoints[0].floor_mb, FLOOR_MB);
    let manifest = image.store().manifest(&image.checkpoint()).unwrap();
    assert_eq!(
        (manifest.kind, manifest.floor_mb, manifest.vcpus),
        (CheckpointKind::Image, FLOOR_MB, 1)
    );
    assert_eq!(
        manifest.annotations["contentHash"],
        proofs(FLOOR_MB).content_hash().to_string()
    );

    let mut fork = image.fork();
    assert_eq!(fork.get("/opt/proof").unwrap(), b"a file\n");
    let every_byte: Vec<u8> = (0..=255).collect();
    assert_eq!(fork.get("/opt/tree/bytes").unwrap(), every_byte);
    assert_eq!(
        fork.sh("cat greeting"),
        "hello, wörld \"$HOME\"",
        "written in the working directory"
    );
    assert_eq!(fork.sh("cat /srv/work/script"), "script: ran");
    assert_eq!(
        fork.sh("pwd; echo $GREETING; echo $LEVEL"),
        "/srv/work\nhello, wörld \"$HOME\"\n2"
    );
    let modes = "stat -c '%a %U %n' /opt/proof /opt/tree/bytes /opt/tree/deep/er/script /srv/work";
    assert_eq!(
        fork.sh(modes),
        "640 root /opt/proof\n644 root /opt/tree/bytes\n755 root /opt/tree/deep/er/script\n755 root /srv/work"
    );
    assert!(fork.agent.integrity().unwrap().intact);
}

pub fn the_second_build_is_answered_from_the_store() {
    let image = image();
    let mut events = Vec::new();
    let mut observer = On(|event: BuildEvent<'_>| events.push(format!("{event:?}")));
    let again =
        spore_builder::build(&image.host, &proofs(FLOOR_MB), &Options::offline(), &mut observer).unwrap();
    assert_eq!((again.build, again.finalize), (None, None));
    assert_eq!(again.checkpoint, image.checkpoint());
    assert_eq!(events, ["DisksCached"]);
    let names: Vec<_> = again.image.names.iter().map(|name| name.as_str()).collect();
    assert_eq!(names, [NAME]);
}

pub fn a_build_that_is_killed_or_cancelled_leaves_nothing_and_can_be_tried_again() {
    let scratch = Scratch::new();
    let host = host_in(&scratch);
    let manifest = manifest(
        None,
        LEAST,
        LEAST,
        &[run_step("echo begun; sleep 1; echo done >/opt/done")],
    );

    std::thread::scope(|scope| {
        let mut killer = On(|event: BuildEvent<'_>| {
            if let BuildEvent::Booting { .. } = event {
                scope.spawn(|| kill_vm_of(&host));
            }
        });
        assert_gone(&fails(&host, &manifest, &mut killer));
    });
    assert_nothing_was_built(&host);

    // Or it is cancelled, as Ctrl-C does.
    let options = Options::offline();
    let mut canceller = On(|event: BuildEvent<'_>| {
        if let BuildEvent::Output(_) = event {
            options.cancel.cancel();
        }
    });
    let error = spore_builder::build(&host, &manifest, &options, &mut canceller).unwrap_err();
    assert_eq!((error.code().as_str(), error.exit_code()), ("cancelled", 130));
    assert_nothing_was_built(&host);

    let built = spore_builder::build(
        &host,
        &manifest,
        &Options::offline(),
        &mut On(|_: BuildEvent<'_>| {}),
    )
    .unwrap();
    assert!(built.build.is_some() && built.finalize.is_some());
    let mut fork = Sandbox::fork(host.store(), &built.checkpoint);
    assert_eq!(fork.get("/opt/done").unwrap(), b"done\n");
    drop(fork);
    assert_eq!(left::in_store(host.store().root()), [""; 0]);
}

pub fn a_finalize_whose_vm_is_killed_leaves_nothing_and_another_floor_only_finalizes() {
    let image = image();
    let copy = image.copy();
    let host = &copy.host;
    let manifest = proofs(LEAST);
    let before = host.store().list_images().unwrap();
    let assert_nothing_new = || {
        assert_eq!(left::in_store(host.store().root()), [""; 0]);
        assert_eq!(
            host.store().list_layers().unwrap().len(),
            7 + 1,
            "of the steps and of the checkpoint"
        );
        assert_eq!(host.store().list_checkpoints().unwrap().len(), 1);
        assert_eq!(host.store().list_images().unwrap(), before);
    };
    assert_nothing_new();

    std::thread::scope(|scope| {
        let mut killer = On(|event: BuildEvent<'_>| {
            if let BuildEvent::Finalizing { .. } = event {
                scope.spawn(|| kill_vm_of(host));
            }
        });
        assert_gone(&fails(host, &manifest, &mut killer));
    });
    assert_nothing_new();

    // At rest, and about to be written.
    let mut killer = On(|event: BuildEvent<'_>| {
        if let BuildEvent::Settled { .. } = event {
            kill_vm_of(host);
        }
    });
    assert_gone(&fails(host, &manifest, &mut killer));
    assert_nothing_new();

    let mut events = Vec::new();
    let mut observer = On(|event: BuildEvent<'_>| events.push(format!("{event:?}")));
    let built = spore_builder::build(host, &manifest, &Options::offline(), &mut observer).unwrap();
    assert!(built.build.is_none() && built.finalize.is_some());
    assert_eq!(events[0], "DisksCached");
    assert!(events[1].starts_with("Finalizing"), "{events:?}");
    assert_ne!(built.checkpoint, image.checkpoint());
    let floors = |built: &spore_builder::Built| -> Vec<u32> {
        let checkpoints = built.image.record.checkpoints.iter();
        checkpoints.map(|checkpoint| checkpoint.floor_mb).collect()
    };
    assert_eq!(floors(&built), [FLOOR_MB, LEAST]);
    let again = spore_builder::build(
        host,
        &manifest,
        &Options::offline(),
        &mut On(|_: BuildEvent<'_>| {}),
    )
    .unwrap();
    assert_eq!((again.build, again.finalize), (None, None));
    assert_eq!(again.checkpoint, built.checkpoint);
    // The floor that was there before is the other one's still.
    let other = spore_builder::build(
        host,
        &proofs(FLOOR_MB),
        &Options::offline(),
        &mut On(|_: BuildEvent<'_>| {}),
    )
    .unwrap();
    assert_eq!((other.checkpoint, other.finalize), (image.checkpoint(), None));

    let mut fork = Sandbox::fork(host.store(), &built.checkpoint);
    assert_eq!(fork.get("/opt/proof").unwrap(), b"a file\n");
    let total = fork.agent.status().unwrap().mem_total_bytes >> 20;
    assert!((200..u64::from(LEAST)).contains(&total), "{total}");
}

pub fn a_step_that_fails_is_named_with_the_end_of_its_output() {
    let scratch = Scratch::new();
    let host = host_in(&scratch);
    let steps = [
        run_step("echo >/once"),
        run_step("seq 100 240; echo the cause >&2; exit 3"),
        run_step("touch /never"),
    ];
    let mut started = 0;
    let mut observer = On(|event: BuildEvent<'_>| {
        if let BuildEvent::StepStarted { .. } = event {
            started += 1;
        }
    });
    let error = fails(&host, &manifest(None, LEAST, LEAST, &steps), &mut observer);
    assert_eq!(started, 2, "the third did not run");
    assert!(
        matches!(error, BuildError::StepFailed { step: 1, .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), ErrorCode::BuildFailed);
    let text = error.to_string();
    assert!(text.starts_with("steps[1] (seq 100 240"), "{text}");
    for part in ["exit code 3", "\n  the cause", "\n  240"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("\n  101\n"), "only the end of it: {text}");
    assert_nothing_was_built(&host);

    // Mended, it goes on after its last good step; and a step that takes too long is ended.
    let mended = [steps[0].clone(), run_step("sleep 60")];
    let mut events = Vec::new();
    let mut observer = On(|event: BuildEvent<'_>| events.push(format!("{event:?}")));
    let options = Options {
        step_limit: Duration::from_secs(1),
        ..Options::offline()
    };
    let result = spore_builder::build(
        &host,
        &manifest(None, LEAST, LEAST, &mended),
        &options,
        &mut observer,
    );
    let text = result.unwrap_err().to_string();
    assert!(text.contains("longer than the 1 s"), "{text}");
    assert!(events[0].starts_with("StepCached { step: 0"), "{events:?}");
    assert_nothing_was_built(&host);
}

pub fn a_step_that_runs_out_of_memory_names_the_field_to_raise() {
    let scratch = Scratch::new();
    let host = host_in(&scratch);
    let steps = [hold_step(), run_step(&format!("{} 300 1 /none", hold::PATH))];
    let error = fails(
        &host,
        &manifest(None, LEAST, LEAST, &steps),
        &mut On(|_: BuildEvent<'_>| {}),
    );
    assert!(
        matches!(error, BuildError::OutOfMemory { step: 1, .. }),
        "{error:?}"
    );
    assert_eq!(error.code(), ErrorCode::BuildOom);
    let text = error.to_string();
    assert!(text.contains("steps[1]"), "{text}");
    assert!(text.contains("builderMemoryMB 256"), "{text}");
    assert_nothing_was_built(&host);
}

pub fn a_step_that_fills_the_disk_names_the_field_to_raise_and_can_be_tried_again() {
    let scratch = Scratch::new();
    let host = host_in(&scratch);
    let on_disk = |disk_mb: u64| {
        let json = json!({
            "base": "busybox",
            "steps": [run_step("echo small >/small"), run_step("fallocate -l 5000M /large")],
            "builderMemoryMB": LEAST,
            "runtimeMemoryMB": LEAST,
            "diskMB": disk_mb,
        });
        Manifest::parse(json.to_string().as_bytes(), &host::limits()).unwrap()
    };
    let error = fails(&host, &on_disk(4096), &mut On(|_: BuildEvent<'_>| {}));
    assert!(
        matches!(
            error,
            BuildError::DiskFull {
                step: 1,
                disk_mb: 4096,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.code(), ErrorCode::BuildDiskFull);
    let text = error.to_string();
    assert!(text.contains("diskMB 4096"), "{text}");
    assert!(
        text.contains("\n  fallocate: "),
        "in the program's own words: {text}"
    );
    assert_nothing_was_built(&host);
    assert_eq!(host.store().list_steps().unwrap().len(), 1);

    let built = spore_builder::build(
        &host,
        &on_disk(6144),
        &Options::offline(),
        &mut On(|_: BuildEvent<'_>| {}),
    );
    let mut fork = Sandbox::fork(host.store(), &built.unwrap().checkpoint);
    assert_eq!(fork.sh("cat /small; stat -c %s /large"), "small\n5242880000");
}

pub fn a_step_that_replaces_init_is_refused() {
    let scratch = Scratch::new();
    let host = host_in(&scratch);
    // Boots, and is the agent but for a byte at its end.
    let steps = [run_step(
        "cp /usr/lib/spore/agent /sbin/new && echo >>/sbin/new && mv /sbin/new /sbin/init",
    )];
    let error = fails(
        &host,
        &manifest(None, LEAST, LEAST, &steps),
        &mut On(|_: BuildEvent<'_>| {}),
    );
    assert!(matches!(error, BuildError::NotIntact { .. }), "{error:?}");
    assert_eq!(error.code(), ErrorCode::BuildFailed);
    let text = error.to_string();
    assert!(text.contains("after steps[0] (run cp "), "{text}");
    assert!(text.contains("/sbin/init is another program"), "{text}");
    assert_nothing_was_built(&host);
    assert_eq!(left::in_store(host.store().root()), [""; 0]);
    assert!(host.store().list_images().unwrap().is_empty());
    assert!(host.store().list_checkpoints().unwrap().is_empty());
}
