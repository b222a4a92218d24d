//! Paths of calls. What a person typed becomes one segment or one value, whatever is in it.

use std::fmt::Write;

/// `text` so that it is one segment of a path or one value of a query (RFC 3986: all but the unreserved is escaped).
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            // Writing to a string does not fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}

/// A sandbox.
pub fn sandbox(id: &str) -> String {
    format!("/v1/sandboxes/{}", escape(id))
}

/// What belongs to a sandbox.
pub fn of_sandbox(id: &str, what: &str) -> String {
    format!("{}/{what}", sandbox(id))
}

/// A file in a sandbox, and the mode it is to have.
pub fn file(id: &str, path: &str, mode: Option<u32>) -> String {
    let mut call = format!("{}?path={}", of_sandbox(id, "files"), escape(path));
    if let Some(mode) = mode {
        let _ = write!(call, "&mode={mode:04o}");
    }
    call
}

/// An image, by name or id.
pub fn image(name: &str) -> String {
    format!("/v1/images/{}", escape(name))
}

/// A checkpoint, by name or id.
pub fn checkpoint(name: &str) -> String {
    format!("/v1/checkpoints/{}", escape(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_leave_its_segment() {
        assert_eq!(sandbox("../host?x#y z"), "/v1/sandboxes/..%2Fhost%3Fx%23y%20z");
        assert_eq!(sandbox("a\0ü"), "/v1/sandboxes/a%00%C3%BC");
    }

    #[test]
    fn a_file_has_its_path_and_mode_in_the_query() {
        assert_eq!(
            file("id", "/a b&c", Some(0o755)),
            "/v1/sandboxes/id/files?path=%2Fa%20b%26c&mode=0755"
        );
        assert_eq!(file("id", "/a", None), "/v1/sandboxes/id/files?path=%2Fa");
    }
}
