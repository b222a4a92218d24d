//! An instance of the network: opened by any number of processes at once, made by the first and removed by the
//! last. Whoever opens or leaves it sweeps what the dead have left.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::thread::CapabilitySet;

use crate::attachment::Attachment;
use crate::config::{Config, Settings};
use crate::dns::{self, Dns};
use crate::error::NetworkError;
use crate::nft::{self, Nft};
use crate::policy::Policy;
use crate::range::{self, Index};
use crate::reach::{self, Reach};
use crate::rules::{Guest, Table};
use crate::state::{self, Instance, Locked, Namespace, Record, Shared};
use crate::uplink::{self, Uplink};
use crate::{link, tap};

/// The network, open. Clones are the same one; it is left with the last of them and of its attachments.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) nft: Nft,
    pub(crate) instance: Instance,
    namespace: Namespace,
    /// Locked, as long as this process is a member.
    members: File,
}

impl Network {
    /// Opens the network in the calling thread's network namespace: sweeps what dead processes have left, and
    /// makes table and forwarding if nobody has yet.
    ///
    /// # Errors
    /// Says what the host lacks, or what of it is in the way; nothing is left then.
    pub fn open(config: Config) -> Result<Network, NetworkError> {
        let settings = Settings::try_from(config)?;
        check_capability()?;
        File::options()
            .read(true)
            .write(true)
            .open(tap::DEVICE)
            .map_err(|source| NetworkError::NoTun { source })?;
        let nft = Nft::find()?;
        let uplink = Uplink::find(&settings)?;
        let namespace = Namespace::current()?;

        let locked = state::lock(&settings.state_dir)?;
        let shared = match of_these_settings(&locked, &settings, &nft, namespace)? {
            Some(shared) => shared,
            None => Shared {
                instance: nft::random_word()
                    .and_then(|word| Instance::try_from(word).map_err(io::Error::other))
                    .map_err(NetworkError::system("naming an instance"))?,
                namespace,
                range: settings.range,
                table: settings.table.clone(),
                tap_prefix: settings.tap_prefix.clone(),
                next: 0,
                uplinks: std::collections::BTreeMap::new(),
            },
        };
        check_table(&nft, &shared, &settings)?;
        locked.set_shared(&shared)?;
        let inner = Inner {
            members: locked.join()?,
            settings,
            nft,
            instance: shared.instance.clone(),
            namespace,
        };
        let begun = inner.begin(&locked, &uplink, shared);
        // What has failed is left as ever, and leaving takes the lock.
        drop(locked);
        begun.map(|()| Network(Arc::new(inner)))
    }

    /// Gives a new sandbox its TAP, its addresses and its rules.
    ///
    /// The host's resolver is asked for the names of an allow list, which can take seconds. All that is made goes
    /// with the [`Attachment`].
    ///
    /// # Errors
    /// Says what is wrong with the policy or with the host; nothing is left then.
    pub fn attach(&self, policy: &Policy) -> Result<Attachment, NetworkError> {
        let reach = Reach::resolve(policy, self.0.settings.range, reach::host_addresses)?;
        Attachment::make(&self.0, reach)
    }

    /// Takes over an attachment from [`Attachment::into_parts`], or from a process that died while another held
    /// copies of its descriptors.
    ///
    /// # Errors
    /// When `lease` isn't the lease of an attachment of this network.
    pub fn adopt(&self, lease: OwnedFd, tap: Option<OwnedFd>) -> Result<Attachment, NetworkError> {
        Attachment::adopt(&self.0, lease, tap)
    }

    /// The DNS servers of the host that a sandbox can use now.
    ///
    /// # Errors
    /// When the host's addresses can't be listed.
    pub fn dns(&self) -> Result<Dns, NetworkError> {
        self.0.dns()
    }
}

