//! Commands with a terminal.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use spore_protocol::{
    AgentClient, ClientError, ExecEvent, ExecOutcome, ExecRequest, ExecWriter, ExitStatus, FailureKind,
    OutputStream, StdinMode, TtySize,
};
use support::{TestAgent, eventually, is_alive, pids, shell};

const SIZE: TtySize = TtySize { rows: 33, cols: 121 };

fn on_terminal(script: &str) -> ExecRequest {
    ExecRequest {
        stdin: StdinMode::Piped,
        tty: Some(SIZE),
        ..shell(script)
    }
}

/// Somebody at a terminal.
struct Person {
    client: AgentClient<UnixStream>,
    writer: ExecWriter<UnixStream>,
    seen: Vec<u8>,
    acknowledged: usize,
}

impl Person {
    fn start(agent: &TestAgent, request: &ExecRequest) -> Self {
        let mut client = agent.client();
        client.start_exec(request).unwrap();
        let writer = ExecWriter::new(client.stream().try_clone().unwrap());
        Self {
            client,
            writer,
            seen: Vec::new(),
            acknowledged: 0,
        }
    }

    fn types(&mut self, text: &str) {
        self.writer.stdin(text.as_bytes()).unwrap();
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    fn look(&mut self) -> Option<ExecOutcome> {
        match self.client.next_event().unwrap() {
            ExecEvent::Output(stream, bytes) => {
                assert_eq!(stream, OutputStream::Stdout);
                self.seen.extend_from_slice(bytes);
            }
            ExecEvent::StdinAck(count) => self.acknowledged += count as usize,
            ExecEvent::Exited(outcome) => return Some(outcome),
        }
        None
    }

    /// Waits until `text` is on the screen.
    fn sees(&mut self, text: &str) {
        while !self.screen().contains(text) {
            assert_eq!(self.look(), None, "{:?} and no {text:?}", self.screen());
        }
    }

    /// Waits for the end, and says how and what was on the screen.
    fn end(mut self) -> (ExitStatus, String) {
        let outcome = loop {
            if let Some(outcome) = self.look() {
                break outcome;
            }
        };
        self.client.ping().unwrap();
        (outcome.status, self.screen())
    }
}

fn run(agent: &TestAgent, script: &str) -> (ExitStatus, String) {
    Person::start(agent, &on_terminal(script)).end()
}

/// How many descriptors of terminals the agent has.
fn terminals(agent: &TestAgent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.starts_with("/dev/pts") || target.starts_with("/dev/ptmx"))
        .count()
}

/// How many threads the agent has.
fn threads(agent: &TestAgent) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", agent.pid()))
        .unwrap()
        .count()
}

#[test]
fn a_command_has_its_own_terminal_on_all_three_streams() {
    let agent = TestAgent::start();
    let script = "test -t 0 && test -t 1 && test -t 2 && tty && echo to the terminal >/dev/tty; \
                  echo errors too >&2; ps -o pid=,pgid=,sid=,tpgid= -p $$; ls /proc/self/fd; \
                  stty -a | grep -o ' iutf8'; echo $TERM; exit 42";
    let (status, screen) = run(&agent, script);
    assert_eq!(status, ExitStatus::Code(42), "{screen}");
    let mut lines = screen.split("\r\n");
    let name = lines.next().unwrap();
    let number = name.strip_prefix("/dev/pts/").unwrap();
    assert!(number.parse::<u32>().is_ok(), "{name}");
    assert_eq!(lines.next(), Some("to the terminal"));
    assert_eq!(lines.next(), Some("errors too"));
    let ids: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(ids.len(), 4);
    assert!(
        ids.iter().all(|id| *id == ids[0]),
        "process, group, session, foreground: {ids:?}"
    );
    let rest: Vec<&str> = lines.collect();
    assert_eq!(rest, ["0  1  2  3", " iutf8", "xterm-256color", ""]);
    // Without one there is none.
    assert_eq!(
        agent
            .sh("tty; test -e /dev/tty && : 2>/dev/null >/dev/tty || echo none")
            .stdout,
        b"not a tty\nnone\n"
    );
}

