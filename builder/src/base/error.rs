//! Why a base was not to be had.

use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::BaseName;

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
    /// It cannot be removed now.
    #[error("base \"{name}\" is in use: a build reads it, or it is being built; try again later")]
    Busy {
        /// The base.
        name: BaseName,
    },
    /// It could not be removed.
    #[error("base \"{name}\": cannot remove {}: {cause}", path.display())]
    Stays {
        /// The base.
        name: BaseName,
        /// The file or directory.
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