fn check_capability() -> Result<(), NetworkError> {
    let wanted = CapabilitySet::NET_ADMIN;
    let missing = |what: &str| NetworkError::NoCapability { doing: what.into() };
    let sets = rustix::thread::capabilities(None)
        .map_err(|error| NetworkError::system("asking for capabilities")(error.into()))?;
    if !sets.effective.contains(wanted) {
        return Err(missing("asked beforehand"));
    }
    // A program started by root has all capabilities; by anybody else, the ambient ones.
    let passed_on = rustix::process::geteuid().is_root()
        || rustix::thread::capability_is_in_ambient_set(wanted).unwrap_or(false);
    match passed_on {
        true => Ok(()),
        false => Err(missing("it is there, but not ambient")),
    }
}

/// What the processes share if they do with these settings. Without any process, what is left of other settings
/// is removed.
fn of_these_settings(
    locked: &Locked,
    settings: &Settings,
    nft: &Nft,
    namespace: Namespace,
) -> Result<Option<Shared>, NetworkError> {
    let Some(shared) = locked.shared()? else {
        return Ok(None);
    };
    let same_settings = shared.range == settings.range
        && shared.table == settings.table
        && shared.tap_prefix == settings.tap_prefix;
    if same_settings && shared.namespace == namespace {
        return Ok(Some(shared));
    }
    let (living, dead) = locked.leases()?;
    if !living.is_empty() || locked.has_members()? {
        let say = |range, table: &str, prefix: &str| {
            format!("the range {range}, the table {table} and the TAP prefix {prefix}")
        };
        let (theirs, ours) = match same_settings {
            true => ("another network namespace".into(), "this one".into()),
            false => (
                say(shared.range, &shared.table, &shared.tap_prefix),
                say(settings.range, &settings.table, &settings.tap_prefix),
            ),
        };
        return Err(NetworkError::InUse {
            state_dir: settings.state_dir.clone(),
            theirs,
            ours,
        });
    }
    if shared.namespace == namespace {
        let theirs = Settings {
            range: shared.range,
            table: shared.table.clone(),
            tap_prefix: shared.tap_prefix.clone(),
            ..settings.clone()
        };
        // Their names come from a file: they are checked as if they had been configured.
        let theirs = Settings::try_from(theirs.into_config())?;
        for index in &dead {
            remove_tap(&theirs, &shared.instance, *index)?;
        }
        remove_all(nft, &shared, &theirs)?;
    }
    dead.iter().for_each(|index| locked.end_lease(*index));
    locked.clear();
    Ok(None)
}

/// An error if there is a table of our name that isn't ours; otherwise whether there is ours.
fn check_table(nft: &Nft, shared: &Shared, settings: &Settings) -> Result<bool, NetworkError> {
    match nft.chains(&settings.table)? {
        None => Ok(false),
        Some(chains) if chains.contains(&shared.instance.mark()) => Ok(true),
        Some(_) => Err(NetworkError::TableTaken {
            table: settings.table.clone(),
            state_dir: settings.state_dir.clone(),
        }),
    }
}

/// Removes the table and puts forwarding back.
fn remove_all(nft: &Nft, shared: &Shared, settings: &Settings) -> Result<(), NetworkError> {
    // A table that is somebody else's is none of ours to remove.
    if let Ok(true) = check_table(nft, shared, settings) {
        nft.apply("remove the table", &Table::of(settings, shared, &[]).none())?;
    }
    uplink::restore(shared)
}

/// Removes the TAP of an index, if there is one and it is ours.
pub(crate) fn remove_tap(settings: &Settings, instance: &Instance, index: Index) -> Result<(), NetworkError> {
    let name = settings.tap(index)?;
    let failed = || NetworkError::system(format!("removing the TAP {name}"));
    match link::find(&name).map_err(failed())? {
        Some(found) if found.alias.as_ref() == Some(&instance.alias(index)) => {
            link::delete(found.index).map_err(failed())
        }
        _ => Ok(()),
    }
}

