//! Whatever bytes come, a manifest or one line comes out.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use spore_builder::{HostMemory, Limits, Manifest, ManifestError, MiB};

fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    Manifest::parse(
        bytes,
        &Limits {
            host_memory: HostMemory::new(MiB::new(16000)),
        },
    )
}

/// A manifest with every step type and field, the starting point for damage.
fn valid() -> Value {
    json!({
        "base": "debian-12", "name": "x", "builderMemoryMB": 4096, "runtimeMemoryMB": 512,
        "steps": [
            {"type": "apt_install", "args": {"packages": ["curl", "g++=1:2-3"]}},
            {"type": "pip_install", "args": {"packages": ["a[b]>=1"]}},
            {"type": "run", "args": {"commands": ["true"]}},
            {"type": "env", "args": {"vars": {"A": "1"}}},
            {"type": "workdir", "args": {"path": "/w"}},
            {"type": "add_file", "args": {"path": "/a", "content": "AP8=", "mode": "0644"}},
            {"type": "add_dir", "args": {"path": "/d", "files": [
                {"relativePath": "e/f", "content": "", "mode": "755"}]}},
        ],
    })
}

/// The JSON pointers of every value below `value`, itself excepted.
fn pointers(value: &Value, here: &str, all: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, item)| (i.to_string(), item))
            .collect(),
        Value::Object(map) => map.iter().map(|(key, item)| (key.clone(), item)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let pointer = format!("{here}/{key}");
        all.push(pointer.clone());
        pointers(child, &pointer, all);
    }
}

/// `/steps/3/args/path` as messages write it.
fn field_of(pointer: &str) -> String {
    let mut field = String::new();
    for part in pointer.split('/').skip(1) {
        match part.parse::<usize>() {
            Ok(index) => field += &format!("[{index}]"),
            Err(_) if field.is_empty() => field += part,
            Err(_) => field += &format!(".{part}"),
        }
    }
    field
}

fn any_json() -> impl Strategy<Value = Value> {
    let words = select(vec![
        "base",
        "steps",
        "type",
        "args",
        "path",
        "content",
        "mode",
        "run",
        "env",
        "vars",
        "commands",
        "files",
        "add_dir",
        "relativePath",
        "packages",
        "apt_install",
        "/a",
        "../a",
        "b",
        "",
        "\0",
        "-x",
        "x==1",
        "AA==",
    ]);
    let text = prop_oneof![words.prop_map(str::to_owned), any::<String>()];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(text.clone(), inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn one_line(error: &ManifestError) -> Result<(), TestCaseError> {
    let line = error.to_string();
    prop_assert!(line.len() < 1000 && !line.contains(['\n', '\0']), "{:?}", line);
    Ok(())
}

#[test]
fn the_starting_point_is_valid() {
    let manifest = parse(valid().to_string().as_bytes()).unwrap();
    assert_eq!(manifest.steps().len(), manifest.step_digests().len());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_manifest_or_one_line(bytes in vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse(&bytes) {
            one_line(&error)?;
        }
    }

    #[test]
    fn any_json_is_a_manifest_or_one_line(json in any_json()) {
        if let Err(error) = parse(json.to_string().as_bytes()) {
            one_line(&error)?;
        }
    }

    #[test]
    fn a_valid_manifest_with_bytes_flipped_is_a_manifest_or_one_line(
        flips in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = valid().to_string().into_bytes();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Err(error) = parse(&bytes) {
            one_line(&error)?;
        }
    }

    #[test]
    fn any_json_anywhere_in_a_valid_manifest_is_a_manifest_or_one_line_about_it(
        at in any::<Index>(), json in any_json(),
    ) {
        let mut manifest = valid();
        let mut all = Vec::new();
        pointers(&manifest, "", &mut all);
        let pointer = &all[at.index(all.len())];
        *manifest.pointer_mut(pointer).unwrap() = json;
        if let Err(error) = parse(manifest.to_string().as_bytes()) {
            one_line(&error)?;
            // A step whose type became another one is refused for its arguments.
            let about = field_of(pointer.strip_suffix("/type").unwrap_or(pointer));
            let named = error.field();
            prop_assert!(named.starts_with(&about) || named == "the manifest", "{} for {}", error, about);
        }
    }

    #[test]
    fn the_order_of_keys_changes_nothing_and_the_text_of_a_command_does(command in "[^\0]{0,40}") {
        let hash = |text: String| parse(text.as_bytes()).unwrap().content_hash();
        let one = |command: &str| {
            let command = Value::from(command);
            hash(format!(r#"{{"base":"b","steps":[{{"type":"run","args":{{"commands":[{command}]}}}}]}}"#))
        };
        let other = |command: &str| {
            let command = Value::from(command);
            hash(format!(r#"{{"steps":[{{"args":{{"commands":[{command}]}},"type":"run"}}],"base":"b"}}"#))
        };
        prop_assert_eq!(one(&command), other(&command));
        prop_assert_ne!(one(&command), one(&format!("{command}x")));
    }
}
