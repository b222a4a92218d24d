//! Whether the guest still is what we built: PID 1 is this program, and the files it will boot
//! from are this program. Package managers have been seen to replace `/sbin/init`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use sha2::{Digest, Sha256};
use spore_protocol::{CHUNK_BYTES, Failure, FileIntegrity, Integrity};

const RUNNING: &str = "/proc/self/exe";
const FILES: [&str; 2] = ["/sbin/init", "/usr/lib/spore/agent"];

/// Compares what runs with what is on the disk.
pub fn check() -> Result<Integrity, Failure> {
    let failed = |error: &io::Error| Failure::from_io(format!("read {RUNNING}"), error);
    let running_sha256 = digest(RUNNING).map_err(|error| failed(&error))?;
    let running = fs::metadata(RUNNING).map_err(|error| failed(&error))?;
    let files = FILES.map(|path| {
        // A running program cannot be written to, so the same inode has the same bytes.
        let same =
            fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (running.dev(), running.ino()));
        let sha256 = if same {
            Some(running_sha256.clone())
        } else {
            digest(path).ok()
        };
        FileIntegrity {
            path: path.to_owned(),
            sha256,
        }
    });
    let agent_pid = std::process::id();
    let intact = agent_pid == 1
        && files
            .iter()
            .all(|file| file.sha256.as_ref() == Some(&running_sha256));
    Ok(Integrity {
        intact,
        agent_pid,
        running_sha256,
        files: files.into(),
    })
}

fn digest(path: &str) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_whole_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        assert_eq!(
            digest(file.path().to_str().unwrap()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn an_ordinary_process_is_not_an_intact_init() {
        let integrity = check().unwrap();
        assert!(!integrity.intact);
        assert_eq!(integrity.agent_pid, std::process::id());
        assert_eq!(
            integrity.files[1],
            FileIntegrity {
                path: FILES[1].to_owned(),
                sha256: None
            }
        );
    }
}
