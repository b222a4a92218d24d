//! Whatever bytes come, the decoder gives an error or a message, and what was encoded comes back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use proptest::prelude::*;
use spore_protocol::frame::{decode, encode};
use spore_protocol::{
    AgentClient, ClientError, DirEntry, EntryKind, ExecDefaults, ExecOutcome, ExecRequest, ExecWriter,
    ExitStatus, Failure, FailureKind, FileInfo, FileStat, FrameBuf, Hello, HostFrame, MAX_FRAME_BYTES,
    MemoryBlocks, MemoryReport, Network, Reply, Request, StdinMode, TtySize,
};

fn env() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(any::<String>(), any::<String>(), 0..4)
}

fn tty_size() -> impl Strategy<Value = TtySize> {
    any::<(u16, u16)>().prop_map(|(rows, cols)| TtySize { rows, cols })
}

fn kind() -> impl Strategy<Value = EntryKind> {
    prop::sample::select(vec![
        EntryKind::File,
        EntryKind::Directory,
        EntryKind::Symlink,
        EntryKind::Other,
    ])
}

fn request() -> impl Strategy<Value = Request> {
    let exec = (
        prop::collection::vec(any::<String>(), 0..5),
        env(),
        any::<Option<String>>(),
        any::<Option<String>>(),
        any::<bool>(),
        any::<Option<u64>>(),
        prop::option::of(tty_size()),
    );
    prop_oneof![
        Just(Request::Ping),
        any::<bool>().prop_map(|count_blocks| Request::Memory { count_blocks }),
        exec.prop_map(|(argv, env, cwd, user, piped, time_limit_ms, tty)| {
            let stdin = if piped { StdinMode::Piped } else { StdinMode::None };
            Request::Exec(ExecRequest {
                argv,
                env,
                cwd,
                user,
                stdin,
                time_limit_ms,
                tty,
            })
        }),
        (any::<String>(), any::<Option<u32>>()).prop_map(|(path, mode)| Request::WriteFile { path, mode }),
        (any::<String>(), any::<bool>()).prop_map(|(path, recursive)| Request::Remove { path, recursive }),
        (
            env(),
            any::<Option<String>>(),
            any::<Option<String>>(),
            prop::collection::vec(any::<String>(), 0..3)
        )
            .prop_map(|(env, workdir, user, command)| {
                Request::SetDefaults(ExecDefaults {
                    env,
                    workdir,
                    user,
                    command,
                })
            }),
        any::<u64>().prop_map(|bytes| Request::GrowDisk { bytes }),
        any::<String>().prop_map(|path| Request::Stat { path }),
        Just(Request::Integrity),
        prop::option::of(network()).prop_map(Request::Network),
    ]
}

fn network() -> impl Strategy<Value = Network> {
    let dns = prop::collection::vec(any::<std::net::Ipv4Addr>(), 0..5);
    (
        any::<[u8; 6]>(),
        any::<std::net::Ipv4Addr>(),
        any::<u8>(),
        any::<std::net::Ipv4Addr>(),
        dns,
        any::<u16>(),
    )
        .prop_map(|(mac, address, prefix_len, gateway, dns, mtu)| Network {
            mac,
            address,
            prefix_len,
            gateway,
            dns,
            mtu,
        })
}

fn reply() -> impl Strategy<Value = Reply<'static>> {
    let status = prop_oneof![
        any::<u8>().prop_map(ExitStatus::Code),
        any::<i32>().prop_map(ExitStatus::Signal),
        Just(ExitStatus::TimedOut),
    ];
    let stat = (kind(), any::<u64>(), any::<u32>(), any::<i64>()).prop_map(
        |(kind, size_bytes, mode, modified_seconds)| FileStat {
            kind,
            size_bytes,
            mode,
            modified_seconds,
        },
    );
    let entry = (any::<String>(), kind(), any::<u64>(), any::<u32>(), any::<i64>()).prop_map(
        |(name, kind, size_bytes, mode, modified_seconds)| DirEntry {
            name,
            kind,
            size_bytes,
            mode,
            modified_seconds,
        },
    );
    prop_oneof![
        (status, any::<u64>(), any::<u64>()).prop_map(|(status, oom_kills, max_rss_bytes)| {
            Reply::Exited(ExecOutcome {
                status,
                oom_kills,
                max_rss_bytes,
            })
        }),
        any::<u32>().prop_map(Reply::StdinAck),
        (any::<u64>(), any::<u32>())
            .prop_map(|(size_bytes, mode)| Reply::File(FileInfo { size_bytes, mode })),
        prop::collection::vec(entry, 0..5).prop_map(Reply::Entries),
        stat.prop_map(Reply::Stat),
        any::<String>().prop_map(|message| Reply::Failed(Failure::new(FailureKind::NoSpace, message))),
        any::<(u64, u64, u32, u32, u64)>().prop_map(
            |(total_bytes, free_bytes, online, present, block_bytes)| {
                let blocks = Some(MemoryBlocks {
                    online,
                    present,
                    block_bytes,
                });
                Reply::Memory(MemoryReport {
                    total_bytes,
                    free_bytes,
                    blocks,
                })
            }
        ),
    ]
}

fn body(message: &impl serde::Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out).unwrap();
    out.split_off(4)
}

/// A stream that says what it was told to and hears nothing.
struct Scripted(io::Cursor<Vec<u8>>);

