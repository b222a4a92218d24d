//! A daemon of a few canned answers on a Unix socket, and the real `spore`.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};

use tempfile::TempDir;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

/// A request, as far as tests ask.
pub struct Seen {
    pub call: String,
    pub head: String,
    pub body: String,
}

/// Answers every request with the answer for its `METHOD /path`, and tells what it saw.
pub struct Fake {
    pub dir: TempDir,
    pub seen: Receiver<Seen>,
}

impl Fake {
    pub fn new(answers: &'static [(&'static str, &'static str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let (tell, seen) = channel();
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), answers, &tell);
            }
        });
        Self { dir, seen }
    }

    pub fn command(&self, words: &[&str]) -> Command {
        command(&self.dir.path().join("sock"), self.dir.path(), words)
    }

    pub fn spore(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What was asked since, in order.
    pub fn calls(&self) -> Vec<String> {
        self.seen.try_iter().map(|seen| seen.call).collect()
    }
}

/// In an answer: nothing comes after it, and the connection stays until the client hangs up, which is told as `hung up`.
pub const STAYS: &str = "x-stays: 1\r\n";

fn serve(stream: UnixStream, answers: &[(&str, &str)], tell: &Sender<Seen>) {
    let mut reader = BufReader::new(&stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap() == 0 {
            return;
        }
    }
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let call = head.split_once(" HTTP/1.1").unwrap().0.to_owned();
    let key = header("sec-websocket-key");
    let body = String::from_utf8(body).unwrap();
    let answer = answers.iter().find(|(known, _)| *known == call);
    let said = |call: &str| Seen {
        call: call.to_owned(),
        head: String::new(),
        body: String::new(),
    };
    let _ = tell.send(Seen {
        body,
        head: head.clone(),
        ..said(&call)
    });
    match (answer, key) {
        (Some((_, answer)), _) => {
            (&stream).write_all(answer.as_bytes()).unwrap();
            if answer.contains(STAYS) {
                let _ = (&stream).read_to_end(&mut Vec::new());
                let _ = tell.send(said("hung up"));
            }
        }
        (None, Some(key)) => {
            if let Some(request) = converse(stream, &key) {
                let _ = tell.send(Seen {
                    body: request,
                    ..said("exec")
                });
            }
        }
        (None, None) => (&stream)
            .write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
            .unwrap(),
    }
}

/// A command that says `hi` and `oh` and exits with 7; or waits for ever, if it is called so. What was asked for.
fn converse(mut stream: UnixStream, key: &str) -> Option<String> {
    let accept = derive_accept_key(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n\r\n"
    );
    // Who was interrupted may have gone.
    stream.write_all(head.as_bytes()).ok()?;
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    let request = socket.read().ok()?.into_text().ok()?.to_string();
    if !request.contains("wait for ever") {
        let exit = concat!(
            r#"{"type":"exit","exitCode":7,"timedOut":false,"oomKills":1,"tookMs":1,"maxRssBytes":1,"#,
            r#""stdout":"","stderr":"","truncated":false}"#
        );
        for message in [
            Message::Binary(b"\x01hi\n".to_vec().into()),
            Message::Binary(b"\x02oh\n".to_vec().into()),
            Message::Text(exit.into()),
        ] {
            socket.send(message).ok()?;
        }
    }
    // Until the client goes.
    while socket.read().is_ok() {}
    Some(request)
}

/// `spore` with nothing of ours.
pub fn command(socket: &Path, dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spore"));
    command
        .current_dir(dir)
        .env("SPORE_SOCKET", socket)
        .env_remove("SPORE_DATA")
        .env("XDG_DATA_HOME", dir.join("home"))
        .env("SPORE_CACHE", dir.join("cache"))
        .args(words);
    command
}

pub fn spore(socket: &Path, dir: &Path, words: &[&str]) -> Output {
    command(socket, dir, words).output().unwrap()
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub const NOT_FOUND: &str = concat!(
    "HTTP/1.1 404 Not Found\r\ncontent-length: 76\r\n\r\n",
    r#"{"error":{"code":"not_found","message":"there is no sandbox","details":{}}} "#
);
