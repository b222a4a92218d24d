//! Who the machine is on its network: one Ethernet interface's addresses, its way out, its name servers,
//! and the connections over it, of which a fork inherits none.
//!
//! A fork is told in the mailbox ([`Plan`], made before it sleeps), a machine that was booted in a
//! request. Each step is the kernel's through netlink, several in one system call: a fork of a machine
//! that was not on a network takes two, and one that stays without takes none.
//!
//! - [`netlink`]: messages to the kernel and their answers.
//! - [`interface`]: the interface.
//! - [`connections`]: ends what the fork would share with its original.
//! - [`resolver`]: the name servers.

mod connections;
mod interface;
mod netlink;
mod resolver;

use std::io;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

use spore_protocol::{Failure, FailureKind, Network};

use connections::{Connections, ConnectionsError};
use interface::{Interface, Which};
use netlink::NetlinkError;

use crate::views::View;

pub use resolver::{PLACE as RESOLV_CONF, text as resolv_conf_text};

/// The machine's one interface, if it has one and it is ours to configure.
#[derive(Debug)]
pub struct Networking {
    which: Option<Which>,
    /// Whether it was there when it was first looked for: none is added later.
    there: OnceLock<bool>,
}

/// What was found out before it is said who the machine is.
#[derive(Debug)]
pub struct Plan<'a> {
    interface: Result<Option<Interface>, String>,
    /// If the interface was used: how to end what went over it.
    connections: Option<Result<Connections, String>>,
    /// What is in the place of `/etc/resolv.conf`, if it is ours.
    view: Option<&'a View>,
}

/// Why the machine is not who it was said to be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFailure {
    /// There is nothing to configure.
    #[error("this machine has no network card")]
    NoCard,
    /// It could not be found out, before.
    #[error("{0}")]
    Unprepared(String),
    /// The kernel said no.
    #[error(transparent)]
    Interface(#[from] NetlinkError),
    /// Its original's connections may still be there.
    #[error(transparent)]
    Connections(#[from] ConnectionsError),
    /// The name servers could not be set.
    #[error("name servers: {0}")]
    Resolver(io::Error),
}

impl Networking {
    /// The machine's network card is ours.
    pub fn of_the_machine() -> Self {
        Self::new(Some(Which::Card))
    }

    /// The interface of this name is ours, or none: so for an agent that is an ordinary process.
    pub fn of_a_process(interface: Option<String>) -> Self {
        Self::new(interface.map(Which::Named))
    }

    fn new(which: Option<Which>) -> Self {
        Self {
            which,
            there: OnceLock::new(),
        }
    }

    /// Whether there is an interface; also if that cannot be found out.
    pub fn has_card(&self) -> bool {
        let look = |which| Interface::find(which).map_or(true, |found| found.is_some());
        match &self.which {
            Some(which) => *self.there.get_or_init(|| look(which)),
            None => false,
        }
    }

    /// Finds out what there is. `view` is what is in the place of `/etc/resolv.conf`, if anything.
    pub fn plan<'a>(&self, view: Option<&'a View>) -> Plan<'a> {
        let interface = match &self.which {
            Some(which) if self.has_card() => Interface::find(which).map_err(|error| error.to_string()),
            _ => Ok(None),
        };
        let used = matches!(&interface, Ok(Some(interface)) if interface.is_used());
        Plan {
            interface,
            connections: used.then(|| Connections::prepare().map_err(|error| error.to_string())),
            view: view.filter(|view| view.check().is_ok()),
        }
    }

    /// Makes the machine this on its network, or nobody, on request.
    ///
    /// # Errors
    /// [`Failure`]; the interface is then down, or not what was asked for.
    pub fn set(&self, network: Option<&Network>, view: Option<&View>) -> Result<(), Failure> {
        if let Some(Err(error)) = network.map(Network::check) {
            return Err(Failure::new(FailureKind::InvalidArgument, error.to_string()));
        }
        self.plan(view).apply(network).map_err(|error| {
            let kind = match &error {
                NetworkFailure::NoCard => FailureKind::Unsupported,
                NetworkFailure::Interface(error) => Failure::from_io("", &error.source).kind,
                NetworkFailure::Resolver(error) => Failure::from_io("", error).kind,
                _ => FailureKind::Io,
            };
            Failure::new(kind, error.to_string())
        })
    }
}

impl Plan<'_> {
    /// Whether the machine is nobody on its network, so that there is nothing to do to stay so.
    pub fn is_off(&self) -> bool {
        self.interface.is_ok() && self.connections.is_none()
    }

    /// Makes the machine this on its network, or nobody. What it was before it no longer is, also after
    /// an error, or is not heard any more; it costs nothing if it was nobody and stays so.
    ///
    /// # Errors
    /// [`NetworkFailure`].
    pub fn apply(&self, network: Option<&Network>) -> Result<(), NetworkFailure> {
        let interface = match (&self.interface, network) {
            (Err(why), _) => return Err(NetworkFailure::Unprepared(why.clone())),
            (Ok(None), None) => return Ok(()),
            (Ok(None), Some(_)) => return Err(NetworkFailure::NoCard),
            (Ok(Some(interface)), _) => interface,
        };
        if let Some(connections) = &self.connections {
            interface.take_down()?;
            match connections {
                Ok(connections) => connections.end_all()?,
                Err(why) => return Err(NetworkFailure::Unprepared(why.clone())),
            }
        } else if network.is_none() {
            return Ok(());
        }
        let dns = network.map_or(&[][..], |network| &network.dns);
        resolver::set(self.view, dns).map_err(NetworkFailure::Resolver)?;
        match network {
            Some(network) => Ok(interface.bring_up(network)?),
            None => Ok(()),
        }
    }

    /// Does all that a fork on a network will do, to no effect: afterwards it is in memory.
    pub fn rehearse(&self) {
        let Ok(Some(interface)) = &self.interface else {
            return;
        };
        let nobody = Network {
            mac: [2, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(192, 0, 2, 1),
            prefix_len: 31,
            gateway: Ipv4Addr::new(192, 0, 2, 0),
            dns: vec![Ipv4Addr::new(192, 0, 2, 0)],
            mtu: 1500,
        };
        // The kernel knows no such interface, and says so for each step.
        let _ = interface.rehearse(&nobody);
        std::hint::black_box(resolver::text(&nobody.dns));
    }
}
