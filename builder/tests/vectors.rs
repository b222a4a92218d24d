//! The content hash vectors hold by an implementation that shares nothing with ours.

use std::process::Command;

#[test]
fn the_vectors_hold_by_pythons_standard_library() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/check.py");
    match Command::new("python3").arg(script).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => eprintln!("skipped: no python3 here"),
        Err(error) => panic!("{error}"),
    }
}
