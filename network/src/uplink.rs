//! The interface by which sandboxes leave the host, and the host's part in forwarding.

use std::io;
use std::path::PathBuf;

use crate::config::Settings;
use crate::error::NetworkError;
use crate::link::{self, Link};
use crate::name::IfName;
use crate::state::{Locked, Shared};
use crate::{sysctl, tap};

/// The interface by which sandboxes leave the host now.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) name: IfName,
    link: Link,
}

fn failed((path, source): (PathBuf, io::Error)) -> NetworkError {
    NetworkError::system(path.display().to_string())(source)
}

impl Uplink {
    /// The configured one, or that of the default route.
    pub(crate) fn find(settings: &Settings) -> Result<Uplink, NetworkError> {
        let system = || NetworkError::system("listing interfaces and routes");
        if let Some(name) = &settings.uplink {
            let link = link::find(name).map_err(system())?;
            return match link {
                Some(link) => Ok(Uplink {
                    name: name.clone(),
                    link,
                }),
                None => Err(NetworkError::UplinkMissing {
                    name: name.to_string(),
                }),
            };
        }
        let routes = link::routes().map_err(system())?;
        let index = link::default_route(&routes).ok_or(NetworkError::NoUplink)?;
        let (name, link) = link::by_index(index)
            .map_err(system())?
            .ok_or(NetworkError::NoUplink)?;
        let name = IfName::try_from(name).map_err(NetworkError::Config)?;
        Ok(Uplink { name, link })
    }

    /// Its MTU, as far as a TAP can have it.
    pub(crate) fn mtu(&self) -> u16 {
        u16::try_from(self.link.mtu).map_or(tap::MAX_MTU, |mtu| mtu.min(tap::MAX_MTU))
    }

    /// Sees to it that the uplink is in the state and forwards. Says whether the rules must be made anew.
    ///
    /// What is changed on the host is written down first, so that it is restored by somebody.
    pub(crate) fn enlist(&self, locked: &Locked, shared: &mut Shared) -> Result<bool, NetworkError> {
        let name = self.name.as_str();
        let known = shared.uplinks.get(name).copied();
        let on = sysctl::forwards(name).map_err(failed)?;
        let ours = match known {
            _ if !on => true,
            // Somebody has made the host a router since: then it stays one, and routes what it likes.
            Some(true) => !sysctl::forwards("all").map_err(failed)?,
            _ => false,
        };
        if known != Some(ours) {
            shared.uplinks.insert(name.to_owned(), ours);
            locked.set_shared(shared)?;
        }
        if !on {
            sysctl::set_forwarding(&self.name, true).map_err(failed)?;
        }
        Ok(known != Some(ours))
    }
}

/// Puts back what [`Uplink::enlist`] changed, unless the host has become a router since.
pub(crate) fn restore(shared: &Shared) -> Result<(), NetworkError> {
    if sysctl::forwards("all").map_err(failed)? {
        return Ok(());
    }
    for (name, ours) in shared.uplink_names()? {
        if !ours {
            continue;
        }
        match sysctl::set_forwarding(&name, false) {
            // An uplink that is gone has nothing to put back.
            Err((_, error)) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}

/// Sets up a TAP's part.
pub(crate) fn set_up_tap(name: &IfName) -> Result<(), NetworkError> {
    sysctl::set_up_tap(name).map_err(failed)
}
