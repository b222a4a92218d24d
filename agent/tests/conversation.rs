//! Hellos, garbage, several requests and several connections; defaults; status.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read, Write};

use spore_protocol::{
    AgentClient, ClientError, ExecDefaults, ExecRequest, FailureKind, FrameBuf, HandshakeError, Hello,
    HostFrame, PROTOCOL_VERSION, Reply, Request, frame,
};
use support::{TestAgent, shell};

fn refusal(result: Result<impl std::fmt::Debug, ClientError>) -> FailureKind {
    match result {
        Err(ClientError::Refused(failure)) => failure.kind,
        other => panic!("not refused: {other:?}"),
    }
}

/// A hello of any version, by its layout on the wire, which never changes.
fn hello_of(version: u32) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(&(*b"SPOR", version, "a host from elsewhere"), &mut out).unwrap();
    out
}

#[test]
fn a_host_of_another_version_is_told_ours_and_does_nothing() {
    let agent = TestAgent::start();
    let mut stream = agent.stream();
    let mut said = hello_of(PROTOCOL_VERSION + 1);
    let request = ExecRequest::new(["touch", support::text(&agent.files().join("touched"))]);
    frame::encode(&HostFrame::Request(Request::Exec(request)), &mut said).unwrap();
    stream.write_all(&said).unwrap();
    let mut buffer = FrameBuf::new();
    let theirs = Hello::accept(buffer.read_frame(&mut stream).unwrap().unwrap()).unwrap();
    assert!(theirs.build.contains("spore-agent"));
    // It may close while our request is still unread, and then it is a reset.
    assert!(!matches!(buffer.read_frame(&mut stream), Ok(Some(_))));
    assert!(!agent.files().join("touched").exists());
}

#[test]
fn an_agent_of_another_version_is_an_error_that_says_both() {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.write_all(&hello_of(99)).unwrap();
    let error = AgentClient::new(ours, "test").ping().unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Handshake(HandshakeError::Version {
                theirs: 99,
                ours: PROTOCOL_VERSION,
                ..
            })
        ),
        "{error}"
    );
}

#[test]
fn garbage_is_hung_up_on_and_harms_nobody() {
    let agent = TestAgent::start();
    let mut hello = hello_of(PROTOCOL_VERSION);
    let greeted = |garbage: &[u8]| [&hello, garbage].concat();
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100],
        vec![0; 100],
        greeted(&[0xff; 100]),
        greeted(&[3, 0, 0, 0, 99, 99, 99]),
        greeted(&[0, 0, 0, 0]),
        greeted(b"\x01\x00\x00"),
    ];
    for bytes in garbage {
        let mut stream = agent.stream();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.len() < 200,
            "{} bytes in answer to {bytes:?}",
            answer.len()
        );
    }
    hello.clear();
    agent.client().ping().unwrap();
}

#[test]
fn one_connection_serves_one_request_after_another() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let hello = client.handshake().unwrap().clone();
    assert_eq!(hello.protocol, PROTOCOL_VERSION);
    let first = client.ping().unwrap();
    for round in 0..50 {
        let output = client
            .exec_collect(&ExecRequest::new(["echo", &round.to_string()]), b"")
            .unwrap();
        assert_eq!(output.stdout, format!("{round}\n").into_bytes());
    }
    client.sync().unwrap();
    let last = client.ping().unwrap();
    assert_eq!(first.boot_nonce, last.boot_nonce);
    assert!(last.monotonic_ns > first.monotonic_ns && last.realtime_ns > first.realtime_ns);
}

