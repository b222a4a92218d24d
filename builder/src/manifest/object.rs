//! Reading typed fields out of a JSON tree.

use super::field::Field;
use super::json::Json;
use super::rule::{ManifestError, Rule};

type Result<T> = std::result::Result<T, ManifestError>;

/// An object of which every field is known; fields are taken out of it one by one.
pub(crate) struct Object {
    entries: Vec<(String, Json)>,
}

impl Object {
    /// The object at `field`, refused if it has a field that is not in `known`.
    pub(crate) fn open(json: Json, field: &Field<'_>, known: &'static [&'static str]) -> Result<Object> {
        let entries = entries(json, field)?;
        match entries.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(Rule::UnknownField { known }.at(&field.key(key))),
            None => Ok(Object { entries }),
        }
    }

    /// The field called `key`, if it is there. `null` is a value and not an absence.
    pub(crate) fn optional(&mut self, key: &str) -> Option<Json> {
        let index = self.entries.iter().position(|(name, _)| name == key)?;
        Some(self.entries.swap_remove(index).1)
    }

    /// The field called `key`, which stands (or should) at `field`.
    pub(crate) fn required(&mut self, key: &str, field: &Field<'_>) -> Result<Json> {
        self.optional(key)
            .ok_or_else(|| Rule::Missing.at(&field.key(key)))
    }
}

/// An object whose keys are the user's own.
pub(crate) fn entries(json: Json, field: &Field<'_>) -> Result<Vec<(String, Json)>> {
    match json {
        Json::Object(entries) => Ok(entries),
        other => Err(wrong_type(&other, "an object").at(field)),
    }
}

/// An array of at most `limit` items, each made by `item`.
pub(crate) fn array<T>(
    json: Json,
    field: &Field<'_>,
    limit: usize,
    mut item: impl FnMut(Json, &Field<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let Json::Array(items) = json else {
        return Err(wrong_type(&json, "an array").at(field));
    };
    if items.len() > limit {
        return Err(Rule::TooMany {
            found: items.len(),
            limit,
        }
        .at(field));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, json)| item(json, &field.index(index)))
        .collect()
}

/// A string.
pub(crate) fn string(json: Json, field: &Field<'_>) -> Result<String> {
    match json {
        Json::String(text) => Ok(text),
        other => Err(wrong_type(&other, "a string").at(field)),
    }
}

/// A string that `parse` accepts.
pub(crate) fn parsed<T>(
    json: Json,
    field: &Field<'_>,
    parse: impl FnOnce(&str) -> std::result::Result<T, Rule>,
) -> Result<T> {
    parse(&string(json, field)?).map_err(|rule| rule.at(field))
}

fn wrong_type(found: &Json, expected: &'static str) -> Rule {
    Rule::WrongType {
        found: found.type_name(),
        expected,
    }
}
