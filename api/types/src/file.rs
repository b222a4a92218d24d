//! Files of a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, not followed.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirEntry {
    /// The name; bytes that are not UTF-8 are U+FFFD.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Size.
    pub size_bytes: u64,
    /// Permission bits, as four octal digits.
    #[schema(pattern = "^[0-7]{4}$")]
    pub mode: String,
    /// Last change of its contents.
    pub modified_at: i64,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirEntries {
    /// What is in it, sorted by name.
    pub entries: Vec<DirEntry>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileInfo {
    /// Where.
    pub path: String,
    /// How much.
    pub size_bytes: u64,
}
