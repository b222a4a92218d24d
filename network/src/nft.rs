//! Runs `nft`: rules on its standard input, one transaction a run, never through a shell.

use std::env;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::NetworkError;

/// Lines of what `nft` says that are passed on.
const LINES: usize = 6;

/// The program.
#[derive(Clone, Debug)]
pub(crate) struct Nft(PathBuf);

impl Nft {
    /// Looks for it in `PATH`.
    pub(crate) fn find() -> Result<Nft, NetworkError> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join("nft"))
            .find(|file| {
                file.metadata()
                    .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
            })
            .map(Nft)
            .ok_or_else(|| NetworkError::NoNft {
                path: path.to_string_lossy().into_owned(),
            })
    }

    fn run(&self, doing: &'static str, arguments: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
        let started = Command::new(&self.0)
            .args(arguments)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = started.map_err(NetworkError::system(format!("starting {}", self.0.display())))?;
        // nft reads all of its input before it says anything, so neither waits for the other.
        let written = child
            .stdin
            .take()
            .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = child
            .wait_with_output()
            .map_err(NetworkError::system("waiting for nft"))?;
        if output.status.success() {
            written.map_err(NetworkError::system("writing to nft"))?;
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = last_lines(&said);
        match said.contains("Operation not permitted") {
            true => Err(NetworkError::NoCapability {
                doing: format!("nft: {said}"),
            }),
            false => Err(NetworkError::Nft {
                doing,
                said: match said.is_empty() {
                    true => output.status.to_string(),
                    false => said,
                },
            }),
        }
    }

    /// Makes all of the changes in `rules`, or none.
    pub(crate) fn apply(&self, doing: &'static str, rules: &str) -> Result<(), NetworkError> {
        self.run(doing, &["-f", "-"], rules).map(drop)
    }

    /// The chains of a table of the family `inet`; without the table, nothing.
    pub(crate) fn chains(&self, table: &str) -> Result<Option<Vec<String>>, NetworkError> {
        let doing = "list what is there";
        let malformed = |why: String| NetworkError::Nft {
            doing,
            said: format!("its output is no JSON of nft: {why}"),
        };
        // As an argument: in a file, nft 1.0 prints nothing for it.
        let text = self.run(doing, &["-j", "list tables inet; list chains inet"], "")?;
        let documents: Result<Vec<Listing>, _> =
            serde_json::Deserializer::from_slice(&text).into_iter().collect();
        let documents = documents.map_err(|error| malformed(error.to_string()))?;
        if documents.is_empty() {
            return Err(malformed("nothing".into()));
        }
        let mut found = None;
        for document in documents {
            for item in document.nftables {
                match item {
                    Item {
                        table: Some(named), ..
                    } if named.name == table => {
                        found.get_or_insert_with(Vec::new);
                    }
                    Item {
                        chain: Some(chain), ..
                    } if chain.table.as_deref() == Some(table) => {
                        found.get_or_insert_with(Vec::new).push(chain.name);
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    table: Option<Named>,
    chain: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    table: Option<String>,
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Bytes of the kernel's random numbers, in hexadecimal.
pub(crate) fn random_word() -> io::Result<String> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(bytes.as_mut_slice(), rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_the_ones_that_say_why() {
        let many: String = (0..20).map(|n| format!("line {n}\n\n")).collect();
        let kept = last_lines(&many);
        assert_eq!(kept.lines().count(), LINES);
        assert!(kept.ends_with("line 19"));
        assert_eq!(last_lines(""), "");
    }
}
