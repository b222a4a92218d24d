//! As whom a command runs: names become numbers here, by the guest's own `/etc/passwd` and `/etc/group`.
//!
//! The files are read by us: the agent is static, and a C library's look-up would want the image's modules
//! (nsswitch.conf). What is not in them is found out as Docker does it: a number needs no line.

use std::fs::File;
use std::io::{self, Read};

use spore_protocol::{Failure, FailureKind};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// More of such a file is not looked at.
const MAX_BYTES: u64 = 4 << 20;
/// The most supplementary groups the kernel takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65536;
/// -1 means "leave it" to the system calls.
const MAX_ID: u32 = u32::MAX - 1;

/// As whom a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id: real, effective and saved.
    pub uid: u32,
    /// Group id: real, effective and saved.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Finds `user`, `uid`, `user:group` or `uid:gid` in this machine's files.
///
/// # Errors
/// When there is no such user or group, or a file cannot be read.
pub fn resolve(who: &str) -> Result<User, Failure> {
    let read = |path: &str| read(path).map_err(|error| Failure::from_io(path, &error));
    find(who, &read(PASSWD)?, &read(GROUP)?)
}

/// A file that an image may do without.
fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find(who: &str, passwd: &str, group: &str) -> Result<User, Failure> {
    let (user, of_group) = match who.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (who, None),
    };
    if user.is_empty() || of_group == Some("") || who.contains(['\0', '\n']) {
        return Err(Failure::new(
            FailureKind::InvalidArgument,
            format!("user {who:?}: it must be user, uid, user:group or uid:gid"),
        ));
    }
    let number = id(user);
    // name:password:uid:gid:comment:home:shell
    let found = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (id(fields.get(2)?)?, id(fields.get(3)?)?);
        let same = fields.first() == Some(&user) || number == Some(uid);
        same.then(|| {
            (
                fields.first().copied().unwrap_or(user),
                uid,
                gid,
                fields.get(5).copied(),
            )
        })
    });
    let (name, uid, gid, home) = match (found, number) {
        (Some(found), _) => found,
        (None, Some(uid)) => (user, uid, 0, None),
        // An image without the file has a root all the same.
        (None, None) if user == "root" => (user, 0, 0, None),
        (None, None) => return Err(missing("user", user, PASSWD)),
    };
    let home = match home.filter(|home| home.starts_with('/')) {
        Some(home) => home,
        None if uid == 0 => "/root",
        None => "/",
    };
    // name:password:gid:members
    let mut lines = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, id(fields.nth(1)?)?);
        Some((name, gid, fields.next().unwrap_or_default()))
    });
    let (gid, mut groups) = match of_group {
        // Who names a group gets that one alone.
        Some(group) => {
            let number = id(group);
            let found = lines.find(|(name, gid, _)| *name == group || number == Some(*gid));
            let gid = found.map(|(_, gid, _)| gid).or(number);
            (gid.ok_or_else(|| missing("group", group, GROUP))?, Vec::new())
        }
        None => {
            let of = lines.filter(|(_, _, members)| members.split(',').any(|member| member == name));
            (gid, of.map(|(_, gid, _)| gid).collect())
        }
    };
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    groups.truncate(MAX_GROUPS);
    Ok(User {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

fn id(text: &str) -> Option<u32> {
    // Not "+5".
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = digits.then(|| text.parse().ok()).flatten()?;
    (id <= MAX_ID).then_some(id)
}

fn missing(what: &str, name: &str, file: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("{what} {name:?} is not in {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0::/root:/bin/sh\n# a word\nbroken\napp:x:1000:1001:,,,:/home/app:/bin/sh\n\
        12:x:77:78::relative:\nnobody:x:65534:65534::/nonexistent:";
    const GROUPS: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:app,root\nmedia:x:20:other,app\napps:x:30:apps";

    fn found(who: &str) -> (u32, u32, Vec<u32>, String) {
        let user = find(who, USERS, GROUPS).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn a_user_comes_with_its_groups_and_its_home_by_name_and_by_number() {
        let app = (1000, 1001, vec![10, 20, 1001], "/home/app".to_owned());
        assert_eq!(found("app"), app);
        assert_eq!(found("1000"), app);
        assert_eq!(found("root"), (0, 0, vec![0, 10], "/root".to_owned()));
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        let home = "/home/app".to_owned();
        assert_eq!(found("app:wheel"), (1000, 10, vec![10], home.clone()));
        assert_eq!(found("app:20"), (1000, 20, vec![20], home.clone()));
        assert_eq!(found("1000:555"), (1000, 555, vec![555], home));
    }

    #[test]
    fn a_number_needs_no_line() {
        assert_eq!(found("4000"), (4000, 0, vec![0], "/".to_owned()));
        assert_eq!(found("4000:5000"), (4000, 5000, vec![5000], "/".to_owned()));
        let bare = find("root", "", "").unwrap();
        assert_eq!((bare.uid, bare.gid, bare.home.as_str()), (0, 0, "/root"));
        assert_eq!(find("0", "", "").unwrap().home, "/root");
    }

    #[test]
    fn a_name_that_looks_like_a_number_is_a_name_and_a_home_is_absolute() {
        assert_eq!(found("12"), (77, 78, vec![78], "/".to_owned()));
    }

    #[test]
    fn who_is_not_there_is_not_found_and_nonsense_is_refused() {
        for who in ["nope", "app:nope", "-1", "+5", "4294967295", "99999999999"] {
            let failure = find(who, USERS, GROUPS).unwrap_err();
            assert_eq!(failure.kind, FailureKind::NotFound, "{who}: {failure}");
        }
        for who in ["", ":", ":5", "app:", "a\0b", "app\nroot"] {
            let failure = find(who, USERS, GROUPS).unwrap_err();
            assert_eq!(failure.kind, FailureKind::InvalidArgument, "{who}");
        }
    }
}
