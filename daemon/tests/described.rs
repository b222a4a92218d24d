//! `docs/api.md` has the calls that there are, with the types that they take and answer.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A row of the table: what is called, and the types that its cells name.
struct Row {
    call: String,
    takes: Option<String>,
    answers: Vec<String>,
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_type(text: &&str) -> bool {
    text.starts_with(|first: char| first.is_ascii_uppercase()) && text.chars().all(char::is_alphanumeric)
}

fn rows(page: &str) -> Vec<Row> {
    let cells = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        Some((format!("`{}", cells.next()?), cells.next()?.to_owned()))
    });
    cells
        .map(|(call, answers)| Row {
            // What follows the path is said in words.
            call: quoted(&call)
                .next()
                .unwrap()
                .split('?')
                .next()
                .unwrap()
                .to_owned(),
            takes: quoted(&call).skip(1).find(is_type).map(str::to_owned),
            answers: quoted(&answers).filter(is_type).map(str::to_owned).collect(),
        })
        .collect()
}

/// The types that a part of the description refers to.
fn references(part: &Value, found: &mut BTreeSet<String>) {
    match part {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                found.extend(reference.rsplit('/').next().map(str::to_owned));
            }
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn the_page_has_every_call_and_no_other_with_the_types_it_takes_and_answers() {
    let description: Value = serde_json::from_str(&spore_daemon::openapi().unwrap()).unwrap();
    let mut described = BTreeMap::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            described.insert(format!("{} {path}", method.to_uppercase()), operation);
        }
    }
    let rows = rows(include_str!("../../docs/api.md"));
    assert!(rows.len() > 30);
    let mut named = BTreeSet::new();
    for row in &rows {
        let Some(operation) = described.get(&row.call) else {
            // It does not describe itself.
            assert_eq!(row.call, "GET /v1/openapi.json");
            continue;
        };
        named.insert(row.call.clone());
        let mut taken = BTreeSet::new();
        references(&operation["requestBody"], &mut taken);
        assert_eq!(taken.pop_first(), row.takes, "{}", row.call);
        let mut answered = BTreeSet::new();
        references(&operation["responses"], &mut answered);
        for answer in &row.answers {
            assert!(
                answered.contains(answer),
                "{}: {answer} is none of {answered:?}",
                row.call
            );
        }
    }
    let missing: Vec<_> = described.keys().filter(|call| !named.contains(*call)).collect();
    assert!(missing.is_empty(), "not in the page: {missing:?}");
}
