//! `base.json`: what a base says about itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::manifest::BaseName;

/// The version of `base.json` that this program reads.
pub const FORMAT_VERSION: u64 = 1;
/// A description is a few lines; a file larger than this is not one.
pub const MAX_DESCRIPTION: u64 = 64 << 10;

/// How packages are installed on a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PackageManager {
    /// Debian's apt.
    Apt,
}

/// How the container image that a base was made of wants its program to be started. Empty for a base that
/// was not imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    /// Environment, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Where the program starts; absolute.
    pub working_dir: Option<String>,
    /// As whom: `user`, `uid`, `user:group`, `uid:gid`; names are those in the base's own `/etc/passwd`.
    pub user: Option<String>,
    /// What is started.
    pub entrypoint: Vec<String>,
    /// What is started if there is no entry point, and else its default arguments.
    pub cmd: Vec<String>,
}

/// `base.json` as it stands in the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    pub(super) name: String,
    /// Required, though it may be `null`: a recipe has to say so.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) package_manager: Option<PackageManager>,
    #[serde(default)]
    pub(super) config: ImageConfig,
}

/// The one field that every version of `base.json` has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    format_version: u64,
}

/// The bytes of a description, and one more than it may have if there are more.
pub(super) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_DESCRIPTION + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A description, or what is wrong with it.
pub(super) fn parse_description(name: &BaseName, bytes: &[u8]) -> Result<Description, String> {
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
