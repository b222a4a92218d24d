//! Files and directories, of all sizes and in all the wrong places.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use spore_protocol::{ClientError, EntryKind, FailureKind, HostFrame, Request};
use support::{TestAgent, eventually, text};

fn refusal(result: Result<impl std::fmt::Debug, ClientError>) -> FailureKind {
    match result {
        Err(ClientError::Refused(failure)) => failure.kind,
        other => panic!("not refused: {other:?}"),
    }
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn files_of_all_sizes_come_back_as_they_went() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let path = agent.files().join("made/on/the/way/file");
    for size in [0, 1, 65_535, 65_536, 65_537, 131_072, 1 << 20, 20_000_003] {
        let contents: Vec<u8> = (0..size)
            .map(|at: usize| u8::try_from(at % 251).unwrap())
            .collect();
        client
            .write_file(text(&path), None, &mut contents.as_slice())
            .unwrap();
        let mut back = Vec::new();
        let info = client.read_file(text(&path), &mut back).unwrap();
        assert!(back == contents, "{size}");
        assert_eq!((info.size_bytes, info.mode), (size as u64, 0o644));
    }
    assert_eq!(mode(path.parent().unwrap()), 0o755);
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "no temporary file is left"
    );
}

#[test]
fn a_mode_is_kept_unless_one_is_given() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let path = agent.files().join("file");
    client
        .write_file(text(&path), Some(0o4711), &mut io::empty())
        .unwrap();
    assert_eq!(mode(&path), 0o4711);
    client.write_file(text(&path), None, &mut &b"new"[..]).unwrap();
    assert_eq!(mode(&path), 0o4711);
    client
        .write_file(text(&path), Some(0o600), &mut &b"new"[..])
        .unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn symbolic_links_are_followed_and_stay_links() {
    let agent = TestAgent::start();
    let files = agent.files();
    fs::write(files.join("target"), "old").unwrap();
    symlink("target", files.join("link")).unwrap();
    agent
        .client()
        .write_file(text(&files.join("link")), None, &mut &b"new"[..])
        .unwrap();
    assert_eq!(fs::read_to_string(files.join("target")).unwrap(), "new");
    assert!(fs::symlink_metadata(files.join("link")).unwrap().is_symlink());
    agent.client().remove(text(&files.join("link")), true).unwrap();
    assert!(files.join("target").exists());
}

#[test]
fn a_file_whose_size_the_kernel_does_not_know_is_read_to_its_end() {
    let agent = TestAgent::start();
    let mut contents = Vec::new();
    agent
        .client()
        .read_file("/proc/self/status", &mut contents)
        .unwrap();
    assert!(String::from_utf8(contents).unwrap().contains("spore-agent"));
}

#[test]
fn what_cannot_be_read_or_written_says_why_and_the_connection_lives_on() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let files = agent.files();
    let at = |name: &str| text(&files.join(name)).to_owned();
    fs::write(at("file"), "x").unwrap();
    rustix_mkfifo(&at("pipe"));
    let mut sink = io::sink();
    assert_eq!(
        refusal(client.read_file(&at("missing"), &mut sink)),
        FailureKind::NotFound
    );
    assert_eq!(
        refusal(client.read_file(&at("file/x"), &mut sink)),
        FailureKind::NotADirectory
    );
    assert_eq!(
        refusal(client.read_file(&at(""), &mut sink)),
        FailureKind::IsADirectory
    );
    assert_eq!(
        refusal(client.read_file(&at("pipe"), &mut sink)),
        FailureKind::Unsupported
    );
    assert_eq!(
        refusal(client.read_file("/dev/zero", &mut sink)),
        FailureKind::Unsupported
    );
    assert_eq!(
        refusal(client.read_file("relative", &mut sink)),
        FailureKind::InvalidArgument
    );
    assert_eq!(
        refusal(client.read_file("/a\0b", &mut sink)),
        FailureKind::InvalidArgument
    );
    // Far more than fits into any buffer, so that the agent must take it all the same.
    let large = vec![7; 4 << 20];
    let mut write = |path: &str| refusal(client.write_file(path, None, &mut large.as_slice()));
    assert_eq!(write(&at("file/x")), FailureKind::NotADirectory);
    assert_eq!(write(&at("")), FailureKind::IsADirectory);
    assert_eq!(write(&at("new/")), FailureKind::IsADirectory);
    assert_eq!(write("/"), FailureKind::IsADirectory);
    assert_eq!(write(&at("pipe")), FailureKind::Unsupported);
    assert_eq!(write(&at(&"n".repeat(300))), FailureKind::TooLarge);
    assert_eq!(write(""), FailureKind::InvalidArgument);
    client.ping().unwrap();
}

fn rustix_mkfifo(path: &str) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

