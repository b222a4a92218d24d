//! An archive of packages for tests: a directory as apt takes it, without a signature.

use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

/// A package: its name, and its files with their paths, modes and contents.
pub struct Package<'a> {
    /// Name.
    pub name: &'a str,
    /// Files, with paths from the root without the first slash.
    pub files: &'a [(&'a str, u32, Vec<u8>)],
}

/// Makes an archive of these packages in a new directory: they lie beside the index, as in `deb URL ./`.
pub fn make(directory: &Path, packages: &[Package<'_>]) {
    std::fs::create_dir(directory).unwrap();
    let mut index = String::new();
    for package in packages {
        let control = format!(
            "Package: {}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n\
             Description: made by a test\n",
            package.name
        );
        let file = format!("{}.deb", package.name);
        pack(package, &control, &directory.join(&file));
        let bytes = std::fs::read(directory.join(&file)).unwrap();
        let _ = writeln!(
            index,
            "{control}Filename: ./{file}\nSize: {}\nSHA256: {}\n",
            bytes.len(),
            hex(&bytes)
        );
    }
    let release = format!("SHA256:\n {} {} Packages\n", hex(index.as_bytes()), index.len());
    std::fs::write(directory.join("Packages"), index).unwrap();
    std::fs::write(directory.join("Release"), release).unwrap();
}

fn pack(package: &Package<'_>, control: &str, to: &Path) {
    let tree = tempfile::tempdir().unwrap();
    let put = |path: &str, mode: u32, bytes: &[u8]| {
        let path = tree.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    put("DEBIAN/control", 0o644, control.as_bytes());
    for (path, mode, bytes) in package.files {
        put(path, *mode, bytes);
    }
    let status = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([tree.path(), to])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success(), "dpkg-deb: {}", package.name);
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
