//! Input and output of commands: any amount, both ways, from one thread or two.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{self, Read};
use std::time::Duration;

use spore_protocol::{ClientError, ExecEvent, ExecRequest, ExecWriter, ExitStatus, OutputStream, StdinMode};
use support::{TestAgent, eventually, is_alive, pids, shell};

const MIB: usize = 1024 * 1024;

fn piped(script: &str) -> ExecRequest {
    ExecRequest {
        stdin: StdinMode::Piped,
        ..shell(script)
    }
}

/// Bytes in which every position is recognisable.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap())
        .collect()
}

#[test]
fn a_hundred_megabytes_on_both_outputs_do_not_deadlock() {
    let agent = TestAgent::start();
    let mut counts = [0usize; 2];
    let script = "head -c 104857600 /dev/zero >&2 & head -c 104857600 /dev/zero; wait";
    let outcome = agent
        .client()
        .exec(&shell(script), &mut io::empty(), &mut |stream, bytes| {
            counts[usize::from(stream == OutputStream::Stderr)] += bytes.len();
            Ok(())
        });
    assert!(outcome.unwrap().status.success());
    assert_eq!(counts, [100 * MIB, 100 * MIB]);
}

#[test]
fn input_larger_than_every_buffer_goes_through_and_back_from_one_thread() {
    let agent = TestAgent::start();
    let input = pattern(20 * MIB);
    let output = agent.client().exec_collect(&piped("cat"), &input).unwrap();
    assert!(output.outcome.status.success());
    assert!(
        output.stdout == input,
        "{} of {} bytes came back",
        output.stdout.len(),
        input.len()
    );
}

#[test]
fn a_command_need_not_read_its_input() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let input = pattern(5 * MIB);
    for (script, written) in [
        ("true", 0),
        ("head -c 10", 10),
        ("exec <&-; sleep 0.2", 0),
        ("sleep 0.2", 0),
    ] {
        let output = client.exec_collect(&piped(script), &input).unwrap();
        assert!(output.outcome.status.success(), "{script}");
        assert_eq!(output.stdout, input[..written], "{script}");
    }
}

#[test]
fn input_may_be_empty_or_come_late() {
    struct Late(u8);
    impl Read for Late {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(Duration::from_millis(50));
            self.0 = self.0.saturating_sub(1);
            out[0] = b'x';
            Ok(usize::from(self.0 > 0))
        }
    }
    let agent = TestAgent::start();
    assert!(
        agent
            .client()
            .exec_collect(&piped("cat"), b"")
            .unwrap()
            .stdout
            .is_empty()
    );
    let mut seen = Vec::new();
    let outcome = agent.client().exec(&piped("cat"), &mut Late(5), &mut |_, bytes| {
        seen.extend_from_slice(bytes);
        Ok(())
    });
    assert!(outcome.unwrap().status.success());
    assert_eq!(seen, b"xxxx");
}

#[test]
fn a_conversation_with_a_command_needs_two_threads_and_gets_them() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    client
        .start_exec(&piped("while read -r line; do echo \"<$line>\"; done; exit 3"))
        .unwrap();
    let mut writer = ExecWriter::new(client.stream().try_clone().unwrap());
    let mut seen = Vec::new();
    writer.stdin(b"one\n").unwrap();
    let status = loop {
        match client.next_event().unwrap() {
            ExecEvent::Output(_, bytes) => {
                seen.extend_from_slice(bytes);
                match seen.as_slice() {
                    b"<one>\n" => writer.stdin(b"two\n").unwrap(),
                    b"<one>\n<two>\n" => writer.stdin_eof().unwrap(),
                    _ => {}
                }
            }
            ExecEvent::StdinAck(_) => {}
            ExecEvent::Exited(outcome) => break outcome.status,
        }
    };
    assert_eq!(status, ExitStatus::Code(3));
    assert_eq!(seen, b"<one>\n<two>\n");
    client.ping().unwrap();
}

#[test]
fn a_flood_of_input_from_another_thread_is_held_back_not_buffered() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    client.start_exec(&piped("sleep 0.5; sha256sum")).unwrap();
    let stream = client.stream().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let mut writer = ExecWriter::new(stream);
        writer.stdin(&vec![0; 64 * MIB]).unwrap();
        writer.stdin_eof().unwrap();
    });
    let mut seen = String::new();
    loop {
        match client.next_event().unwrap() {
            ExecEvent::Output(_, bytes) => seen.push_str(&String::from_utf8_lossy(bytes)),
            ExecEvent::StdinAck(_) => {}
            ExecEvent::Exited(_) => break,
        }
    }
    flood.join().unwrap();
    assert!(
        seen.starts_with("3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"),
        "{seen}"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak_kib: usize = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak_kib < 16 * 1024, "the agent grew to {peak_kib} KiB");
}

#[test]
fn signals_reach_the_command_and_its_group() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    // Short sleeps: a signal between the shell's look for traps and its fork reaches no sleep, and
    // the shell runs the trap only when the sleep has ended.
    client
        .start_exec(&shell(
            "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done",
        ))
        .unwrap();
    let mut writer = ExecWriter::new(client.stream().try_clone().unwrap());
    let mut seen = Vec::new();
    let status = loop {
        match client.next_event().unwrap() {
            ExecEvent::Output(_, bytes) => {
                if seen.is_empty() {
                    writer.signal(2).unwrap();
                }
                seen.extend_from_slice(bytes);
            }
            ExecEvent::StdinAck(_) => {}
            ExecEvent::Exited(outcome) => break outcome.status,
        }
    };
    assert_eq!(
        (status, seen.as_slice()),
        (ExitStatus::Code(5), &b"ready\ncaught\n"[..])
    );
}

#[test]
fn a_sink_that_fails_ends_the_call_and_then_the_command() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let mut pid = 0;
    let result = client.exec(
        &shell("echo $$; exec sleep 1000"),
        &mut io::empty(),
        &mut |_, bytes| {
            pid = pids(bytes)[0];
            Err(io::Error::other("no room"))
        },
    );
    assert!(matches!(result, Err(ClientError::Local(_))));
    assert!(matches!(client.ping(), Err(ClientError::Abandoned)));
    drop(client);
    eventually("the command is dead", || !is_alive(pid));
}

#[test]
fn a_host_that_does_not_read_stops_the_command_not_the_agent() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    client.start_exec(&shell("head -c 10000000 /dev/zero")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    agent.client().ping().unwrap();
    let mut count = 0;
    let outcome = loop {
        match client.next_event().unwrap() {
            ExecEvent::Output(_, bytes) => count += bytes.len(),
            ExecEvent::StdinAck(_) => {}
            ExecEvent::Exited(outcome) => break outcome,
        }
    };
    assert!(outcome.status.success());
    assert_eq!(count, 10_000_000);
}
