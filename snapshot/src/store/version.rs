//! Which form a data directory has, in its file `version`: a number. A build that knows only earlier ones must not touch
//! it; it could not see what it would throw away.

use std::io;
use std::path::Path;

use super::{Store, StoreError};
use crate::files::read_small;

/// The form that this build makes and knows. Things in it have versions of their own.
const VERSION: u32 = 1;
const FILE: &str = "version";
/// The longest such file, in bytes.
const MAX: u64 = 64;

impl Store {
    /// Refuses a data directory of a later build. One that says nothing is of the first form, or not there yet.
    ///
    /// # Errors
    /// [`StoreError::Newer`]; when the file cannot be read, or says something else.
    pub fn check_version(data_dir: &Path) -> Result<(), StoreError> {
        Self::attach(data_dir).version().map(drop)
    }

    /// Which form it says it has, if it says so.
    ///
    /// # Errors
    /// As [`Store::check_version`].
    pub(super) fn version(&self) -> Result<Option<u32>, StoreError> {
        let path = self.root.join(FILE);
        let text = match read_small(&path, MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let text = String::from_utf8_lossy(&text);
        match text.trim().parse::<u32>() {
            Ok(found) if found > VERSION => Err(StoreError::Newer {
                root: self.root.clone(),
                found,
                known: VERSION,
            }),
            Ok(found) => Ok(Some(found)),
            Err(error) => Err(StoreError::BadRecord {
                path,
                why: format!("{:?} is no version: {error}", text.trim()),
            }),
        }
    }

    /// Says which form the directory has.
    pub(super) fn say_version(&self) -> Result<(), StoreError> {
        self.put_file(&self.root.join(FILE), format!("{VERSION}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_a_later_build_is_refused_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        Store::check_version(dir.path()).unwrap();
        Store::open(dir.path()).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"1\n");
        Store::open(dir.path()).unwrap();

        let left = dir.path().join("tmp/left");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(&file, "2\n").unwrap();
        for refused in [
            Store::open(dir.path()).map(drop),
            Store::check_version(dir.path()),
        ] {
            assert!(matches!(
                refused.unwrap_err(),
                StoreError::Newer {
                    found: 2,
                    known: 1,
                    ..
                }
            ));
        }
        assert!(left.exists(), "nothing was swept");
        for odd in ["", "one", "-1", "99999999999", &"1".repeat(100)] {
            std::fs::write(&file, odd).unwrap();
            assert!(Store::open(dir.path()).is_err(), "{odd}");
        }
    }
}
