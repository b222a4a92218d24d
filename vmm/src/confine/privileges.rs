//! A user of its own, and no capabilities (capabilities(7)).

use std::io;
use std::str::FromStr;

use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Who a VM process is when its owner is root: `uid:gid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

/// What is asked of a user.
const USER: &str = "a user is uid:gid, two numbers that are not 0";

impl User {
    /// One that nothing else on a host should have: of no range that systems give to people, services or containers.
    pub const DEFAULT: Self = Self {
        uid: 64_209,
        gid: 64_209,
    };
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uid, gid) = text.split_once(':').ok_or(USER)?;
        // The highest means "as it is" to setresuid(2).
        let number = |text: &str| match text.parse() {
            Ok(0 | u32::MAX) | Err(_) => Err(USER),
            Ok(number) => Ok(number),
        };
        Ok(Self {
            uid: number(uid)?,
            gid: number(gid)?,
        })
    }
}

type Part = Result<(), String>;

fn because<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Of the user and of the capabilities.
pub(super) fn drop(user: Option<User>) -> (Part, Part) {
    let (gone, unbound) = (clear_ambient_capability_set(), unbound());
    let user = match user {
        Some(user) if geteuid().is_root() => become_(user),
        Some(_) => Err("its owner is not root: it has its owner's".to_owned()),
        None => Err("its owner wants it to have its own".to_owned()),
    };
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let capabilities = gone
        .map_err(because("ambient capabilities"))
        .and_then(|()| unbound.map_err(because("the bounding set")))
        .and_then(|()| set_capabilities(None, none).map_err(because("capset")))
        .and_then(|()| set_no_new_privs(true).map_err(because("no_new_privs")));
    (user, capabilities)
}

/// Takes everything out of the bounding set, so that nothing that is executed gets it.
fn unbound() -> io::Result<()> {
    let may = capabilities(None)?.effective.contains(CapabilitySet::SETPCAP);
    for capability in 0..64 {
        // SAFETY: takes a number and reads no memory.
        let held = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        match held {
            // There are no more.
            -1 => break,
            0 => continue,
            _ => {}
        }
        if !may {
            // With no_new_privs nothing that is executed gets any either.
            return Ok(());
        }
        // SAFETY: as above.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn become_(user: User) -> Part {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&[]).map_err(because("setgroups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(because("setresgid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(because("setresuid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_two_numbers_and_never_root() {
        assert_eq!("5:6".parse(), Ok(User { uid: 5, gid: 6 }));
        assert_eq!(User::DEFAULT.to_string().parse(), Ok(User::DEFAULT));
        for wrong in [
            "",
            "5",
            "0:5",
            "5:0",
            "5:",
            "a:b",
            "-1:5",
            "4294967295:5",
            "5:6:7",
            "5 :6",
        ] {
            assert_eq!(wrong.parse::<User>(), Err(USER), "{wrong}");
        }
    }
}