#[test]
fn the_size_is_what_was_asked_and_follows_a_resize() {
    let agent = TestAgent::start();
    let script = "stty size; trap 'echo now $(stty size)' WINCH; echo ready; \
                  until read -t 0.1 -r; do :; done; echo last $(stty size)";
    let mut person = Person::start(&agent, &on_terminal(script));
    person.sees("ready");
    assert!(person.screen().starts_with("33 121\r\n"), "{}", person.screen());
    person.writer.resize(TtySize { rows: 4096, cols: 1 }).unwrap();
    person.sees("now 4096 1\r\n");
    // bash forgets a signal that comes while its trap still runs.
    person.writer.resize(TtySize { rows: 7, cols: 9 }).unwrap();
    person.types("\r");
    let (status, screen) = person.end();
    assert!(status.success());
    assert!(screen.ends_with("last 7 9\r\n"), "{screen}");
}

#[test]
fn a_size_that_no_terminal_has_is_refused_before_anything_runs() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let mark = agent.files().join("mark");
    for (rows, cols) in [(0, 1), (1, 0), (4097, 1), (1, 65535)] {
        let size = TtySize { rows, cols };
        let request = ExecRequest {
            tty: Some(size),
            ..shell(&format!("touch {}", mark.display()))
        };
        match client.exec_collect(&request, b"") {
            Err(ClientError::Refused(failure)) => assert_eq!(failure.kind, FailureKind::InvalidArgument),
            other => panic!("{other:?}"),
        }
        let mut writer = ExecWriter::new(Vec::new());
        assert!(matches!(writer.resize(size), Err(ClientError::Refused(_))));
    }
    assert!(!mark.exists());
}

#[test]
fn a_resize_that_cannot_be_changes_nothing() {
    let agent = TestAgent::start();
    let mut person = Person::start(&agent, &on_terminal("echo ready; read -r; stty size"));
    person.sees("ready");
    for size in [TtySize { rows: 0, cols: 5 }, TtySize { rows: 5, cols: 5000 }] {
        let mut frame = Vec::new();
        spore_protocol::frame::encode(&spore_protocol::HostFrame::Resize(size), &mut frame).unwrap();
        std::io::Write::write_all(&mut person.client.stream(), &frame).unwrap();
    }
    person.types("\n");
    let (status, screen) = person.end();
    assert!(status.success() && screen.ends_with("33 121\r\n"), "{screen}");
    // And one for a command without a terminal, nothing either.
    let without = ExecRequest {
        tty: None,
        ..on_terminal("read -r")
    };
    let mut person = Person::start(&agent, &without);
    person.writer.resize(SIZE).unwrap();
    person.types("\n");
    assert_eq!(person.end().0, ExitStatus::Code(0));
}

#[test]
fn control_c_interrupts_what_is_in_the_foreground() {
    let agent = TestAgent::start();
    let mut person = Person::start(&agent, &on_terminal("echo ready; exec sleep 1000"));
    person.sees("ready");
    person.types("\x03");
    let (status, screen) = person.end();
    assert_eq!(status, ExitStatus::Signal(2));
    assert_eq!(screen, "ready\r\n^C");
    // With job control, what is in the foreground is not the shell.
    let job = "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let script = format!("set -m; bash -c \"{job}\"; echo it was $?; exit 7");
    let mut person = Person::start(&agent, &on_terminal(&script));
    person.sees("ready");
    person.types("\x03");
    let (status, screen) = person.end();
    assert_eq!(status, ExitStatus::Code(7));
    assert!(screen.contains("it was 9"), "{screen}");
}

#[test]
fn a_signal_goes_to_the_foreground() {
    let agent = TestAgent::start();
    let script = "trap 'echo not me' TERM; set -m; bash -c 'echo ready; exec sleep 1000'; echo \"it was $?\"";
    let mut person = Person::start(&agent, &on_terminal(script));
    person.sees("ready");
    person.writer.signal(15).unwrap();
    let (status, screen) = person.end();
    assert!(status.success());
    assert!(screen.contains("it was 143"), "{screen}");
    assert!(!screen.contains("not me"), "{screen}");
}

