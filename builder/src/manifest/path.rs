//! Paths in the guest. Each newtype is one plain place: no `.`, no `..`, no empty part, so that what a step
//! writes is where its path says, and joining two of them cannot leave the first.

use super::rule::{PathProblem, Rule, display_as_inner, quoted};

/// Linux `PATH_MAX` without the NUL at the end.
const MAX_PATH: usize = 4095;
/// Linux `NAME_MAX`.
const MAX_SEGMENT: usize = 255;

/// An absolute path in the guest, without a slash at its end (but for `/` itself).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AbsoluteGuestPath(String);

/// A file's path below some directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelativePath(String);

display_as_inner!(AbsoluteGuestPath);
display_as_inner!(RelativePath);

impl AbsoluteGuestPath {
    /// Parses a directory's path. One slash at the end is allowed and dropped.
    ///
    /// # Errors
    /// [`Rule::BadPath`], or [`Rule::Nul`].
    pub fn directory(text: &str) -> Result<AbsoluteGuestPath, Rule> {
        let rest = text.strip_prefix('/').ok_or_else(|| {
            bad(
                text,
                if text.is_empty() {
                    PathProblem::Empty
                } else {
                    PathProblem::NotAbsolute
                },
            )
        })?;
        if rest.is_empty() {
            return Ok(AbsoluteGuestPath("/".to_owned()));
        }
        let trimmed = rest.strip_suffix('/').unwrap_or(rest);
        check(text, trimmed)?;
        Ok(AbsoluteGuestPath(format!("/{trimmed}")))
    }

    /// Parses a file's path: a directory's, but not `/` and with no slash at the end.
    ///
    /// # Errors
    /// [`Rule::BadPath`], or [`Rule::Nul`].
    pub fn file(text: &str) -> Result<AbsoluteGuestPath, Rule> {
        let path = AbsoluteGuestPath::directory(text)?;
        if text.ends_with('/') {
            Err(bad(text, PathProblem::NotAFile))
        } else {
            Ok(path)
        }
    }

    /// The path of `file` below this directory.
    ///
    /// # Errors
    /// [`Rule::BadPath`] when the two together are longer than a path may be.
    pub fn join(&self, file: &RelativePath) -> Result<AbsoluteGuestPath, Rule> {
        let joined = format!("{}/{}", self.0.trim_end_matches('/'), file.0);
        if joined.len() > MAX_PATH {
            return Err(bad(&joined, PathProblem::TooLong));
        }
        Ok(AbsoluteGuestPath(joined))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RelativePath {
    /// Parses the path of a file below a directory.
    ///
    /// # Errors
    /// [`Rule::BadPath`], or [`Rule::Nul`].
    pub fn parse(text: &str) -> Result<RelativePath, Rule> {
        if text.is_empty() {
            return Err(bad(text, PathProblem::Empty));
        }
        if text.starts_with('/') {
            return Err(bad(text, PathProblem::NotRelative));
        }
        if text.ends_with('/') {
            return Err(bad(text, PathProblem::NotAFile));
        }
        check(text, text)?;
        Ok(RelativePath(text.to_owned()))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks `segments`, the part of `text` between its outer slashes.
fn check(text: &str, segments: &str) -> Result<(), Rule> {
    if text.contains('\0') {
        return Err(Rule::Nul);
    }
    for segment in segments.split('/') {
        let problem = match segment {
            "" => PathProblem::EmptySegment,
            "." | ".." => PathProblem::DotSegment,
            long if long.len() > MAX_SEGMENT => PathProblem::SegmentTooLong,
            _ => continue,
        };
        return Err(bad(text, problem));
    }
    if text.len() > MAX_PATH {
        Err(bad(text, PathProblem::TooLong))
    } else {
        Ok(())
    }
}

fn bad(text: &str, problem: PathProblem) -> Rule {
    Rule::BadPath {
        found: quoted(text),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem<T>(result: Result<T, Rule>) -> PathProblem {
        match result.err() {
            Some(Rule::BadPath { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_directory_is_absolute_and_plain_and_may_end_with_a_slash() {
        for (text, path) in [
            ("/", "/"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a/b c/…", "/a/b c/…"),
            ("/..a", "/..a"),
        ] {
            assert_eq!(AbsoluteGuestPath::directory(text).unwrap().as_str(), path);
        }
    }

    #[test]
    fn every_other_spelling_of_a_path_is_refused_with_its_problem() {
        use PathProblem::*;
        let directory = |text: &str| problem(AbsoluteGuestPath::directory(text));
        assert_eq!(directory(""), Empty);
        assert_eq!(directory("a"), NotAbsolute);
        assert_eq!(directory("~/a"), NotAbsolute);
        assert_eq!(directory("/a/../b"), DotSegment);
        assert_eq!(directory("/.."), DotSegment);
        assert_eq!(directory("/./a"), DotSegment);
        assert_eq!(directory("//"), EmptySegment);
        assert_eq!(directory("//a"), EmptySegment);
        assert_eq!(directory("/a//"), EmptySegment);
        assert_eq!(directory(&format!("/{}", "x".repeat(256))), SegmentTooLong);
        assert_eq!(directory(&"/xxx".repeat(1024)), TooLong);
        assert_eq!(AbsoluteGuestPath::directory("/a\0b"), Err(Rule::Nul));
    }

    #[test]
    fn a_file_is_not_a_directory() {
        assert_eq!(problem(AbsoluteGuestPath::file("/")), PathProblem::NotAFile);
        assert_eq!(problem(AbsoluteGuestPath::file("/a/")), PathProblem::NotAFile);
        assert!(AbsoluteGuestPath::file("/a").is_ok());
    }

    #[test]
    fn a_relative_path_stays_below_its_directory() {
        use PathProblem::*;
        for (text, expected) in [
            ("", Empty),
            ("/a", NotRelative),
            ("a/", NotAFile),
            ("../a", DotSegment),
            ("a/../../b", DotSegment),
            ("a//b", EmptySegment),
            (".", DotSegment),
        ] {
            assert_eq!(problem(RelativePath::parse(text)), expected, "{text}");
        }
        let file = RelativePath::parse("b/c").unwrap();
        assert_eq!(
            AbsoluteGuestPath::directory("/a")
                .unwrap()
                .join(&file)
                .unwrap()
                .as_str(),
            "/a/b/c"
        );
        assert_eq!(
            AbsoluteGuestPath::directory("/")
                .unwrap()
                .join(&file)
                .unwrap()
                .as_str(),
            "/b/c"
        );
    }

    #[test]
    fn a_joined_path_may_not_outgrow_what_linux_allows() {
        let long = "/xxx".repeat(1023);
        let directory = AbsoluteGuestPath::directory(&long).unwrap();
        assert!(directory.join(&RelativePath::parse("ab").unwrap()).is_ok());
        assert_eq!(
            problem(directory.join(&RelativePath::parse("abc").unwrap())),
            PathProblem::TooLong
        );
    }
}
