//! HTTP to a daemon's socket, as plainly as can be: one connection a request, read to its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

/// No test waits longer for one event: a build may boot twice before it tells one.
const PATIENCE: Duration = Duration::from_secs(600);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body, if the status is this.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The code of the error that it is, with its status.
    pub fn error(&self) -> (u16, String) {
        let code = self.json()["error"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (self.status, code)
    }
}

/// A daemon's socket.
#[derive(Clone, Debug)]
pub struct Http(PathBuf);

/// A stream of server-sent events.
pub struct Events(BufReader<UnixStream>);

impl Http {
    /// The socket at a path.
    pub fn at(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// A connection, once somebody listens.
    pub fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixStream::connect(&self.0) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", self.0.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends bytes as they are, and reads what comes until the other end hangs up.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // Longer than a guest may take to give memory back: its driver tries again for two minutes.
        stream.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        // The other end may refuse before it has read all.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// A request with a body and more headers.
    pub fn send(&self, call: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let answer = self.raw(&request(call, headers, body));
        parse(&answer).unwrap_or_else(|| panic!("{call}: no answer: {:?}", String::from_utf8_lossy(&answer)))
    }

    /// The same; `None` if whoever was asked went before it had answered.
    pub fn try_send(&self, call: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
        parse(&self.raw(&request(call, headers, body)))
    }

    /// A request whose answer nobody reads. Dropping what this returns hangs up.
    pub fn begin(&self, call: &str, body: &[u8]) -> UnixStream {
        let mut stream = self.connect();
        // It may be refused before it has been read.
        let _ = stream.write_all(&request(call, &[], body));
        stream
    }

    /// A request with JSON: `call` is method and path.
    pub fn json(&self, call: &str, body: &Value) -> Answer {
        self.send(call, &[], body.to_string().as_bytes())
    }

    /// A request without a body.
    pub fn call(&self, call: &str) -> Answer {
        self.send(call, &[], b"")
    }

    /// A stream of events. What happens from when this returns is in it.
    pub fn events(&self, call: &str, headers: &[(&str, &str)], body: &Value) -> Events {
        let mut stream = self.connect();
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        stream
            .write_all(&request(call, headers, body.as_bytes()))
            .unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::from("the head");
        while line.trim() != "" {
            line.clear();
            stream.read_line(&mut line).unwrap();
        }
        Events(stream)
    }
}

impl Events {
    /// Whether it is ended, once it is over, and not only cut off.
    pub fn is_ended(mut self) -> bool {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest);
        // The last chunk (RFC 9112, 7.1).
        rest.ends_with(b"0\r\n\r\n")
    }

    /// The data of the next event, whatever is between; `None` at the end.
    pub fn next_data(&mut self) -> Option<Value> {
        let began = Instant::now();
        loop {
            // Looked at every 10 s at least: there is a comment when there is nothing else.
            assert!(began.elapsed() < PATIENCE, "nothing is told");
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // Its event never is longer than a chunk, and chunk sizes are lines of their own.
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }

    /// The data of the next event of a type.
    pub fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let data = self
                .next_data()
                .unwrap_or_else(|| panic!("the stream ended before a {kind}"));
            if data["type"] == kind {
                return data;
            }
        }
    }
}

fn request(call: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!(
        "{call} HTTP/1.1\r\nhost: spore\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    [text.as_bytes(), body].concat()
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = answer[end + 4..].to_vec();
    if headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked")
    {
        body = unchunk(&body)?;
    }
    let promised = headers.iter().find(|(name, _)| name == "content-length");
    if promised.is_some_and(|(_, length)| length.parse() != Ok(body.len())) {
        return None;
    }
    Some(Answer {
        status,
        headers,
        body,
    })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?, 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