#[test]
fn a_signal_goes_to_the_command_if_nobody_is_in_the_foreground() {
    let agent = TestAgent::start();
    // The foreground is a group whose only process has ended.
    let script = "use POSIX; $| = 1; $SIG{TERM} = sub { print 'me'; exit 3 }; my $child = fork; \
                  if (!$child) { setpgid(0, 0); exit 0 } setpgid($child, $child); \
                  POSIX::tcsetpgrp(0, $child) or die; waitpid $child, 0; print 'ready'; sleep 1 while 1";
    let request = ExecRequest {
        argv: ["perl", "-e", script].map(str::to_owned).into(),
        ..on_terminal("")
    };
    let mut person = Person::start(&agent, &request);
    person.sees("ready");
    person.writer.signal(15).unwrap();
    assert_eq!(person.end(), (ExitStatus::Code(3), "readyme".to_owned()));
}

#[test]
fn the_end_of_input_ends_a_line_that_has_begun_too() {
    let agent = TestAgent::start();
    for (typed, shown) in [("", ""), ("line\n", "line\r\nline\r\n"), ("begun", "begunbegun")] {
        let mut person = Person::start(&agent, &on_terminal("exec cat"));
        if !typed.is_empty() {
            person.types(typed);
        }
        person.writer.stdin_eof().unwrap();
        let (status, screen) = person.end();
        assert!(status.success(), "{typed:?}");
        // The terminal echoes ^D as those two and goes back over them.
        let screen = screen.replace("^D\x08\x08", "");
        assert_eq!(screen, shown, "{typed:?}");
    }
    // As typed by hand.
    let mut person = Person::start(&agent, &on_terminal("cat; cat; echo end"));
    person.types("one\n\x04two\n\x04");
    assert!(person.end().1.ends_with("end\r\n"));
    // And whatever the character is.
    let mut person = Person::start(&agent, &on_terminal("stty eof Z; echo ready; exec cat"));
    person.sees("ready");
    person.writer.stdin_eof().unwrap();
    assert!(person.end().0.success());
}

#[test]
fn input_from_one_thread_works_as_through_a_pipe() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let request = on_terminal("stty -echo -opost; echo ready; sha256sum");
    let lines = "a line of a few words\n".repeat(200_000);
    let output = client.exec_collect(&request, lines.as_bytes()).unwrap();
    assert!(output.outcome.status.success());
    assert!(output.stderr.is_empty());
    let expected = agent.client().exec_collect(
        &ExecRequest {
            stdin: StdinMode::Piped,
            ..shell("sha256sum")
        },
        lines.as_bytes(),
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let sum = String::from_utf8(expected.unwrap().stdout).unwrap();
    assert!(
        said.ends_with(&sum),
        "{sum} and {}",
        &said[said.len().saturating_sub(200)..]
    );
}

#[test]
fn ten_megabytes_come_through_whole() {
    let agent = TestAgent::start();
    let script = "stty -opost; i=0; while [ $i -lt 10 ]; do seq -w 1 131072; i=$((i + 1)); done; echo end";
    let (status, screen) = run(&agent, script);
    assert!(status.success());
    let block: String = (1..=131_072).map(|number| format!("{number:06}\n")).collect();
    assert_eq!(screen.len(), block.len() * 10 + 4);
    assert!(screen == block.repeat(10) + "end\n");
}

#[test]
fn ten_megabytes_both_ways_at_once_do_not_deadlock() {
    const BYTES: usize = 10 * 1024 * 1024;
    let agent = TestAgent::start();
    let mut person = Person::start(
        &agent,
        &on_terminal(&format!("stty raw -echo; echo ready; exec head -c {BYTES}")),
    );
    person.sees("ready\n");
    let pattern: Vec<u8> = (0..BYTES)
        .map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap())
        .collect();
    let stream = person.client.stream().try_clone().unwrap();
    let typed = pattern.clone();
    let typing = std::thread::spawn(move || ExecWriter::new(stream).stdin(&typed).unwrap());
    while person.look().is_none() {}
    typing.join().unwrap();
    assert_eq!(person.seen.len(), "ready\n".len() + BYTES);
    assert!(person.seen["ready\n".len()..] == pattern);
    assert_eq!(person.acknowledged, BYTES);
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak_kib: usize = peak.unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kib < 16 * 1024, "the agent grew to {peak_kib} KiB");
}

