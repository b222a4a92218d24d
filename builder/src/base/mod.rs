//! The root file systems a build can start from.
//!
//! A base is a directory `<cache>/bases/<name>/` with two files, written by `guest/bases/build.sh`:
//! - `rootfs.ext4`, the file system, with our agent as its PID 1;
//! - `base.json`, its description: `{"formatVersion": 1, "name": "busybox", "packageManager": null}`. The
//!   package manager is `null` or `"apt"`. Fields that this version does not know are left alone, so a recipe
//!   may add more about itself.

mod description;
mod error;
mod lock;
mod recipe;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spore_snapshot::disk::Layer;

pub use description::{FORMAT_VERSION, ImageConfig, MAX_DESCRIPTION, PackageManager};
pub use error::BaseError;
pub use lock::Building;
pub use recipe::{RecipeError, Recipes};

use crate::hash::BaseDigest;
use crate::manifest::BaseName;
use description::{Description, parse_description, read_bounded};

/// A base on this host. While this value or a clone of it is there, the base is not removed.
#[derive(Clone, Debug)]
pub struct Base {
    name: BaseName,
    rootfs: PathBuf,
    package_manager: Option<PackageManager>,
    config: ImageConfig,
    disk_bytes: u64,
    size_bytes: u64,
    built: SystemTime,
    /// None where nothing can be locked, as in a cache that only others write to.
    _in_use: Option<Arc<File>>,
}

/// The directory that holds the bases.
#[derive(Clone, Debug)]
pub struct BaseStore {
    directory: PathBuf,
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

    /// How the container image it was made of wants to be started.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// What the file system takes on the host's disk, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The size of the disk it is, in bytes, holes and all.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// When it was built or imported.
    pub fn built(&self) -> SystemTime {
        self.built
    }

    /// The digest of the root file system as a disk, which is what the store calls it. Reads all of it but
    /// the holes.
    ///
    /// # Errors
    /// [`BaseError::Unreadable`].
    pub fn digest(&self) -> Result<BaseDigest, BaseError> {
        match Layer::open_raw(&self.rootfs).and_then(|disk| disk.digest()) {
            Ok(digest) => Ok(BaseDigest::from_bytes(*digest.as_bytes())),
            Err(error) => Err(BaseError::Unreadable {
                name: self.name.clone(),
                path: self.rootfs.clone(),
                cause: io::Error::other(error),
            }),
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

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
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
        // Before it is looked at: what is locked stays.
        let in_use = lock::reading(&self.directory, name);
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
            Ok(metadata) => Ok(Base {
                name: name.clone(),
                rootfs,
                package_manager: description.package_manager,
                config: description.config,
                disk_bytes: metadata.blocks() * 512,
                size_bytes: metadata.len(),
                built: published(&directory.join("base.json")),
                _in_use: in_use.map(Arc::new),
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

/// When the description was written, which is the last thing a build does.
fn published(description: &Path) -> SystemTime {
    let modified = fs::metadata(description).map(|metadata| metadata.mtime());
    let seconds = modified.ok().and_then(|seconds| u64::try_from(seconds).ok());
    UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or(0))
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
            fs::write(base.join("rootfs.ext4"), [1; 4096]).unwrap();
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
        fs::write(base.rootfs(), [2; 4096]).unwrap();
        assert_ne!(before, base.digest().unwrap());
    }

    #[test]
    fn the_digest_does_not_depend_on_holes() {
        let (_directory, store) = store_with(&[("busybox", BUSYBOX)]);
        let base = store.get(&name("busybox")).unwrap();
        let mut bytes = vec![0; 1 << 20];
        bytes[5] = 1;
        fs::write(base.rootfs(), &bytes).unwrap();
        let full = base.digest().unwrap();
        fs::write(base.rootfs(), &bytes[..4096]).unwrap();
        let sparse = File::options().write(true).open(base.rootfs()).unwrap();
        sparse.set_len(1 << 20).unwrap();
        assert_eq!(full, base.digest().unwrap());
    }

    #[test]
    fn a_base_knows_how_the_image_it_was_made_of_is_started() {
        let text = r#"{"formatVersion":1,"name":"busybox","packageManager":null,
            "config":{"env":["A=b"],"workingDir":"/srv","entrypoint":["/bin/x","-y"]}}"#;
        let (_directory, store) = store_with(&[("busybox", text)]);
        let base = store.get(&name("busybox")).unwrap();
        let expected = ImageConfig {
            env: vec!["A=b".to_owned()],
            working_dir: Some("/srv".to_owned()),
            user: None,
            entrypoint: vec!["/bin/x".to_owned(), "-y".to_owned()],
            cmd: Vec::new(),
        };
        assert_eq!(base.config(), &expected);
    }
}
