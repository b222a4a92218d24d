//! Running commands: how they end, what they see, and who is killed when.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io;
use std::time::{Duration, Instant};

use spore_protocol::{ClientError, ExecDefaults, ExecEvent, ExecRequest, ExitStatus, FailureKind};
use support::{TestAgent, eventually, is_alive, pids, shell};

fn with_limit(script: &str, milliseconds: u64) -> ExecRequest {
    ExecRequest {
        time_limit_ms: Some(milliseconds),
        ..shell(script)
    }
}

fn refusal(result: Result<impl std::fmt::Debug, ClientError>) -> FailureKind {
    match result {
        Err(ClientError::Refused(failure)) => failure.kind,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn output_and_errors_come_apart_with_the_exit_code() {
    let output = TestAgent::start().sh("echo out; echo err >&2; exit 42");
    assert_eq!(output.outcome.status, ExitStatus::Code(42));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(output.outcome.oom_kills, 0);
    assert!(output.outcome.max_rss_bytes > 1024 * 1024);
}

#[test]
fn a_signal_is_not_an_exit_code() {
    let agent = TestAgent::start();
    assert_eq!(agent.sh("kill -9 $$").outcome.status, ExitStatus::Signal(9));
    assert_eq!(agent.sh("kill -TERM $$").outcome.status, ExitStatus::Signal(15));
    assert_eq!(agent.sh("exit 137").outcome.status, ExitStatus::Code(137));
}

#[test]
fn a_command_that_is_missing_or_cannot_be_executed_ends_as_in_a_shell() {
    let agent = TestAgent::start();
    let directory = agent.files();
    std::fs::write(directory.join("data"), "not a program").unwrap();
    let data = directory.join("data").to_str().unwrap().to_owned();
    let run = |name: &str| {
        agent
            .client()
            .exec_collect(&ExecRequest::new([name]), b"")
            .unwrap()
    };
    for (name, code) in [
        ("no-such-command", 127),
        ("/no/such/command", 127),
        ("/etc/passwd/x", 127),
        (data.as_str(), 126),
        ("/tmp", 126),
    ] {
        let output = run(name);
        assert_eq!(output.outcome.status, ExitStatus::Code(code), "{name}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(name),
            "{output:?}"
        );
    }
    // Not executable in one directory of PATH hides nothing in the next.
    let mut request = shell("echo $0");
    std::fs::write(directory.join("bash"), "").unwrap();
    request
        .env
        .insert("PATH".into(), format!("{}:/usr/bin:/bin", directory.display()));
    assert!(
        agent
            .client()
            .exec_collect(&request, b"")
            .unwrap()
            .outcome
            .status
            .success()
    );
}

#[test]
fn what_cannot_work_is_refused_and_the_connection_lives_on() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    assert_eq!(
        refusal(client.exec_collect(&ExecRequest::default(), b"")),
        FailureKind::InvalidArgument
    );
    let missing = ExecRequest {
        cwd: Some("/no/such/place".into()),
        ..shell("true")
    };
    assert_eq!(refusal(client.exec_collect(&missing, b"")), FailureKind::NotFound);
    let long = ExecRequest::new(["true".to_owned(), "x".repeat(200_000)]);
    assert_eq!(refusal(client.exec_collect(&long, b"")), FailureKind::TooLarge);
    assert!(
        client
            .exec_collect(&shell("true"), b"")
            .unwrap()
            .outcome
            .status
            .success()
    );
}

#[test]
fn a_command_starts_clean_in_a_session_of_its_own() {
    let agent = TestAgent::start();
    let run = |argv: &[&str]| {
        let output = agent
            .client()
            .exec_collect(&ExecRequest::new(argv.iter().copied()), b"")
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let status = run(&["cat", "/proc/self/status"]);
    for name in ["SigBlk:", "SigIgn:"] {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim();
        // From 32 up they are the C library's own, which whoever runs this test may have ignored.
        assert_eq!(
            u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff,
            0,
            "{name} {mask}"
        );
    }
    assert_eq!(
        run(&["ls", "/proc/self/fd"]),
        "0\n1\n2\n3\n",
        "its three streams, and ls its directory"
    );
    assert_eq!(run(&["pwd"]), "/\n");
    let stat = run(&["cat", "/proc/self/stat"]);
    let fields: Vec<&str> = stat.split(' ').collect();
    assert_eq!(
        (fields[4], fields[5]),
        (fields[0], fields[0]),
        "pid, process group and session"
    );
    // Nothing of the agent's own environment, and no input.
    assert_eq!(
        run(&["env"]),
        "HOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    assert!(run(&["cat"]).is_empty());
}

#[test]
fn the_time_limit_kills_the_whole_group_and_session() {
    let agent = TestAgent::start();
    let started = Instant::now();
    // A child, a grandchild, and one that job control put into a group of its own.
    let script = "sleep 1000 & echo $!; bash -c 'sleep 1000 & echo $!; wait' & \
                  set -m; sleep 1000 & echo $!; trap '' TERM; wait";
    let output = agent
        .client()
        .exec_collect(&with_limit(script, 400), b"")
        .unwrap();
    assert_eq!(output.outcome.status, ExitStatus::TimedOut);
    assert!(started.elapsed() < Duration::from_secs(5));
    let pids = pids(&output.stdout);
    assert_eq!(pids.len(), 3);
    eventually("all are dead", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_command_within_its_time_limit_is_left_alone() {
    let output = TestAgent::start()
        .client()
        .exec_collect(&with_limit("sleep 0.1; echo ok", 60_000), b"")
        .unwrap();
    assert_eq!(output.outcome.status, ExitStatus::Code(0));
}

#[test]
fn a_host_that_vanishes_takes_its_command_along() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    client
        .start_exec(&shell("echo $$; sleep 1000 & echo $!; wait"))
        .unwrap();
    let mut seen = Vec::new();
    while seen.iter().filter(|byte| **byte == b'\n').count() < 2 {
        match client.next_event().unwrap() {
            ExecEvent::Output(_, bytes) => seen.extend_from_slice(bytes),
            other => panic!("{other:?}"),
        }
    }
    let pids = pids(&seen);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    drop(client);
    eventually("both are dead", || !pids.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_background_process_that_keeps_the_output_open_does_not_hold_the_answer() {
    let agent = TestAgent::start();
    let started = Instant::now();
    let output = agent.sh("sleep 20 & echo $!");
    assert!(output.outcome.status.success());
    assert!(started.elapsed() < Duration::from_secs(5));
    // And is left running: it may be a service somebody started.
    let pid = pids(&output.stdout)[0];
    assert!(is_alive(pid));
    agent.sh(&format!("kill {pid}"));
}

#[test]
fn what_was_written_before_the_end_arrives_however_slowly_it_is_read() {
    let agent = TestAgent::start();
    let mut count = 0;
    let request = shell("sleep 3 & head -c 400000 /dev/zero; head -c 60000 /dev/zero >&2");
    let outcome = agent.client().exec(&request, &mut io::empty(), &mut |_, bytes| {
        std::thread::sleep(Duration::from_millis(60));
        count += bytes.len();
        Ok(())
    });
    assert!(outcome.unwrap().status.success());
    assert_eq!(count, 460_000);
}

#[test]
fn a_background_process_that_never_stops_writing_does_not_hold_the_answer_either() {
    let agent = TestAgent::start();
    let started = Instant::now();
    let output = agent.sh("yes & echo $! >&2");
    assert!(output.outcome.status.success());
    assert!(started.elapsed() < Duration::from_secs(10));
    let pid = pids(&output.stderr)[0];
    eventually("SIGPIPE ends it", || !is_alive(pid));
}

#[test]
fn orphans_are_reaped() {
    let agent = TestAgent::start();
    let output = agent.sh("setsid sleep 0.2 >/dev/null 2>&1 & echo $!");
    let pid = pids(&output.stdout)[0];
    eventually("it is gone without a trace", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn no_status_is_lost_when_many_run_at_once() {
    let agent = TestAgent::start();
    std::thread::scope(|scope| {
        for worker in 0..12u8 {
            let agent = &agent;
            scope.spawn(move || {
                let mut client = agent.client();
                for round in 0..15u8 {
                    let code = worker * 16 + round;
                    let request = ExecRequest::new(["sh", "-c", &format!("echo {code}; exit {code}")]);
                    let output = client.exec_collect(&request, b"").unwrap();
                    assert_eq!(output.outcome.status, ExitStatus::Code(code));
                    assert_eq!(output.stdout, format!("{code}\n").into_bytes());
                }
            });
        }
    });
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
            .unwrap()
            .count()
    };
    eventually("descriptors are closed", || descriptors() < 20);
}

/// What nobody can be told from: only root can become somebody else.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_command_runs_as_who_it_was_asked_to_and_as_nobody_more() {
    if !is_root() {
        return;
    }
    let agent = TestAgent::start();
    let run = |user: &str, script: &str| {
        let request = ExecRequest {
            user: Some(user.to_owned()),
            ..shell(script)
        };
        agent.client().exec_collect(&request, b"in").unwrap()
    };
    let who = "echo $(id -u) $(id -g) $(id -G) $HOME";
    assert_eq!(run("54321:54322", who).stdout, b"54321 54322 54322 /\n");
    assert_eq!(run("54321", who).stdout, b"54321 0 0 /\n");
    assert_eq!(run("root", "id -u; echo $HOME").stdout, b"0\n/root\n");
    // For good: real, effective, saved and file system id, and no capability is left.
    let status = String::from_utf8(run("54321:54322", "cat /proc/self/status").stdout).unwrap();
    assert!(status.contains("Uid:\t54321\t54321\t54321\t54321"), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert_ne!(
        run("54321", "cat /etc/shadow").outcome.status,
        ExitStatus::Code(0)
    );
    let reopened = run("54321", "echo out >/dev/stdout; echo err >/dev/stderr");
    assert_eq!(
        (&*reopened.stdout, &*reopened.stderr),
        (&b"out\n"[..], &b"err\n"[..])
    );

    // The agent and who comes next are who they were.
    assert_eq!(agent.sh("id -u").stdout, b"0\n");
    let private = agent.files();
    std::fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let request = ExecRequest {
        user: Some("54321".into()),
        cwd: Some(support::text(&private).to_owned()),
        ..shell("true")
    };
    assert_eq!(
        refusal(agent.client().exec_collect(&request, b"")),
        FailureKind::PermissionDenied
    );
}

#[test]
fn a_user_who_is_not_there_is_refused_and_nonsense_too() {
    let agent = TestAgent::start();
    for (user, kind) in [
        ("no-such-user", FailureKind::NotFound),
        ("0:no-such-group", FailureKind::NotFound),
        ("", FailureKind::InvalidArgument),
        ("root:", FailureKind::InvalidArgument),
    ] {
        let request = ExecRequest {
            user: Some(user.to_owned()),
            ..shell("true")
        };
        assert_eq!(
            refusal(agent.client().exec_collect(&request, b"")),
            kind,
            "{user:?}"
        );
    }
}

#[test]
fn an_images_user_and_command_are_what_runs_unless_a_request_says_otherwise() {
    let agent = TestAgent::start();
    let own = ExecRequest::default();
    assert_eq!(
        refusal(agent.client().exec_collect(&own, b"")),
        FailureKind::InvalidArgument
    );
    let user = is_root().then(|| "54321:54322".to_owned());
    let expected: &[u8] = if is_root() { b"own 54321\n" } else { b"own\n" };
    let script = if is_root() {
        "echo own $(id -u)"
    } else {
        "echo own"
    };
    let defaults = ExecDefaults {
        user,
        command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        ..ExecDefaults::default()
    };
    agent.client().set_defaults(&defaults).unwrap();
    assert_eq!(agent.client().exec_collect(&own, b"").unwrap().stdout, expected);
    let root = ExecRequest {
        user: is_root().then(|| "root".to_owned()),
        ..shell("echo other; id -u")
    };
    let output = agent.client().exec_collect(&root, b"").unwrap().stdout;
    assert!(output.starts_with(b"other\n"));
    assert!(!is_root() || output == b"other\n0\n");
}

#[test]
fn an_agent_that_is_not_pid_1_leaves_the_disk_alone() {
    let agent = TestAgent::start();
    assert_eq!(
        refusal(agent.client().grow_disk(1 << 40)),
        FailureKind::Unsupported
    );
}