#[test]
fn a_conversation_with_a_command_is_echoed_and_answered() {
    let agent = TestAgent::start();
    let mut person = Person::start(
        &agent,
        &on_terminal("while read -r -p '$ ' line; do echo \"<$line>\"; done; exit 3"),
    );
    for round in 0..50 {
        person.sees("$ ");
        person.seen.clear();
        person.types(&format!("round {round}\r"));
        person.sees(&format!("<round {round}>\r\n"));
        assert!(
            person.screen().starts_with(&format!("round {round}\r\n<")),
            "{}",
            person.screen()
        );
    }
    person.types("\x04");
    assert_eq!(person.end().0, ExitStatus::Code(3));
}

#[test]
fn all_that_was_written_before_the_end_arrives_also_with_a_host_that_does_not_read() {
    let agent = TestAgent::start();
    // Somebody who keeps the terminal open, and one who does not.
    for rest in ["", "trap '' HUP; sleep 1000 & echo $!;"] {
        let mut person = Person::start(
            &agent,
            &on_terminal(&format!(
                "stty -opost; {rest} head -c 3000000 /dev/zero; echo end"
            )),
        );
        std::thread::sleep(Duration::from_millis(600));
        let outcome = loop {
            if let Some(outcome) = person.look() {
                break outcome;
            }
        };
        let zeros = person.seen.iter().filter(|byte| **byte == 0).count();
        if !rest.is_empty() {
            assert!(end(&person.screen()), "it was left running");
        }
        assert!(outcome.status.success());
        assert_eq!(zeros, 3_000_000);
        assert!(person.seen.ends_with(b"end\n"));
    }
}

