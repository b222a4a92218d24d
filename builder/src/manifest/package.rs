//! Packages by name. They become arguments of `apt-get` and `pip`, never shell text; the grammars here see to
//! it that no argument is an option, a path, a URL, or an instruction to do something other than install.

use super::rule::{Rule, display_as_inner, quoted};

/// Longer than any package's name, version and extras.
const MAX_LENGTH: usize = 256;

/// A Debian package: `name[:architecture][=version]`.
///
/// Name and version follow Debian Policy 5.6.1 and 5.6.12. A name may not end with `-`: `apt-get install foo-`
/// removes `foo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AptPackage(String);

/// A Python requirement: PEP 508's name, extras and version specifiers. No URL, no marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipRequirement(String);

display_as_inner!(AptPackage);
display_as_inner!(PipRequirement);

impl AptPackage {
    /// Checks a package.
    ///
    /// # Errors
    /// [`Rule::BadAptPackage`].
    pub fn parse(text: &str) -> Result<AptPackage, Rule> {
        if is_apt_package(text) {
            Ok(AptPackage(text.to_owned()))
        } else {
            Err(Rule::BadAptPackage { found: quoted(text) })
        }
    }

    /// The package as `apt-get install` takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PipRequirement {
    /// Checks a requirement.
    ///
    /// # Errors
    /// [`Rule::BadPipRequirement`].
    pub fn parse(text: &str) -> Result<PipRequirement, Rule> {
        if is_pip_requirement(text) {
            Ok(PipRequirement(text.to_owned()))
        } else {
            Err(Rule::BadPipRequirement { found: quoted(text) })
        }
    }

    /// The requirement as `pip install` takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_apt_package(text: &str) -> bool {
    let (package, version) = match text.split_once('=') {
        Some((package, version)) => (package, Some(version)),
        None => (text, None),
    };
    let (name, architecture) = match package.split_once(':') {
        Some((name, architecture)) => (name, Some(architecture)),
        None => (package, None),
    };
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= MAX_LENGTH
        && name.len() >= 2
        && name.bytes().all(|b| lower(b) || matches!(b, b'+' | b'-' | b'.'))
        && name.bytes().next().is_some_and(lower)
        && !name.ends_with('-')
        && architecture.is_none_or(|text| {
            text.bytes().all(|b| lower(b) || b == b'-')
                && text.bytes().next().is_some_and(lower)
                && !text.ends_with('-')
        })
        && version.is_none_or(|text| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".+-:~".contains(&b))
                && text.bytes().next().is_some_and(|b| b.is_ascii_digit())
        })
}

fn is_pip_requirement(text: &str) -> bool {
    let Some(rest) = strip_identifier(text) else {
        return false;
    };
    let mut rest = skip_space(rest);
    if let Some(extras) = rest.strip_prefix('[') {
        let Some((extras, after)) = extras.split_once(']') else {
            return false;
        };
        let identifier = |extra: &str| strip_identifier(extra.trim_matches(SPACE)) == Some("");
        if !skip_space(extras).is_empty() && !extras.split(',').all(identifier) {
            return false;
        }
        rest = skip_space(after);
    }
    text.len() <= MAX_LENGTH && (rest.is_empty() || rest.split(',').all(is_version_specifier))
}

const SPACE: [char; 2] = [' ', '\t'];

fn skip_space(text: &str) -> &str {
    text.trim_start_matches(SPACE)
}

/// What follows the PEP 508 identifier at the front of `text`: letters, digits, `-`, `_`, `.`, with a letter or
/// digit at both ends.
fn strip_identifier(text: &str) -> Option<&str> {
    let end = text
        .bytes()
        .take_while(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        .count();
    let (identifier, rest) = text.split_at(end);
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    (edge(identifier.bytes().next()) && edge(identifier.bytes().next_back())).then_some(rest)
}

fn is_version_specifier(text: &str) -> bool {
    // The longest operators first, so that `===` is not read as `==` and a version `=1`.
    const OPERATORS: [&str; 8] = ["===", "~=", "==", "!=", "<=", ">=", "<", ">"];
    let text = text.trim_matches(SPACE);
    OPERATORS
        .iter()
        .find_map(|operator| text.strip_prefix(operator))
        .is_some_and(|version| {
            let version = skip_space(version);
            !version.is_empty()
                && version
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.*+!".contains(&b))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_takes_names_architectures_and_versions() {
        for good in [
            "curl",
            "g++",
            "libstdc++6",
            "python3.11",
            "0ad",
            "libssl3:amd64",
            "make:any",
            "curl=7.88.1-10+deb12u5",
            "vim=2:9.0.1378-2",
            "a1=1.0~rc1",
            "libc6:i386=2.36-9+deb12u4",
            "gcc-x86-64-linux-gnux32",
        ] {
            assert!(AptPackage::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn apt_is_never_given_an_option_a_path_a_removal_or_shell_text() {
        for bad in [
            "",
            "a",
            "-y",
            "--purge",
            "curl-",
            "curl:amd64-",
            "./x.deb",
            "/x.deb",
            "Curl",
            "curl;ls",
            "$(ls)",
            "curl wget",
            "curl\n",
            "curl=",
            "curl=x",
            "curl=1 2",
            "curl:",
            "curl:=1",
            "curl/bookworm",
            "c?rl",
            "c*",
            "^curl$",
            "curl=1=2",
            "cürl",
            &"a".repeat(257),
        ] {
            assert!(AptPackage::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pip_takes_names_extras_and_versions() {
        for good in [
            "requests",
            "Flask",
            "zope.interface",
            "a",
            "ruamel_yaml",
            "requests==2.31.0",
            "requests >= 2, < 3",
            "uvicorn[standard]",
            "uvicorn[ standard , x ]~=0.30",
            "x[]",
            "django!=4.2.*",
            "torch==2.1.0+cpu",
            "p>=1!2.0",
            "legacy===weird-1",
        ] {
            assert!(PipRequirement::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn pip_is_never_given_an_option_a_path_a_url_or_a_marker() {
        for bad in [
            "",
            "-r",
            "--index-url=x",
            "./x",
            ".",
            "/x",
            "git+https://x/y",
            "https://x/y.whl",
            "x @ https://y",
            "x; python_version<'3'",
            "x==",
            "x=1",
            "==1",
            "x[",
            "x[a",
            "x[a,]",
            "x[-a]",
            "x>=1,",
            "x y",
            "x\n",
            "x==1;ls",
            "x==$(ls)",
            "x-",
            "_x",
            "ünicode",
            "x(>=1)",
            &"a".repeat(257),
        ] {
            assert!(PipRequirement::parse(bad).is_err(), "{bad}");
        }
    }
}
