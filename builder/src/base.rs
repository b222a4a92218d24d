//! The root file systems a build can start from.
//!
//! A base is a directory `<cache>/bases/<name>/` with two files, written by `guest/bases/build.sh`:
//! - `rootfs.ext4`, the file system, with our agent as its PID 1;
//! - `base.json`, its description: `{"formatVersion": 1, "name": "busybox", "packageManager": null}`. The
//!   package manager is `null` or `"apt"`. Fields that this version does not know are left alone, so a recipe
//!   may add more about itself.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::hash::BaseDigest;
use crate::manifest::BaseName;

/// The version of `base.json` that this program reads.
pub const FORMAT_VERSION: u64 = 1;
/// A description is a few lines; a file larger than this is not one.
const MAX_DESCRIPTION: u64 = 64 << 10;

/// How packages are installed on a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PackageManager {
    /// Debian's apt.
    Apt,
}

/// A base on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    name: BaseName,
    rootfs: PathBuf,
    package_manager: Option<PackageManager>,
}

/// The directory that holds the bases.
#[derive(Clone, Debug)]
pub struct BaseStore {
    directory: PathBuf,
}

/// A base was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// There is no base of this name.
    #[error(
        "base is \"{name}\", which this host does not have; {}",
        list_known(known, directory)
    )]
    Unknown {
        /// The name asked for.
        name: BaseName,
        /// The bases there are, sorted.
        known: Vec<BaseName>,
        /// Where bases were looked for.
        directory: PathBuf,
    },
    /// A file of a base could not be read.
    #[error("base \"{name}\": cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The base.
        name: BaseName,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// A base's files are not what they should be.
    #[error("base \"{name}\": {} {problem}; build the base again", path.display())]
    Damaged {
        /// The base.
        name: BaseName,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

fn list_known(known: &[BaseName], directory: &Path) -> String {
    if known.is_empty() {
        return format!("no base has been built yet in {}", directory.display());
    }
    let names: Vec<&str> = known.iter().map(BaseName::as_str).collect();
    format!("it has: {}", names.join(", "))
}

/// `base.json` as it stands in the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    name: String,
    /// Required, though it may be `null`: a recipe has to say so.
    #[serde(deserialize_with = "Option::deserialize")]
    package_manager: Option<PackageManager>,
}

/// The one field that every version of `base.json` has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    format_version: u64,
}

impl Base {
    /// Its name.
    pub fn name(&self) -> &BaseName {
        &self.name
    }

    /// Its root file system: an ext4 image. Nothing may write to it.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// How packages are installed on it, if they can be.
    pub fn package_manager(&self) -> Option<PackageManager> {
        self.package_manager
    }

    /// BLAKE3 over the root file system. Reads all of it.
    ///
    /// # Errors
    /// [`BaseError::Unreadable`].
    pub fn digest(&self) -> Result<BaseDigest, BaseError> {
        let mut hasher = blake3::Hasher::new();
        let hashed = File::open(&self.rootfs).and_then(|file| hasher.update_reader(file).map(drop));
        match hashed {
            Ok(()) => Ok(BaseDigest::from_bytes(*hasher.finalize().as_bytes())),
            Err(cause) => {
                let (name, path) = (self.name.clone(), self.rootfs.clone());
                Err(BaseError::Unreadable { name, path, cause })
            }
        }
    }
}

impl BaseStore {
    /// The bases in `directory`, which is `<cache>/bases`.
    pub fn new(directory: impl Into<PathBuf>) -> BaseStore {
        BaseStore {
            directory: directory.into(),
        }
    }

    /// The names of the bases that are here, sorted: every directory whose `base.json` calls it by its own
    /// name (builds lie beside it under longer names). A store that was never made or cannot be read has none.
    pub fn names(&self) -> Vec<BaseName> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut names: Vec<BaseName> = entries
            .filter_map(|entry| BaseName::parse(entry.file_name().to_str()?).ok())
            .filter(|name| {
                let path = self.directory.join(name.as_str()).join("base.json");
                read_bounded(&path).is_ok_and(|bytes| parse_description(name, &bytes).is_ok())
            })
            .collect();
        names.sort_unstable();
        names
    }

    /// The base called `name`.
    ///
    /// # Errors
    /// [`BaseError`]: unknown (with the names that are known), unreadable, or damaged.
    pub fn get(&self, name: &BaseName) -> Result<Base, BaseError> {
        let directory = self.directory.join(name.as_str());
        let description = self.read_description(name, &directory.join("base.json"))?;
        let rootfs = directory.join("rootfs.ext4");
        let damaged = |problem: &str| {
            let (name, path) = (name.clone(), rootfs.clone());
            Err(BaseError::Damaged {
                name,
                path,
                problem: problem.to_owned(),
            })
        };
        match fs::metadata(&rootfs) {
            Err(cause) => Err(BaseError::Unreadable {
                name: name.clone(),
                path: rootfs,
                cause,
            }),
            Ok(metadata) if !metadata.is_file() => damaged("is not a regular file"),
            Ok(metadata) if metadata.len() == 0 => damaged("is empty"),
            Ok(_) => Ok(Base {
                name: name.clone(),
                rootfs,
                package_manager: description.package_manager,
            }),
        }
    }

    fn read_description(&self, name: &BaseName, path: &Path) -> Result<Description, BaseError> {
        let bytes = match read_bounded(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (known, directory) = (self.names(), self.directory.clone());
                return Err(BaseError::Unknown {
                    name: name.clone(),
                    known,
                    directory,
                });
            }
            Err(cause) => {
                return Err(BaseError::Unreadable {
                    name: name.clone(),
                    path: path.to_owned(),
                    cause,
                });
            }
        };
        parse_description(name, &bytes).map_err(|problem| BaseError::Damaged {
            name: name.clone(),
            path: path.to_owned(),
            problem,
        })
    }
}