#[test]
fn what_the_terminal_still_holds_when_the_command_ends_arrives_although_somebody_keeps_it_open() {
    let agent = TestAgent::start();
    // So many that in some the host's and the agent's buffers are full and only the end is in the terminal.
    let mut people: Vec<(usize, Person)> = (150_000..450_000)
        .step_by(8_000)
        .map(|count| {
            let script = format!(
                "trap '' HUP; stty -opost; sleep 1000 & echo $!; head -c {count} /dev/zero; echo end"
            );
            (count, Person::start(&agent, &on_terminal(&script)))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(2000));
    for (count, person) in &mut people {
        while person.look().is_none() {}
        assert!(end(&person.screen()), "the sleep was left running with {count}");
    }
    for (count, person) in &people {
        let zeros = person.seen.iter().filter(|byte| **byte == 0).count();
        assert_eq!(zeros, *count);
        assert!(person.seen.ends_with(b"end\n"), "{count}");
    }
}

#[test]
fn a_background_process_does_not_hold_the_end_up() {
    let agent = TestAgent::start();
    let started = Instant::now();
    let (status, screen) = run(
        &agent,
        "trap '' HUP; (while sleep 0.01; do echo noise; done) & echo $!; exit 5",
    );
    let took = started.elapsed();
    // The terminal is gone, so it fails to write, and goes on.
    assert!(end(&screen), "it was left running");
    assert_eq!(status, ExitStatus::Code(5));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Ends the process whose number is the first line; false if there is none any more.
fn end(screen: &str) -> bool {
    let pid = pids(screen.lines().next().unwrap().as_bytes())[0];
    let alive = is_alive(pid);
    // SAFETY: kill takes integers; the process is this test's.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    alive
}

#[test]
fn a_command_may_close_its_terminal_and_open_it_again() {
    let agent = TestAgent::start();
    let script = "echo ready; exec <&- >&- 2>&-; sleep 0.4; exec </dev/tty >/dev/tty 2>&1; \
                  echo back; read -r line; echo \"<$line>\"; exec <&- >&- 2>&-; sleep 0.2; exit 6";
    let mut person = Person::start(&agent, &on_terminal(script));
    person.sees("ready");
    std::thread::sleep(Duration::from_millis(200));
    // What is typed meanwhile waits.
    person.types("a line\r");
    let (status, screen) = person.end();
    assert_eq!(status, ExitStatus::Code(6));
    assert!(screen.ends_with("back\r\n<a line>\r\n"), "{screen}");
}

#[test]
fn what_is_in_the_foreground_is_hung_up_with_the_command() {
    let agent = TestAgent::start();
    let (status, screen) = run(&agent, "sleep 1000 & echo $!");
    assert!(status.success());
    let pid = pids(screen.as_bytes())[0];
    eventually("the sleep is gone", || !is_alive(pid));
}

#[test]
fn a_host_that_hangs_up_takes_the_command_and_all_its_jobs_along() {
    let agent = TestAgent::start();
    let script = "trap '' HUP TERM INT; set -m; sleep 1000 & echo $!; (trap '' HUP; sleep 1000) & echo $!; \
                  echo $$; echo ready; while :; do read -r; done";
    let mut person = Person::start(&agent, &on_terminal(script));
    person.sees("ready");
    let seen = person.screen();
    let pids = pids(seen.split("ready").next().unwrap().as_bytes());
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    assert_eq!(terminals(&agent), 3);
    drop(person);
    eventually("all are dead", || !pids.iter().any(|pid| is_alive(*pid)));
    eventually("nothing is held", || terminals(&agent) == 0);
}

#[test]
fn the_time_limit_kills_it_and_says_so() {
    let agent = TestAgent::start();
    let request = ExecRequest {
        time_limit_ms: Some(400),
        ..on_terminal("trap '' HUP TERM INT; echo ready; set -m; sleep 1000")
    };
    let started = Instant::now();
    let (status, screen) = Person::start(&agent, &request).end();
    assert_eq!(status, ExitStatus::TimedOut);
    assert_eq!(screen, "ready\r\n");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_command_that_does_not_exist_says_so_on_the_terminal() {
    let agent = TestAgent::start();
    let request = ExecRequest {
        tty: Some(SIZE),
        ..ExecRequest::new(["no-such-command"])
    };
    let output = agent.client().exec_collect(&request, b"").unwrap();
    assert_eq!(output.outcome.status, ExitStatus::Code(127));
    assert_eq!(output.stdout, b"spore: no-such-command: command not found\r\n");
    assert!(output.stderr.is_empty());
}

#[test]
fn a_terminal_nobody_types_at_takes_no_input() {
    let agent = TestAgent::start();
    let request = ExecRequest {
        stdin: StdinMode::None,
        time_limit_ms: Some(500),
        ..on_terminal("tty >/dev/null && echo yes; exec cat")
    };
    let mut person = Person::start(&agent, &request);
    person.types("nothing\n");
    person.writer.stdin_eof().unwrap();
    let (status, screen) = person.end();
    assert_eq!((status, screen.as_str()), (ExitStatus::TimedOut, "yes\r\n"));
}

#[test]
fn the_terminal_belongs_to_the_user() {
    let agent = TestAgent::start();
    let request = ExecRequest {
        user: Some("12345:54321".into()),
        ..on_terminal(
            "id -u; stat -c %u $(tty); echo again >/dev/stdout; echo error >/dev/stderr; echo x >/dev/tty",
        )
    };
    let (status, screen) = Person::start(&agent, &request).end();
    assert!(status.success(), "{screen}");
    assert_eq!(screen, "12345\r\n12345\r\nagain\r\nerror\r\nx\r\n");
}

#[test]
fn nothing_is_left_of_many_terminals() {
    let agent = TestAgent::start();
    for round in 0..30 {
        let mut person = Person::start(&agent, &on_terminal("read -r; exit 0"));
        let request = ExecRequest {
            cwd: Some("/no/such/place".into()),
            ..on_terminal("true")
        };
        assert!(agent.client().exec_collect(&request, b"").is_err());
        match round % 2 {
            0 => {
                person.types("\n");
                assert!(person.end().0.success());
            }
            _ => drop(person),
        }
    }
    eventually("no terminal is held", || terminals(&agent) == 0);
    // What waits for connections, and the reaper (agent/src/serve.rs).
    eventually("no thread is left", || threads(&agent) <= 6);
}
