//! Where in a manifest a value stands: `steps[3].args.path`.

use std::fmt;

use super::rule::quoted;

/// A field's place, as a list of borrowed segments that ends at the root. It lives on the stack of the
/// parser, so nothing is allocated until a refusal has to be printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> Field<'a> {
    /// The manifest itself.
    pub(crate) const ROOT: Field<'static> = Field {
        parent: None,
        segment: Segment::Root,
    };

    /// The value under `key` of the object that stands here.
    pub(crate) fn key(&'a self, key: &'a str) -> Field<'a> {
        Field {
            parent: Some(self),
            segment: Segment::Key(key),
        }
    }

    /// The `index`-th value, from 0, of the array that stands here.
    pub(crate) fn index(&'a self, index: usize) -> Field<'a> {
        Field {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return f.write_str("the manifest");
        };
        let at_root = matches!(parent.segment, Segment::Root);
        if !at_root {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Root => Ok(()),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) if is_plain(key) => write!(f, "{}{key}", if at_root { "" } else { "." }),
            Segment::Key(key) => write!(f, "[{}]", quoted(key)),
        }
    }
}

/// Whether a key can be written after a dot; any other is quoted, so that a message stays one readable line.
fn is_plain(key: &str) -> bool {
    (1..=64).contains(&key.len())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !key.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_reads_like_a_path_through_the_json() {
        let steps = Field::ROOT.key("steps");
        let step = steps.index(3);
        let args = step.key("args");
        assert_eq!(args.key("path").to_string(), "steps[3].args.path");
        assert_eq!(Field::ROOT.to_string(), "the manifest");
    }

    #[test]
    fn a_key_that_is_not_a_plain_word_is_quoted_and_kept_on_one_line() {
        let vars = Field::ROOT.key("vars");
        assert_eq!(vars.key("a b\n").to_string(), r#"vars["a b\n"]"#);
        assert_eq!(Field::ROOT.key("").to_string(), r#"[""]"#);
        assert!(vars.key(&"x".repeat(5000)).to_string().len() < 120);
    }
}