/// The bytes of a description, and one more than it may have if there are more.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_DESCRIPTION + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A description, or what is wrong with it.
fn parse_description(name: &BaseName, bytes: &[u8]) -> Result<Description, String> {
    let no_description = |error: serde_json::Error| format!("is not a base's description: {error}");
    let version: Version = serde_json::from_slice(bytes).map_err(no_description)?;
    if version.format_version != FORMAT_VERSION {
        let found = version.format_version;
        return Err(format!(
            "has formatVersion {found}, and this spore reads {FORMAT_VERSION}"
        ));
    }
    let description: Description = serde_json::from_slice(bytes).map_err(no_description)?;
    if description.name != name.as_str() {
        return Err(format!("says that its name is {:?}", description.name));
    }
    Ok(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> BaseName {
        BaseName::parse(text).unwrap()
    }

    fn store_with(bases: &[(&str, &str)]) -> (tempfile::TempDir, BaseStore) {
        let directory = tempfile::tempdir().unwrap();
        for (name, description) in bases {
            let base = directory.path().join(name);
            fs::create_dir(&base).unwrap();
            fs::write(base.join("base.json"), description).unwrap();
            fs::write(base.join("rootfs.ext4"), "a file system").unwrap();
        }
        let store = BaseStore::new(directory.path());
        (directory, store)
    }

    const BUSYBOX: &str = r#"{"formatVersion":1,"name":"busybox","packageManager":null,"about":"x"}"#;
    const DEBIAN: &str = r#"{"formatVersion":1,"name":"debian-12","packageManager":"apt"}"#;

    #[test]
    fn a_base_is_found_by_its_name_with_its_file_and_package_manager() {
        let (directory, store) = store_with(&[("busybox", BUSYBOX), ("debian-12", DEBIAN)]);
        let busybox = store.get(&name("busybox")).unwrap();
        assert_eq!(busybox.package_manager(), None);
        assert_eq!(busybox.rootfs(), directory.path().join("busybox/rootfs.ext4"));
        assert_eq!(
            store.get(&name("debian-12")).unwrap().package_manager(),
            Some(PackageManager::Apt)
        );
    }

    #[test]
    fn an_unknown_base_is_told_which_there_are() {
        let (_directory, store) = store_with(&[("debian-12", DEBIAN), ("busybox", BUSYBOX)]);
        let message = store.get(&name("alpine")).unwrap_err().to_string();
        assert_eq!(
            message,
            r#"base is "alpine", which this host does not have; it has: busybox, debian-12"#
        );
        let none = BaseStore::new("/nonexistent/bases")
            .get(&name("alpine"))
            .unwrap_err()
            .to_string();
        assert!(
            none.ends_with("no base has been built yet in /nonexistent/bases"),
            "{none}"
        );
    }

    #[test]
    fn a_base_whose_description_is_wrong_is_refused_with_the_file_and_what_to_do() {
        for (text, says) in [
            ("", "is not a base's description: EOF"),
            ("{}", "missing field `formatVersion`"),
            (
                r#"{"formatVersion":2}"#,
                "has formatVersion 2, and this spore reads 1",
            ),
            (
                r#"{"formatVersion":1,"name":"busybox"}"#,
                "missing field `packageManager`",
            ),
            (
                r#"{"formatVersion":1,"name":"busybox","packageManager":"dnf"}"#,
                "unknown variant `dnf`",
            ),
            (DEBIAN, r#"says that its name is "debian-12""#),
        ] {
            let (_directory, store) = store_with(&[("busybox", text)]);
            let message = store.get(&name("busybox")).unwrap_err().to_string();
            assert!(message.contains("busybox/base.json "), "{message}");
            assert!(
                message.contains(says) && message.ends_with("build the base again"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_base_without_a_file_system_is_refused() {
        let (directory, store) = store_with(&[("busybox", BUSYBOX)]);
        let rootfs = directory.path().join("busybox/rootfs.ext4");
        fs::write(&rootfs, "").unwrap();
        assert!(
            store
                .get(&name("busybox"))
                .unwrap_err()
                .to_string()
                .contains("rootfs.ext4 is empty")
        );
        fs::remove_file(&rootfs).unwrap();
        assert!(matches!(
            store.get(&name("busybox")),
            Err(BaseError::Unreadable { .. })
        ));
        fs::create_dir(&rootfs).unwrap();
        assert!(matches!(
            store.get(&name("busybox")),
            Err(BaseError::Damaged { .. })
        ));
    }

    #[test]
    fn a_rebuilt_base_has_another_digest() {
        let (_directory, store) = store_with(&[("busybox", BUSYBOX)]);
        let base = store.get(&name("busybox")).unwrap();
        let before = base.digest().unwrap();
        assert_eq!(before, base.digest().unwrap());
        fs::write(base.rootfs(), "another file system").unwrap();
        assert_ne!(before, base.digest().unwrap());
    }
}
