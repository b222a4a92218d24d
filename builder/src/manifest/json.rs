//! Untrusted bytes to a JSON tree, and nothing about manifests.
//!
//! `serde_json::Value` would not do: it lets the last of two equal keys win in silence, and a message about a
//! string with a NUL could not say where it stood. The tree that leaves here has no duplicate key and no NUL,
//! is at most [`MAX_DEPTH`] deep and has at most [`MAX_VALUES`] values.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Number;

use super::field::Field;
use super::rule::{ManifestError, Rule, quoted};

/// Levels of arrays and objects; a manifest needs seven. Below serde_json's own 128, so ours is the one met.
pub(crate) const MAX_DEPTH: usize = 32;
/// Values in one text. A dense 64 MiB text of `[[],[],…]` would otherwise grow to 700 MiB.
pub(crate) const MAX_VALUES: usize = 1_000_000;

/// One JSON value. An object keeps the order in which it was written; its keys are distinct.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Parses one JSON text.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Json, ManifestError> {
        let context = Context {
            values: Cell::new(0),
            refusal: RefCell::new(None),
        };
        let seed = Seed {
            context: &context,
            field: &Field::ROOT,
            depth: 0,
        };
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let parsed = seed
            .deserialize(&mut deserializer)
            .and_then(|value| deserializer.end().map(|()| value));
        parsed.map_err(|error| context.refusal.take().unwrap_or_else(|| not_json(&error)))
    }

    /// The value's JSON type with its article.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::String(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }

    /// The value itself for a message if it is short, else its type.
    pub(crate) fn describe(&self) -> String {
        match self {
            Json::Bool(value) => value.to_string(),
            Json::Number(number) => number.to_string(),
            Json::String(text) => quoted(text),
            other => other.type_name().to_owned(),
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(number) => number.serialize(serializer),
            Json::String(text) => serializer.serialize_str(text),
            Json::Array(items) => serializer.collect_seq(items),
            Json::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

fn not_json(error: &serde_json::Error) -> ManifestError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let detail = text
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&text);
    Rule::NotJson {
        detail: detail.to_owned(),
        line,
        column,
    }
    .at(&Field::ROOT)
}

/// What all values of one text share. serde can carry a refusal of ours only as text, so it waits here while
/// serde's error unwinds the parser.
struct Context {
    values: Cell<usize>,
    refusal: RefCell<Option<ManifestError>>,
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    context: &'a Context,
    field: &'a Field<'a>,
    depth: usize,
}

impl Seed<'_> {
    fn refuse<E: de::Error>(&self, error: ManifestError) -> E {
        self.context.refusal.replace(Some(error));
        E::custom("refused")
    }

    fn check_text<E: de::Error>(&self, text: &str, field: &Field<'_>) -> Result<(), E> {
        if text.contains('\0') {
            Err(self.refuse(Rule::Nul.at(field)))
        } else {
            Ok(())
        }
    }

    fn check_depth<E: de::Error>(&self) -> Result<(), E> {
        if self.depth < MAX_DEPTH {
            Ok(())
        } else {
            Err(self.refuse(Rule::TooDeep.at(&Field::ROOT)))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        let values = self.context.values.get() + 1;
        self.context.values.set(values);
        if values > MAX_VALUES {
            return Err(self.refuse(Rule::TooManyValues.at(&Field::ROOT)));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Json, E> {
        Number::from_f64(value)
            .map(Json::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Json, E> {
        self.check_text(text, self.field)?;
        Ok(Json::String(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Json, E> {
        self.check_text(&text, self.field)?;
        Ok(Json::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        self.check_depth()?;
        let mut items = Vec::new();
        loop {
            let field = self.field.index(items.len());
            let seed = Seed {
                field: &field,
                depth: self.depth + 1,
                ..self
            };
            match access.next_element_seed(seed)? {
                Some(item) => items.push(item),
                None => return Ok(Json::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        self.check_depth()?;
        let mut entries: Vec<(String, Json)> = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            let field = self.field.key(&key);
            self.check_text(&key, &field)?;
            let value = access.next_value_seed(Seed {
                field: &field,
                depth: self.depth + 1,
                ..self
            })?;
            entries.push((key, value));
        }
        if let Some(key) = first_duplicate(&entries) {
            return Err(self.refuse(Rule::GivenTwice.at(&self.field.key(key))));
        }
        Ok(Json::Object(entries))
    }
}

fn first_duplicate(entries: &[(String, Json)]) -> Option<&str> {
    let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys.windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Json::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_value_comes_through_in_the_order_written() {
        let json = Json::parse(br#"{"b":[null,true,1,-1,1.5,"x"],"a":{}}"#).unwrap();
        let written = serde_json::to_string(&json).unwrap();
        assert_eq!(written, r#"{"b":[null,true,1,-1,1.5,"x"],"a":{}}"#);
    }

    #[test]
    fn text_that_is_not_json_is_refused_with_line_and_column() {
        assert_eq!(
            refusal(""),
            "the manifest is not JSON: EOF while parsing a value at line 1 column 0"
        );
        assert_eq!(
            refusal("{\n  nope}"),
            "the manifest is not JSON: key must be a string at line 2 column 3"
        );
        assert!(refusal("{} {}").contains("trailing characters at line 1 column 4"));
        assert!(refusal("\u{feff}{}").contains("line 1 column 1"));
        assert!(refusal("[1e999]").contains("number out of range"));
    }

    #[test]
    fn lone_surrogates_and_broken_utf8_are_not_json() {
        assert!(refusal(r#"["\ud800"]"#).contains("is not JSON"));
        assert!(refusal(r#"["\ud800\u0041"]"#).contains("is not JSON"));
        assert!(refusal(r#"["\udc00"]"#).contains("is not JSON"));
        assert!(
            Json::parse(b"[\"\xff\"]")
                .unwrap_err()
                .to_string()
                .contains("is not JSON")
        );
        // WTF-8: a surrogate written as three bytes.
        assert!(Json::parse(b"[\"\xed\xa0\x80\"]").is_err());
        assert!(Json::parse(br#"["\ud83d\ude00"]"#).is_ok());
    }

    #[test]
    fn the_same_key_twice_is_refused_at_any_depth_and_however_it_is_escaped() {
        assert_eq!(
            refusal(r#"{"a":1,"a":1}"#),
            "a is given twice; a key may stand in an object once"
        );
        assert!(refusal(r#"{"x":[{"y":1,"\u0079":2}]}"#).starts_with("x[0].y is given twice"));
    }

    #[test]
    fn a_nul_in_a_string_or_key_is_refused_where_it_stands() {
        assert_eq!(
            refusal(r#"{"a":["b","c\u0000"]}"#),
            "a[1] contains a NUL character"
        );
        assert_eq!(refusal(r#"{"a\u0000":1}"#), r#"["a\0"] contains a NUL character"#);
    }

    #[test]
    fn depth_and_number_of_values_are_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Json::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(
            refusal(&nested(MAX_DEPTH + 1)),
            "the manifest is nested deeper than 32 levels"
        );
        assert_eq!(
            refusal(&"[".repeat(1_000_000)),
            "the manifest is nested deeper than 32 levels"
        );
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert_eq!(refusal(&many), "the manifest has more than 1000000 JSON values");
    }

    #[test]
    fn numbers_of_any_size_are_values_or_refusals_never_panics() {
        for text in [
            "9007199254740993",
            "18446744073709551615",
            "18446744073709551616",
            "-0",
            "1e308",
        ] {
            assert!(
                matches!(Json::parse(text.as_bytes()), Ok(Json::Number(_))),
                "{text}"
            );
        }
    }
}