impl Inner {
    /// The directory's lock and what the processes share, for a change.
    pub(crate) fn lock(&self) -> Result<(Locked, Shared), NetworkError> {
        if Namespace::current()? != self.namespace {
            return Err(NetworkError::WrongNamespace);
        }
        let locked = state::lock(&self.settings.state_dir)?;
        match locked.shared()? {
            Some(shared) if shared.instance == self.instance => Ok((locked, shared)),
            _ => Err(NetworkError::state(&self.settings.state_dir)(io::Error::other(
                "the state was removed or replaced while the network was open",
            ))),
        }
    }

    fn begin(&self, locked: &Locked, uplink: &Uplink, mut shared: Shared) -> Result<(), NetworkError> {
        self.sweep(locked)?;
        self.check_collision()?;
        uplink.enlist(locked, &mut shared)?;
        self.rewrite(locked, &shared)
    }

    /// Removes the TAPs and the leases of the dead, and says whether there were any.
    pub(crate) fn sweep(&self, locked: &Locked) -> Result<bool, NetworkError> {
        let (_, dead) = locked.leases()?;
        for index in &dead {
            remove_tap(&self.settings, &self.instance, *index)?;
            locked.end_lease(*index);
        }
        Ok(!dead.is_empty())
    }

    /// Makes the whole table anew from the records of the living.
    pub(crate) fn rewrite(&self, locked: &Locked, shared: &Shared) -> Result<(), NetworkError> {
        check_table(&self.nft, shared, &self.settings)?;
        let (living, _) = locked.leases()?;
        let guests: Result<Vec<_>, _> = living.into_iter().map(|record| self.guest(record)).collect();
        let uplinks = shared.uplink_names()?;
        let table = Table::of(&self.settings, shared, &uplinks);
        self.nft.apply("make the table", &table.whole(&guests?))
    }

    pub(crate) fn guest(&self, record: Record) -> Result<Guest, NetworkError> {
        let (_, address) = range::addresses(self.settings.range, record.index);
        Ok(Guest {
            tap: self.settings.tap(record.index)?,
            mac: range::guest_mac(address),
            address,
            reach: record.reach,
        })
    }

    pub(crate) fn dns(&self) -> Result<Dns, NetworkError> {
        let addresses = link::addresses().map_err(NetworkError::system("listing the host's addresses"))?;
        let host: Vec<_> = addresses.into_iter().map(|(_, address)| address).collect();
        Ok(dns::read(&self.settings.resolv_conf, &host))
    }

    fn check_collision(&self) -> Result<(), NetworkError> {
        let failed = || NetworkError::system("listing interfaces, addresses and routes");
        let links = link::all().map_err(failed())?;
        let by_index = |index: u32| links.iter().find(|(_, link)| link.index == index);
        let ours = format!("{} ", self.instance.alias_start());
        let with = range::collision(
            self.settings.range,
            &link::addresses().map_err(failed())?,
            &link::routes().map_err(failed())?,
            |index| {
                by_index(index)
                    .and_then(|(_, link)| link.alias.as_ref())
                    .is_some_and(|alias| alias.starts_with(&ours))
            },
            |index| by_index(index).map_or(format!("interface {index}"), |(name, _)| name.clone()),
        );
        match with {
            Some(with) => Err(NetworkError::Collision {
                range: self.settings.range,
                with,
            }),
            None => Ok(()),
        }
    }

    /// Leaves the network; the last one removes it.
    fn leave(&self) -> Result<(), NetworkError> {
        // Not by closing: a child between fork and exec has the descriptor, too.
        state::unlock(&self.members);
        let (locked, shared) = self.lock()?;
        let swept = self.sweep(&locked)?;
        let (living, _) = locked.leases()?;
        if living.is_empty() && !locked.has_members()? {
            remove_all(&self.nft, &shared, &self.settings)?;
            locked.clear();
        } else if swept {
            self.rewrite(&locked, &shared)?;
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            tracing::error!("leaving the network (the next that opens it sweeps it up): {error}");
        }
    }
}