#[test]
fn a_file_that_was_not_sent_to_its_end_leaves_the_old_one_and_no_trace() {
    let agent = TestAgent::start();
    let path = agent.files().join("file");
    fs::write(&path, "old").unwrap();
    let mut stream = agent.stream();
    let mut said = Vec::new();
    spore_protocol::frame::encode(&spore_protocol::Hello::new("test"), &mut said).unwrap();
    let request = Request::WriteFile {
        path: text(&path).to_owned(),
        mode: None,
    };
    spore_protocol::frame::encode(&HostFrame::Request(request), &mut said).unwrap();
    spore_protocol::frame::encode(&HostFrame::Data(b"new"), &mut said).unwrap();
    io::Write::write_all(&mut stream, &said).unwrap();
    let names = || fs::read_dir(agent.files()).unwrap().count();
    eventually("the temporary file is there", || names() == 2);
    drop(stream);
    eventually("it is gone", || names() == 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}

#[test]
fn a_large_directory_is_listed_whole() {
    let agent = TestAgent::start();
    let files = agent.files();
    for number in 0..1500 {
        fs::write(files.join(format!("{number:04}{}", "x".repeat(200))), "12345").unwrap();
    }
    fs::create_dir(files.join("directory")).unwrap();
    symlink("nowhere", files.join("link")).unwrap();
    rustix_mkfifo(text(&files.join("pipe")));
    fs::set_permissions(files.join("directory"), fs::Permissions::from_mode(0o1750)).unwrap();
    let mut entries = agent.client().list_dir(text(&files)).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(entries.len(), 1503);
    assert_eq!(
        (entries[0].kind, entries[0].size_bytes, entries[0].mode),
        (EntryKind::File, 5, 0o644)
    );
    assert!(entries[0].modified_seconds > 1_600_000_000);
    let kinds: Vec<_> = entries[1500..]
        .iter()
        .map(|entry| (entry.name.as_str(), entry.kind))
        .collect();
    let expected = [
        ("directory", EntryKind::Directory),
        ("link", EntryKind::Symlink),
        ("pipe", EntryKind::Other),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(entries[1500].mode, 0o1750);
    assert_eq!(
        refusal(agent.client().list_dir(text(&files.join("link")))),
        FailureKind::NotFound
    );
    assert_eq!(
        refusal(agent.client().list_dir("/etc/passwd")),
        FailureKind::NotADirectory
    );
}

#[test]
fn what_is_at_a_path_is_told_without_following_a_link() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let files = agent.files();
    fs::write(files.join("file"), "12345").unwrap();
    fs::set_permissions(files.join("file"), fs::Permissions::from_mode(0o4711)).unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567_890);
    fs::File::options()
        .write(true)
        .open(files.join("file"))
        .unwrap()
        .set_modified(when)
        .unwrap();
    fs::create_dir(files.join("directory")).unwrap();
    symlink("file", files.join("link")).unwrap();
    symlink("nowhere", files.join("broken")).unwrap();
    rustix_mkfifo(text(&files.join("pipe")));
    let stat = client.stat(text(&files.join("file"))).unwrap();
    assert_eq!(
        (stat.kind, stat.size_bytes, stat.mode, stat.modified_seconds),
        (EntryKind::File, 5, 0o4711, 1_234_567_890)
    );
    for (name, kind) in [
        ("directory", EntryKind::Directory),
        ("link", EntryKind::Symlink),
        ("broken", EntryKind::Symlink),
        ("pipe", EntryKind::Other),
    ] {
        let stat = client.stat(text(&files.join(name))).unwrap();
        assert_eq!(stat.kind, kind, "{name}");
    }
    assert_eq!(
        client.stat(text(&files.join("link"))).unwrap().size_bytes,
        4,
        "of the link itself"
    );
    assert_eq!(client.stat("/").unwrap().kind, EntryKind::Directory);
    assert_eq!(client.stat("/dev/null").unwrap().kind, EntryKind::Other);
    for (path, kind) in [
        (text(&files.join("missing")), FailureKind::NotFound),
        (text(&files.join("file/x")), FailureKind::NotADirectory),
        // A slash at the end asks for a directory, so the link is followed.
        (text(&files.join("link/")), FailureKind::NotADirectory),
        (text(&files.join("n".repeat(300))), FailureKind::TooLarge),
        ("relative", FailureKind::InvalidArgument),
        ("", FailureKind::InvalidArgument),
        ("/a\0b", FailureKind::InvalidArgument),
    ] {
        assert_eq!(refusal(client.stat(path)), kind, "{path:?}");
    }
    client.ping().unwrap();
}

#[test]
fn directories_are_made_and_removed() {
    let agent = TestAgent::start();
    let mut client = agent.client();
    let files = agent.files();
    let deep = files.join("a/b/c");
    client.make_dir(text(&deep), Some(0o2770)).unwrap();
    assert_eq!((mode(&deep), mode(&files.join("a"))), (0o2770, 0o755));
    client.make_dir(text(&deep), Some(0o700)).unwrap();
    assert_eq!(mode(&deep), 0o2770, "one that exists is left as it is");
    fs::write(deep.join("file"), "").unwrap();
    assert_eq!(
        refusal(client.make_dir(text(&deep.join("file")), None)),
        FailureKind::AlreadyExists
    );
    assert_eq!(
        refusal(client.make_dir(text(&deep.join("file/x")), None)),
        FailureKind::NotADirectory
    );
    assert_eq!(refusal(client.remove(text(&deep), false)), FailureKind::NotEmpty);
    client.remove(text(&deep.join("file")), false).unwrap();
    client.remove(text(&deep), false).unwrap();
    assert_eq!(refusal(client.remove(text(&deep), true)), FailureKind::NotFound);
    for root in ["/", "//", "/usr/..", "/."] {
        assert_eq!(
            refusal(client.remove(root, true)),
            FailureKind::InvalidArgument,
            "{root}"
        );
    }
}

#[test]
fn a_tree_deeper_than_any_stack_is_removed_and_nothing_beside_it() {
    let agent = TestAgent::start();
    let tree = agent.files().join("tree");
    let mut deep = tree.clone();
    for _ in 0..900 {
        deep.push("ddd");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "").unwrap();
    fs::create_dir(tree.join("other")).unwrap();
    fs::create_dir(agent.files().join("outside")).unwrap();
    fs::write(agent.files().join("outside/file"), "").unwrap();
    symlink("../outside", tree.join("link")).unwrap();
    agent.client().remove(text(&tree), true).unwrap();
    assert!(!tree.exists());
    assert!(agent.files().join("outside/file").exists());
}