impl Read for Scripted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<HostFrame>(&bytes);
        let _ = decode::<Reply>(&bytes);
        let _ = Hello::accept(&bytes);
    }

    #[test]
    fn no_stream_makes_the_frame_reader_panic_or_hold_much(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut stream = bytes.as_slice();
        let mut buffer = FrameBuf::new();
        while let Ok(Some(body)) = buffer.read_frame(&mut stream) {
            prop_assert!(body.len() <= MAX_FRAME_BYTES);
        }
    }

    #[test]
    fn no_guest_makes_the_client_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), greet in any::<bool>()) {
        let mut said = Vec::new();
        if greet {
            encode(&Hello::new("guest"), &mut said).unwrap();
        }
        said.extend(bytes);
        let mut client = AgentClient::new(Scripted(io::Cursor::new(said)), "test");
        let _ = client.exec_collect(&ExecRequest::new(["x"]), b"input");
        let _ = client.list_dir("/");
    }

    #[test]
    fn no_guest_makes_a_client_at_its_terminal_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut said = Vec::new();
        encode(&Hello::new("guest"), &mut said).unwrap();
        said.extend(bytes);
        let mut client = AgentClient::new(Scripted(io::Cursor::new(said)), "test");
        let request = ExecRequest { tty: Some(TtySize { rows: 24, cols: 80 }), ..ExecRequest::new(["x"]) };
        client.start_exec(&request).unwrap();
        while let Ok(event) = client.next_event() {
            if matches!(event, spore_protocol::ExecEvent::Exited(_)) {
                break;
            }
        }
        let _ = client.stat("/");
    }

    #[test]
    fn what_goes_to_a_running_command_comes_back(
        size in tty_size(),
        signal in any::<i32>(),
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        for message in [
            HostFrame::Resize(size),
            HostFrame::Signal(signal),
            HostFrame::Stdin(&bytes),
            HostFrame::StdinEof,
        ] {
            let body = body(&message);
            prop_assert_eq!(decode::<HostFrame>(&body).unwrap(), message);
        }
    }

    #[test]
    fn a_size_is_sent_if_there_are_terminals_of_it(size in tty_size(), small in any::<bool>()) {
        let size = match small {
            true => TtySize { rows: size.rows % 4098, cols: size.cols % 4098 },
            false => size,
        };
        let mut sent = Vec::new();
        let result = ExecWriter::new(&mut sent).resize(size);
        let there_are = [size.rows, size.cols].iter().all(|count| (1..=4096).contains(count));
        prop_assert_eq!(result.is_ok(), there_are);
        match there_are {
            true => prop_assert_eq!(decode::<HostFrame>(&sent[4..]).unwrap(), HostFrame::Resize(size)),
            false => prop_assert!(sent.is_empty()),
        }
    }

    #[test]
    fn damaged_messages_are_errors_or_other_messages(request in request(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = body(&HostFrame::Request(request));
        let index = at.index(bytes.len());
        bytes[index] ^= 1u8 << bit;
        let _ = decode::<HostFrame>(&bytes);
        let _ = decode::<HostFrame>(&bytes[..index]);
    }

    #[test]
    fn requests_come_back(request in request()) {
        let message = HostFrame::Request(request);
        let body = body(&message);
        prop_assert_eq!(decode::<HostFrame>(&body).unwrap(), message);
    }

    #[test]
    fn replies_come_back(reply in reply()) {
        let body = body(&reply);
        prop_assert_eq!(decode::<Reply>(&body).unwrap(), reply);
    }

    #[test]
    fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..70_000)) {
        let output = body(&Reply::Stdout(&bytes));
        prop_assert_eq!(decode::<Reply>(&output).unwrap(), Reply::Stdout(&bytes));
        let contents = body(&HostFrame::Data(&bytes));
        prop_assert_eq!(decode::<HostFrame>(&contents).unwrap(), HostFrame::Data(&bytes));
    }
}

fn client_hearing(replies: &[Reply<'_>]) -> AgentClient<Scripted> {
    let mut said = Vec::new();
    encode(&Hello::new("guest"), &mut said).unwrap();
    replies.iter().for_each(|reply| encode(reply, &mut said).unwrap());
    AgentClient::new(Scripted(io::Cursor::new(said)), "test")
}

#[test]
fn a_refusal_leaves_the_client_usable_and_anything_else_does_not() {
    let mut client = client_hearing(&[
        Reply::Failed(Failure::new(FailureKind::NotFound, "no such thing")),
        Reply::Done,
        Reply::End,
    ]);
    let error = client.remove("/x", false).unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused(failure) if failure.kind == FailureKind::NotFound),
        "{error}"
    );
    client.sync().unwrap();
    assert!(matches!(client.sync(), Err(ClientError::Unexpected(_))));
    assert!(matches!(client.sync(), Err(ClientError::Abandoned)));
}

#[test]
fn a_guest_that_goes_away_has_closed_the_connection() {
    assert!(matches!(client_hearing(&[]).ping(), Err(ClientError::Closed)));
    let mut silent = AgentClient::new(Scripted(io::Cursor::new(Vec::new())), "test");
    assert!(matches!(silent.ping(), Err(ClientError::Closed)));
}

#[test]
fn a_request_too_large_for_a_frame_is_refused_before_it_is_sent() {
    let mut client = client_hearing(&[Reply::Done]);
    assert!(matches!(
        client.remove(&"x".repeat(MAX_FRAME_BYTES), false),
        Err(ClientError::Frame(_))
    ));
    client.sync().unwrap();
}