#[test]
fn requests_sent_ahead_are_answered_in_turn() {
    let agent = TestAgent::start();
    let mut stream = agent.stream();
    let mut said = hello_of(PROTOCOL_VERSION);
    for message in [
        HostFrame::Data(b"?"),
        HostFrame::End,
        HostFrame::StdinEof,
        HostFrame::Request(Request::Ping),
    ] {
        frame::encode(&message, &mut said).unwrap();
    }
    frame::encode(
        &HostFrame::Request(Request::Exec(ExecRequest::new(["true"]))),
        &mut said,
    )
    .unwrap();
    frame::encode(&HostFrame::Request(Request::Sync), &mut said).unwrap();
    // The exec has not ended when the next request comes: out of turn, and the host's fault.
    stream.write_all(&said).unwrap();
    let mut buffer = FrameBuf::new();
    Hello::accept(buffer.read_frame(&mut stream).unwrap().unwrap()).unwrap();
    for _ in 0..2 {
        let body = buffer.read_frame(&mut stream).unwrap().unwrap();
        let reply = frame::decode::<Reply>(body).unwrap();
        assert!(
            matches!(&reply, Reply::Failed(failure) if failure.kind == FailureKind::OutOfTurn),
            "{reply:?}"
        );
    }
    let body = buffer.read_frame(&mut stream).unwrap().unwrap();
    assert!(matches!(frame::decode::<Reply>(body).unwrap(), Reply::Pong(_)));
    assert!(!matches!(buffer.read_frame(&mut stream), Ok(Some(_))));
}

#[test]
fn many_connections_are_served_at_once() {
    let agent = TestAgent::start();
    let mut clients: Vec<_> = (0..40).map(|_| agent.client()).collect();
    let first = clients[0].ping().unwrap().boot_nonce;
    for client in &mut clients {
        client
            .start_exec(&shell("read line"))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    // All are in the middle of something, and there is still somebody to answer.
    assert_eq!(agent.client().ping().unwrap().boot_nonce, first);
}

#[test]
fn defaults_reach_every_later_exec_and_survive_a_restart() {
    let agent = TestAgent::start();
    assert_eq!(agent.client().get_defaults().unwrap(), ExecDefaults::default());
    let workdir = agent.files();
    let defaults = ExecDefaults {
        env: [("GREETING", "grüß & <dich>"), ("HOME", "/srv")]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
        workdir: Some(support::text(&workdir).to_owned()),
        ..ExecDefaults::default()
    };
    agent.client().set_defaults(&defaults).unwrap();
    let bad = ExecDefaults {
        workdir: Some("relative".into()),
        ..ExecDefaults::default()
    };
    assert_eq!(
        refusal(agent.client().set_defaults(&bad)),
        FailureKind::InvalidArgument
    );
    let expected = format!("grüß & <dich> /srv {}\n", workdir.display()).into_bytes();
    let script = "echo \"$GREETING $HOME $PWD\"";
    assert_eq!(agent.sh(script).stdout, expected);
    let agent = agent.restart();
    assert_eq!(agent.client().get_defaults().unwrap(), defaults);
    assert_eq!(agent.sh(script).stdout, expected);
    let request = ExecRequest {
        env: [("GREETING".to_owned(), "hi".to_owned())].into(),
        cwd: Some("/".into()),
        ..shell(script)
    };
    assert_eq!(
        agent.client().exec_collect(&request, b"").unwrap().stdout,
        b"hi /srv /\n"
    );
}

#[test]
fn status_and_memory_tell_of_the_machine() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let status = client.status().unwrap();
    let memory = client.memory(false).unwrap();
    assert_eq!(status.mem_total_bytes, memory.total_bytes);
    assert!(memory.free_bytes > 0 && memory.blocks.is_none());
    assert_eq!(status.boot_nonce, client.ping().unwrap().boot_nonce);
    assert_eq!(i64::from(status.agent_pid), i64::from(agent.pid()));
    assert!(!status.kernel_release.is_empty() && status.uptime_ns >= status.monotonic_ns);
    assert_eq!(client.memory(true).unwrap().blocks, status.blocks);
    if let Some(blocks) = status.blocks {
        assert!(blocks.online <= blocks.present && blocks.block_bytes >= 1 << 20);
    }
}

#[test]
fn an_ordinary_process_has_no_power_over_the_machine_and_does_not_claim_to_be_init() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    assert_eq!(refusal(client.poweroff()), FailureKind::Unsupported);
    assert_eq!(refusal(client.reboot()), FailureKind::Unsupported);
    client.settle().unwrap();
    client.drop_caches().unwrap();
    let integrity = client.integrity().unwrap();
    assert!(!integrity.intact);
    assert_eq!(integrity.running_sha256.len(), 64);
}
