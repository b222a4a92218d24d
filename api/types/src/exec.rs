//! Running commands in a sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How bytes are put into JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As text; bytes that are not UTF-8 become U+FFFD.
    #[default]
    Utf8,
    /// As base64 (RFC 4648, with padding).
    Base64,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub cols: u16,
}

/// A command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExecRequest {
    /// The command and its arguments; no shell is between. Empty: the image's own command.
    #[schema(max_items = 4096)]
    pub cmd: Vec<String>,
    /// Variables over those of the sandbox.
    pub env: BTreeMap<String, String>,
    /// Absolute path of the working directory; absent: the image's.
    pub cwd: Option<String>,
    /// As whom: `user`, `uid`, `user:group`, `uid:gid`; absent: the image's.
    pub user: Option<String>,
    /// What it reads from its standard input, in `encoding`; absent: nothing. A stream sends its input otherwise.
    pub stdin: Option<String>,
    /// How `stdin`, `stdout` and `stderr` are written.
    pub encoding: Encoding,
    /// It is killed after this many seconds, 1 to 86400; absent: 3600 for a call, no limit for a stream.
    #[schema(minimum = 1, maximum = 86400)]
    pub timeout_seconds: Option<u32>,
    /// Only in a stream: give it a terminal of this size. Standard error then is part of standard output.
    pub tty: Option<TtySize>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// As a shell has it: the exit code; 128 and the signal's number if one killed it; 124 if the time limit did.
    pub exit_code: u8,
    /// The signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether it was killed at its time limit.
    pub timed_out: bool,
    /// Processes the guest killed for want of memory meanwhile.
    pub oom_kills: u64,
    /// How long it ran, as the daemon saw it.
    pub took_ms: u64,
    /// The largest resident set of its processes.
    pub max_rss_bytes: u64,
    /// What it wrote to its standard output, in the request's `encoding`; empty in a stream.
    pub stdout: String,
    /// Likewise its standard error.
    pub stderr: String,
    /// Whether more was written than is kept (8 MiB each): what came after is missing.
    pub truncated: bool,
}

/// What a client says in a stream, as text messages after the first, which is an [`ExecRequest`]. A binary message is
/// standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum ExecControl {
    /// There is no more standard input.
    StdinEnd,
    /// The terminal has another size.
    Resize(TtySize),
    /// Send its process group, or what is in the foreground of its terminal, this signal. It goes past input that the
    /// command does not read, up to 1 MiB.
    Signal(ExecSignal),
}

/// A signal, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecSignal {
    /// Linux's number, 1 to 64.
    #[schema(minimum = 1, maximum = 64)]
    pub signal: i32,
}

/// What the daemon says in a stream, as text messages. A binary message is output: its first byte is 1 for standard
/// output and 2 for standard error. `exit` or `error` is the last message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum ExecReport {
    /// It ended.
    Exit(ExecResult),
    /// It could not be run, or not be seen to its end.
    Error(crate::ErrorBody),
}
