//! The rules a manifest can break, and the refusal that names one.

use std::fmt;

use super::field::Field;
use super::step::StepType;
use crate::memory::{MAX_DISK, MIN_DISK, MemoryRange};

/// A manifest was refused: which field, and which rule it broke. Prints as one line, whatever the manifest
/// contained.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} {rule}")]
pub struct ManifestError {
    field: String,
    rule: Rule,
}

impl ManifestError {
    /// The field, as a path through the JSON (`steps[3].args.path`), or `the manifest` for the whole.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The rule that was broken.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// What was wrong with a field. Each reads on from the field's name: `base` + ` is missing`.
///
/// The `found` texts come from the manifest; they are quoted, escaped and cut short already.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// More bytes than [`super::MAX_BYTES`].
    #[error("is over {} MiB, the most a manifest may have", super::MAX_BYTES >> 20)]
    TooLarge,
    /// The bytes are not one JSON text in UTF-8. Line and column count from 1.
    #[error("is not JSON: {detail} at line {line} column {column}")]
    NotJson {
        /// What the JSON parser had to say.
        detail: String,
        /// The line, from 1.
        line: usize,
        /// The column in bytes; 0 when the text ended before the line's first byte.
        column: usize,
    },
    /// Arrays and objects stacked deeper than any manifest needs.
    #[error("is nested deeper than {} levels", super::json::MAX_DEPTH)]
    TooDeep,
    /// More JSON values than any manifest needs; it bounds the memory a small but dense text can take.
    #[error("has more than {} JSON values", super::json::MAX_VALUES)]
    TooManyValues,
    /// The same key twice in one object: RFC 8785 (through I-JSON, RFC 7493) forbids it, since parsers
    /// disagree about which one counts.
    #[error("is given twice; a key may stand in an object once")]
    GivenTwice,
    /// A string or key with U+0000, which no path, argument or environment variable can hold.
    #[error("contains a NUL character")]
    Nul,
    /// A required field is absent.
    #[error("is missing")]
    Missing,
    /// A field that means nothing here.
    #[error("is not a known field; known here: {}", known.join(", "))]
    UnknownField {
        /// The fields that would have been understood.
        known: &'static [&'static str],
    },
    /// The wrong JSON type. An optional field that is `null` breaks this too: leaving it out is its only
    /// spelling, so that equal manifests have equal hashes.
    #[error("is {found}; it must be {expected}")]
    WrongType {
        /// What stood there, with its article: `a number`.
        found: &'static str,
        /// What should have: `a string`.
        expected: &'static str,
    },
    /// A step of a type we do not have.
    #[error("is {found}; it must be one of {}", StepType::NAMES.join(", "))]
    UnknownStepType {
        /// The type given.
        found: String,
    },
    /// A name of an image or base out of the grammar of [`super::ImageName`].
    #[error(
        "is {found}; it must be 1 to 63 of a-z, 0-9, `.`, `_` and `-`, and begin with a letter or a digit"
    )]
    BadName {
        /// The name given.
        found: String,
    },
    /// An environment variable's name out of `[A-Za-z_][A-Za-z0-9_]*`.
    #[error(
        "is no name for an environment variable; it must be letters, digits and `_`, not begin with a digit"
    )]
    BadEnvName,
    /// A path that is not one plain place in the guest.
    #[error("is {found}; {problem}")]
    BadPath {
        /// The path given.
        found: String,
        /// What is wrong with it.
        problem: PathProblem,
    },
    /// A file mode that is not three or four octal digits in a string.
    #[error("is {found}; it must be a string of three or four octal digits, such as \"0644\"")]
    BadMode {
        /// The mode given.
        found: String,
    },
    /// File content that is not base64.
    #[error("is not base64 (RFC 4648 section 4, with padding): {detail}")]
    BadBase64 {
        /// What the decoder had to say.
        detail: String,
    },
    /// A package that apt must not be asked for.
    #[error(
        "is {found}; it must be a Debian package name, optionally with :architecture and =version, \
         such as \"curl\" or \"libssl3:amd64=3.0.11-1\""
    )]
    BadAptPackage {
        /// The package given.
        found: String,
    },
    /// A requirement that pip must not be asked for.
    #[error(
        "is {found}; it must be a name, optionally with extras and versions, such as \"requests\" or \
         \"uvicorn[standard]>=0.30,<1\" (no options, URLs, paths or markers)"
    )]
    BadPipRequirement {
        /// The requirement given.
        found: String,
    },
    /// An amount of memory that is not a whole number in its range.
    #[error("is {found}; it must be a whole number of MiB from {range}")]
    BadMemory {
        /// The value given.
        found: String,
        /// The range it has to be in.
        range: MemoryRange,
    },
    /// A disk's size that is not a whole number in its range.
    #[error("is {found}; it must be a whole number of MiB from {MIN_DISK} to {MAX_DISK}")]
    BadDisk {
        /// The value given.
        found: String,
    },
    /// The same file twice in one `add_dir`.
    #[error("is {found}, which an earlier file of this step has already")]
    FileTwice {
        /// The path given.
        found: String,
    },
    /// A list with more entries than it may have.
    #[error("has {found} entries; it may have {limit}")]
    TooMany {
        /// How many it has.
        found: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A command or variable longer than Linux can pass to a program.
    #[error("is {found} bytes long; it may be {limit}{hint}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
        /// The most it may have.
        limit: usize,
        /// What to do instead, or nothing.
        hint: &'static str,
    },
    /// A value that the canonicaliser would not write. No value of the types a step may have can.
    #[error("cannot be written as canonical JSON (RFC 8785): {detail}")]
    NotCanonical {
        /// What the canonicaliser had to say.
        detail: String,
    },
}

impl Rule {
    /// This rule, broken by `field`.
    pub(crate) fn at(self, field: &Field<'_>) -> ManifestError {
        ManifestError {
            field: field.to_string(),
            rule: self,
        }
    }
}

/// What can be wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathProblem {
    /// A guest path that does not begin with `/`.
    #[error("it must be an absolute path, beginning with /")]
    NotAbsolute,
    /// A path within a directory that begins with `/`.
    #[error("it must be a path relative to the step's own path, not beginning with /")]
    NotRelative,
    /// The empty string.
    #[error("it must not be empty")]
    Empty,
    /// A `.` or `..` segment.
    #[error("it must not have `.` or `..` in it")]
    DotSegment,
    /// Two slashes in a row.
    #[error("it must not have two slashes in a row")]
    EmptySegment,
    /// A slash at the end of what must be a file.
    #[error("it must name a file, so it must not end with /")]
    NotAFile,
    /// More than 4095 bytes (Linux `PATH_MAX`).
    #[error("it must be at most 4095 bytes long")]
    TooLong,
    /// A segment of more than 255 bytes (Linux `NAME_MAX`).
    #[error("no part of it may be more than 255 bytes long")]
    SegmentTooLong,
}

/// A string of the user's for a message: in quotes, on one line, and cut after 64 characters.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// `Display` for the newtypes over strings.
macro_rules! display_as_inner {
    ($name:ident) => {
        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use display_as_inner;

impl fmt::Display for MemoryRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} ({})", self.min(), self.max(), self.reason())
    }
}
