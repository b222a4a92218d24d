//! What bad input gets: one line that names the field or the file and the rule, and exit code 2.

use std::io::Read;
use std::path::Path;

use spore_builder::manifest::{BaseName, MAX_BYTES, ManifestFileError};
use spore_builder::{BuildError, ErrorCode, HostMemory, Limits, Manifest, MiB};

const LIMITS: fn() -> Limits = || Limits {
    host_memory: HostMemory::new(MiB::new(23980)),
};

/// The line that `manifest` is refused with.
fn refusal(manifest: &str) -> String {
    let error = match Manifest::parse(manifest.as_bytes(), &LIMITS()) {
        Ok(_) => panic!("not refused: {manifest}"),
        Err(error) => BuildError::from(error),
    };
    let line = error.to_string();
    assert_eq!(
        (error.code(), error.exit_code()),
        (ErrorCode::InvalidManifest, 2),
        "{line}"
    );
    assert!(
        !line.contains('\n') && !line.contains('\0') && line.len() < 500,
        "{line:?}"
    );
    line
}

/// The manifest of one step.
fn step(step: &str) -> String {
    format!(r#"{{"base":"busybox","steps":[{step}]}}"#)
}

/// The manifest of one step of this type and with these arguments.
fn args(step_type: &str, args: &str) -> String {
    step(&format!(r#"{{"type":"{step_type}","args":{args}}}"#))
}

/// Each manifest's refusal is exactly the line beside it.
fn all_refused(table: &[(String, &str)]) {
    for (manifest, line) in table {
        assert_eq!(refusal(manifest), *line, "{manifest}");
    }
}

#[test]
fn a_manifest_that_is_no_json_object() {
    all_refused(&[
        (
            "{\"base\": \"b\",\n}".into(),
            "the manifest is not JSON: trailing comma at line 2 column 1",
        ),
        (
            "base: b".into(),
            "the manifest is not JSON: expected value at line 1 column 1",
        ),
        ("[]".into(), "the manifest is an array; it must be an object"),
        ("null".into(), "the manifest is null; it must be an object"),
    ]);
}

#[test]
fn missing_and_unknown_fields() {
    all_refused(&[
        ("{}".into(), "base is missing"),
        (r#"{"steps":[]}"#.into(), "base is missing"),
        (r#"{"base":"b"}"#.into(), "steps is missing"),
        (
            r#"{"base":"b","steps":[],"builder_memory_mb":1}"#.into(),
            "builder_memory_mb is not a known field; \
             known here: base, steps, name, builderMemoryMB, runtimeMemoryMB, \
             diskMB",
        ),
        (step(r#"{"args":{}}"#), "steps[0].type is missing"),
        (step(r#"{"type":"run"}"#), "steps[0].args is missing"),
        (args("run", "{}"), "steps[0].args.commands is missing"),
        (
            args("add_file", r#"{"path":"/a"}"#),
            "steps[0].args.content is missing",
        ),
        (
            args("add_dir", r#"{"path":"/a","files":[{"content":""}]}"#),
            "steps[0].args.files[0].relativePath is missing",
        ),
        (
            step(r#"{"type":"run","args":{"commands":[]},"when":"x"}"#),
            "steps[0].when is not a known field; known here: type, args",
        ),
        (
            args("add_file", r#"{"path":"/a","content":"","owner":"me"}"#),
            "steps[0].args.owner is not a known field; known here: path, content, mode",
        ),
        (
            args("add_dir", r#"{"path":"/a","files":[{"path":"x","content":""}]}"#),
            "steps[0].args.files[0].path is not a known field; known here: relativePath, content, mode",
        ),
    ]);
}

#[test]
fn an_unknown_step_type_is_told_the_known_ones() {
    let known = "it must be one of apt_install, pip_install, run, env, workdir, add_file, add_dir";
    all_refused(&[
        (
            step(r#"{"type":"RUN","args":{}}"#),
            &format!(r#"steps[0].type is "RUN"; {known}"#),
        ),
        (
            step(r#"{"type":"run","args":{"commands":[]}},{"type":"copy\n","args":{}}"#),
            &format!(r#"steps[1].type is "copy\n"; {known}"#),
        ),
    ]);
}

#[test]
fn wrong_json_types() {
    all_refused(&[
        (
            r#"{"base":1,"steps":[]}"#.into(),
            "base is a number; it must be a string",
        ),
        (
            r#"{"base":"b","steps":{}}"#.into(),
            "steps is an object; it must be an array",
        ),
        (
            r#"{"base":"b","steps":[],"name":null}"#.into(),
            "name is null; it must be a string",
        ),
        (step("[]"), "steps[0] is an array; it must be an object"),
        (
            step(r#"{"type":7,"args":{}}"#),
            "steps[0].type is a number; it must be a string",
        ),
        (
            args("run", r#""ls""#),
            "steps[0].args is a string; it must be an object",
        ),
        (
            args("run", r#"{"commands":"ls"}"#),
            "steps[0].args.commands is a string; it must be an array",
        ),
        (
            args("run", r#"{"commands":["a",1]}"#),
            "steps[0].args.commands[1] is a number; it must be a string",
        ),
        (
            args("env", r#"{"vars":[]}"#),
            "steps[0].args.vars is an array; it must be an object",
        ),
        (
            args("env", r#"{"vars":{"N":1}}"#),
            "steps[0].args.vars.N is a number; it must be a string",
        ),
        (
            args("workdir", r#"{"path":true}"#),
            "steps[0].args.path is a boolean; it must be a string",
        ),
        (
            args("add_file", r#"{"path":"/a","content":["eA=="]}"#),
            "steps[0].args.content is an array; it must be a string",
        ),
    ]);
}

#[test]
fn keys_given_twice_and_nul_characters() {
    all_refused(&[
        (
            r#"{"base":"a","base":"b","steps":[]}"#.into(),
            "base is given twice; a key may stand in an object once",
        ),
        (
            args("env", r#"{"vars":{"A":"1","A":"1"}}"#),
            "steps[0].args.vars.A is given twice; a key may stand in an object once",
        ),
        (
            args("workdir", r#"{"path":"/a\u0000"}"#),
            "steps[0].args.path contains a NUL character",
        ),
        (
            args("run", r#"{"commands":["a\u0000b"]}"#),
            "steps[0].args.commands[0] contains a NUL character",
        ),
        (
            args("env", r#"{"vars":{"A":"\u0000"}}"#),
            "steps[0].args.vars.A contains a NUL character",
        ),
    ]);
}

#[test]
fn paths_that_are_not_one_plain_place() {
    all_refused(&[
        (
            args("workdir", r#"{"path":"app"}"#),
            r#"steps[0].args.path is "app"; it must be an absolute path, beginning with /"#,
        ),
        (
            args("add_file", r#"{"path":"/srv/../etc/passwd","content":""}"#),
            r#"steps[0].args.path is "/srv/../etc/passwd"; it must not have `.` or `..` in it"#,
        ),
        (
            args("add_file", r#"{"path":"/srv/","content":""}"#),
            r#"steps[0].args.path is "/srv/"; it must name a file, so it must not end with /"#,
        ),
        (
            args("add_dir", r#"{"path":"//srv","files":[]}"#),
            r#"steps[0].args.path is "//srv"; it must not have two slashes in a row"#,
        ),
        (
            args(
                "add_dir",
                r#"{"path":"/srv","files":[{"relativePath":"a/../../b","content":""}]}"#,
            ),
            r#"steps[0].args.files[0].relativePath is "a/../../b"; it must not have `.` or `..` in it"#,
        ),
        (
            args(
                "add_dir",
                r#"{"path":"/srv","files":[{"relativePath":"/etc/passwd","content":""}]}"#,
            ),
            r#"steps[0].args.files[0].relativePath is "/etc/passwd"; it must be a path relative to the step's own path, not beginning with /"#,
        ),
    ]);
}

#[test]
fn content_and_modes() {
    let content = |content: &str| args("add_file", &format!(r#"{{"path":"/a","content":"{content}"}}"#));
    for bad in [
        "eA", "eA=", "e", "eA==\\n", "e A==", "_-8=", "eB==", "eA==eA==", "é",
    ] {
        let line = refusal(&content(bad));
        let says = "steps[0].args.content is not base64 (RFC 4648 section 4, with padding): ";
        assert!(line.starts_with(says), "{line}");
    }
    let mode = |mode: &str| {
        args(
            "add_file",
            &format!(r#"{{"path":"/a","content":"","mode":{mode}}}"#),
        )
    };
    for bad in [
        "493",
        "755.0",
        "null",
        "true",
        "\"rwx\"",
        "\"0o755\"",
        "\"99\"",
        "\"888\"",
        "[]",
    ] {
        let line = refusal(&mode(bad));
        assert!(line.starts_with("steps[0].args.mode is "), "{line}");
        assert!(
            line.ends_with(r#"it must be a string of three or four octal digits, such as "0644""#),
            "{line}"
        );
    }
}

#[test]
fn names_variables_and_packages() {
    for (manifest, begins) in [
        (
            r#"{"base":"../b","steps":[]}"#.to_owned(),
            r#"base is "../b"; it must be 1 to 63 of a-z, "#,
        ),
        (
            r#"{"base":"b","steps":[],"name":"My Image"}"#.into(),
            r#"name is "My Image"; it must be 1 to 63 of"#,
        ),
        (
            args("env", r#"{"vars":{"A=B":"1"}}"#),
            r#"steps[0].args.vars["A=B"] is no name for an environment"#,
        ),
        (
            args("apt_install", r#"{"packages":["-y"]}"#),
            r#"steps[0].args.packages[0] is "-y"; it must be a Debian"#,
        ),
        (
            args("apt_install", r#"{"packages":["a b"]}"#),
            r#"steps[0].args.packages[0] is "a b"; it must be a Debian"#,
        ),
        (
            args("pip_install", r#"{"packages":["flask","git+https://x"]}"#),
            r#"steps[0].args.packages[1] is "git+https://x"; it must be a name"#,
        ),
    ] {
        let line = refusal(&manifest);
        assert!(line.starts_with(begins), "{line}");
    }
}

#[test]
fn a_disk_that_is_not_a_whole_number_in_its_range() {
    for found in [
        "0",
        "255",
        "1048577",
        "-1",
        "1024.5",
        "4294967552",
        "\"1024\"",
        "null",
    ] {
        assert_eq!(
            refusal(&format!(r#"{{"base":"b","steps":[],"diskMB":{found}}}"#)),
            format!("diskMB is {found}; it must be a whole number of MiB from 256 to 1048576")
        );
    }
    for good in [256, 1 << 20] {
        let text = format!(r#"{{"base":"b","steps":[],"diskMB":{good}}}"#);
        let manifest = Manifest::parse(text.as_bytes(), &LIMITS()).unwrap();
        assert_eq!(manifest.disk().unwrap().get(), good);
        let hash = Manifest::parse(br#"{"base":"b","steps":[]}"#, &LIMITS()).unwrap();
        assert_eq!(manifest.content_hash(), hash.content_hash());
    }
}

#[test]
fn memory_that_is_not_a_whole_number_in_its_range() {
    for (field, range) in [
        ("builderMemoryMB", "256 to 23980 (this host's memory)"),
        ("runtimeMemoryMB", "256 to 16384 (the most a sandbox may have)"),
    ] {
        for (value, found) in [
            ("0", "0"),
            ("64", "64"),
            ("255", "255"),
            ("-1", "-1"),
            ("-0", "-0.0"),
            ("1024.0", "1024.0"),
            ("1e3", "1000.0"),
            ("1024.5", "1024.5"),
            ("\"1024\"", "\"1024\""),
            ("true", "true"),
            ("null", "null"),
            ("[1024]", "an array"),
            ("{}", "an object"),
            ("23981", "23981"),
            ("4294968320", "4294968320"),
            ("9007199254740993", "9007199254740993"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(
                refusal(&format!(r#"{{"base":"b","steps":[],"{field}":{value}}}"#)),
                format!("{field} is {found}; it must be a whole number of MiB from {range}")
            );
        }
        for huge in ["18446744073709551616", "-9223372036854775809", "1e300", "1e999"] {
            let line = refusal(&format!(r#"{{"base":"b","steps":[],"{field}":{huge}}}"#));
            assert!(
                line.starts_with(field) || line.starts_with("the manifest is not JSON"),
                "{line}"
            );
        }
    }
    for good in [256, 16384] {
        let text = format!(r#"{{"base":"b","steps":[],"builderMemoryMB":{good},"runtimeMemoryMB":{good}}}"#);
        let manifest = Manifest::parse(text.as_bytes(), &LIMITS()).unwrap();
        assert_eq!(
            (manifest.builder_memory().get(), manifest.runtime_memory().get()),
            (good, good)
        );
    }
}

#[test]
fn more_than_linux_or_we_can_take() {
    let var = |name: usize| {
        format!(
            r#"{{"type":"env","args":{{"vars":{{"V{name}":"{}"}}}}}}"#,
            "x".repeat(120_000)
        )
    };
    let steps: Vec<String> = (0..5).map(var).collect();
    assert_eq!(
        refusal(&step(&steps.join(","))),
        "steps[4].args.vars is 600015 bytes long; it may be 524288 for all variables of all steps"
    );
    let same: Vec<String> = (0..5).map(|_| var(0)).collect();
    assert!(
        Manifest::parse(step(&same.join(",")).as_bytes(), &LIMITS()).is_ok(),
        "overwriting adds nothing"
    );

    let packages = format!(r#"{{"packages":[{}"xx"]}}"#, r#""xx","#.repeat(1000));
    assert_eq!(
        refusal(&args("apt_install", &packages)),
        "steps[0].args.packages has 1001 entries; it may have 1000"
    );
}

#[test]
fn a_manifest_over_64_mib_is_refused_by_its_size_and_never_read_to_its_end() {
    let spaces = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
    let line = Manifest::parse(&spaces, &LIMITS()).unwrap_err().to_string();
    assert_eq!(line, "the manifest is over 64 MiB, the most a manifest may have");
    let error = Manifest::read(std::io::repeat(b' '), Path::new("endless.json"), &LIMITS()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "endless.json: the manifest is over 64 MiB, the most a manifest may have"
    );
}

#[test]
fn a_manifest_of_just_64_mib_is_built() {
    let head = r#"{"base":"b","steps":[{"type":"add_file","args":{"path":"/a","content":""#;
    let tail = r#""}}]}"#;
    let room = usize::try_from(MAX_BYTES).unwrap() - head.len() - tail.len();
    let content = "AAAA".repeat(room / 4);
    let manifest = Manifest::parse(format!("{head}{content}{tail}").as_bytes(), &LIMITS());
    assert!(manifest.is_ok(), "{:?}", manifest.err());
}

#[test]
fn a_file_that_cannot_be_read_or_is_refused_is_named() {
    let missing = Manifest::read_file(Path::new("/nonexistent/m.json"), &LIMITS()).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/m.json: cannot be read: No such file"),
        "{missing}"
    );
    let directory = Manifest::read_file(Path::new("/"), &LIMITS()).unwrap_err();
    assert!(
        matches!(directory, ManifestFileError::Unreadable { .. }),
        "{directory}"
    );
    assert_eq!(BuildError::from(directory).exit_code(), 2);

    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let broken = Manifest::read(Broken, Path::new("-"), &LIMITS()).unwrap_err();
    assert_eq!(broken.to_string(), "-: cannot be read: gone");
}

#[test]
fn an_unknown_base() {
    let store = spore_builder::base::BaseStore::new("/nonexistent");
    let error = BuildError::from(store.get(&BaseName::parse("debian-99").unwrap()).unwrap_err());
    assert_eq!((error.code().as_str(), error.exit_code()), ("unknown_base", 2));
    assert!(
        error
            .to_string()
            .starts_with(r#"base is "debian-99", which this host does not have"#)
    );
}
