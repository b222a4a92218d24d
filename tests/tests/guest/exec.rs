//! Commands in a guest, through all there is between them and the host.

use std::time::{Duration, Instant};

use spore_protocol::{
    ClientError, ExecEvent, ExecRequest, ExecWriter, ExitStatus, FailureKind, OutputStream, StdinMode,
    TtySize,
};
use spore_tests::sandbox::shell;

use crate::image::image;

pub fn standard_output_and_error_are_apart_and_the_exit_code_is_the_commands() {
    let mut fork = image().fork();
    let output = fork.exec(&shell("echo out; echo err >&2; echo more; exit 7"));
    assert_eq!(output.outcome.status, ExitStatus::Code(7));
    assert_eq!(output.stdout, b"out\nmore\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.outcome.oom_kills, 0);
}

pub fn a_command_that_does_not_exist_exits_with_127() {
    let mut fork = image().fork();
    let output = fork.exec(&ExecRequest::new(["no-such-command", "--help"]));
    assert_eq!(output.outcome.status, ExitStatus::Code(127));
    assert_eq!(output.stdout, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no-such-command"), "{said}");
    let output = fork.exec(&ExecRequest::new(["/opt/proof"]));
    assert_eq!(
        output.outcome.status,
        ExitStatus::Code(126),
        "it cannot be executed"
    );
}

pub fn a_signal_that_ends_a_command_is_told() {
    let mut fork = image().fork();
    for signal in [9, 15] {
        let output = fork.exec(&shell(&format!("echo before; kill -{signal} $$; echo after")));
        assert_eq!(output.outcome.status, ExitStatus::Signal(signal));
        assert_eq!(output.stdout, b"before\n");
    }
}

pub fn a_time_limit_ends_the_whole_group() {
    let mut fork = image().fork();
    // What its programs take to start: a guest's kernel may be interpreted, beside others.
    let started = Instant::now();
    fork.sh("echo begun; sleep 0 & sleep 0 | cat");
    let limit = Duration::from_secs(3) + 4 * started.elapsed();
    let mut request = shell("echo begun; sleep 1111 & sleep 1111 | cat; echo after");
    request.time_limit_ms = Some(u64::try_from(limit.as_millis()).unwrap());
    let started = Instant::now();
    let output = fork.exec(&request);
    assert_eq!(output.outcome.status, ExitStatus::TimedOut);
    assert_eq!(output.stdout, b"begun\n");
    assert!(started.elapsed() > limit);
    assert_eq!(fork.sh("pidof sleep || true"), "");
}

pub fn a_megabyte_of_output_arrives_whole() {
    let mut fork = image().fork();
    let output = fork.exec(&shell("seq 1 170000; echo done >&2"));
    let expected: String = (1..=170_000).map(|number| format!("{number}\n")).collect();
    assert!(expected.len() > 1 << 20);
    assert_eq!(output.stdout.len(), expected.len());
    assert!(output.stdout == expected.as_bytes());
    assert_eq!(output.stderr, b"done\n");
}

pub fn standard_input_reaches_the_command() {
    let mut fork = image().fork();
    // More than may be on the way at once.
    let input: Vec<u8> = (0..200_000u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    let output = fork
        .agent
        .exec_collect(&ExecRequest::new(["cat"]), &input)
        .unwrap();
    assert!(output.outcome.status.success());
    assert!(output.stdout == input);
    // Without any, there is nothing to wait for.
    let output = fork.exec(&shell("cat; echo end"));
    assert_eq!(output.stdout, b"end\n");
}

pub fn what_a_request_says_goes_before_the_images_defaults() {
    let mut fork = image().fork();
    let mut request = shell("echo \"$LEVEL $GREETING $OWN\"; pwd");
    let output = fork.exec(&request);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "2 hello, wörld \"$HOME\" \n/srv/work\n"
    );
    request.env = [("LEVEL", "3"), ("OWN", "a=b c")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    request.cwd = Some("/opt/tree".into());
    let output = fork.exec(&request);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "3 hello, wörld \"$HOME\" a=b c\n/opt/tree\n"
    );
    request.cwd = Some("/nowhere".into());
    let error = fork.agent.exec_collect(&request, b"").unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

pub fn a_command_runs_as_who_is_asked_and_without_one_the_images_own_runs() {
    let mut fork = image().fork();
    let who = |user: &str| ExecRequest {
        user: Some(user.to_owned()),
        cwd: Some("/".to_owned()),
        ..shell("echo $(id -u):$(id -g) $HOME; cat /etc/shadow || touch /x || echo no")
    };
    let says = |output: spore_protocol::ExecOutput| String::from_utf8(output.stdout).unwrap();
    assert_eq!(says(fork.exec(&who("nobody"))), "65534:65534 /nonexistent\nno\n");
    assert_eq!(says(fork.exec(&who("4000:100"))), "4000:100 /\nno\n");
    match fork.agent.exec_collect(&who("somebody"), b"") {
        Err(ClientError::Refused(failure)) => assert_eq!(failure.kind, FailureKind::NotFound),
        other => panic!("{other:?}"),
    }
    let own = ExecRequest::default();
    match fork.agent.exec_collect(&own, b"") {
        Err(ClientError::Refused(failure)) => assert_eq!(failure.kind, FailureKind::InvalidArgument),
        other => panic!("{other:?}"),
    }
    let mut defaults = fork.agent.get_defaults().unwrap();
    defaults.user = Some("nobody".to_owned());
    defaults.command = ["id", "-un"].map(str::to_owned).into();
    fork.agent.set_defaults(&defaults).unwrap();
    assert_eq!(says(fork.exec(&own)), "nobody\n");
    let [mut child] = <[_; 1]>::try_from(fork.live_fork(image().store(), 1))
        .ok()
        .unwrap();
    assert_eq!(says(child.exec(&own)), "nobody\n");
    assert_eq!(
        says(child.exec(&ExecRequest {
            user: Some("root".into()),
            ..own
        })),
        "root\n"
    );
}

pub fn a_command_can_have_a_terminal() {
    let mut fork = image().fork();
    let request = ExecRequest {
        stdin: StdinMode::Piped,
        tty: Some(TtySize { rows: 33, cols: 121 }),
        ..shell(
            "test -t 0 && tty && stty size && echo $TERM >/dev/tty; read line; echo \"<$line>\"; stty size; sleep 1111",
        )
    };
    fork.agent.start_exec(&request).unwrap();
    let mut typing = ExecWriter::new(fork.agent.stream().try_clone().unwrap());
    let mut screen = String::new();
    let (mut typed, mut interrupted) = (false, false);
    let status = loop {
        match fork.agent.next_event().unwrap() {
            ExecEvent::Output(stream, bytes) => {
                assert_eq!(stream, OutputStream::Stdout);
                screen.push_str(&String::from_utf8_lossy(bytes));
            }
            ExecEvent::StdinAck(_) => {}
            ExecEvent::Exited(outcome) => break outcome.status,
        }
        if !typed && screen.ends_with("xterm-256color\r\n") {
            typed = true;
            typing.resize(TtySize { rows: 50, cols: 200 }).unwrap();
            typing.stdin(b"a line\r").unwrap();
        }
        if !interrupted && screen.ends_with("50 200\r\n") {
            interrupted = true;
            typing.stdin(b"\x03").unwrap();
        }
    };
    let said = "/dev/pts/0\r\n33 121\r\nxterm-256color\r\na line\r\n<a line>\r\n50 200\r\n^C";
    assert_eq!(screen, said);
    assert!(
        matches!(status, ExitStatus::Signal(2) | ExitStatus::Code(130)),
        "{status:?}"
    );
    // The next has the same terminal again, and ends with its input.
    let request = ExecRequest {
        argv: ["sh", "-c", "tty; stty -echo; cat; exit 5"]
            .map(str::to_owned)
            .into(),
        ..request
    };
    let output = fork.agent.exec_collect(&request, b"").unwrap();
    assert_eq!(output.outcome.status, ExitStatus::Code(5));
    assert!(output.stdout.starts_with(b"/dev/pts/0\r\n"), "{output:?}");
    assert_eq!(fork.sh("ls /dev/pts; pidof sleep || true"), "ptmx");
}

pub fn a_full_disk_is_said_to_be_full_and_can_be_cleared() {
    let mut fork = image().fork();
    // Takes all there is and fails for the rest; nothing of it is written on the host.
    let output = fork.exec(&shell(
        "fallocate -l 16G /var/fill; dd if=/dev/zero of=/var/rest bs=64k",
    ));
    assert!(!output.outcome.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    match fork.agent.write_file("/var/file", None, &mut &[7; 100_000][..]) {
        Err(ClientError::Refused(failure)) => {
            assert_eq!(failure.kind, FailureKind::NoSpace);
            assert!(failure.message.contains("/var/file"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fork.get("/var/file"), None, "all or nothing");
    assert_eq!(fork.sh("cat /opt/proof"), "a file");
    fork.sh("rm /var/fill /var/rest && sync");
    fork.put("/var/file", [7; 100_000]);
    assert_eq!(fork.get("/var/file").unwrap(), [7; 100_000]);
}
