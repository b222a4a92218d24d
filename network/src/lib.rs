//! The host side of sandbox networking: a TAP, two addresses and a policy for each sandbox.
//!
//! This crate knows interfaces, addresses and rules. It may not know VMs, builds or HTTP: whoever runs a sandbox
//! hands its TAP to it.
//!
//! ```no_run
//! use spore_network::{Config, Network, Policy};
//!
//! let network = Network::open(Config::default())?;
//! let attachment = network.attach(&Policy::Nat)?;
//! println!("{} reaches the world by {}", attachment.interface().address, attachment.interface().gateway);
//! // Its TAP, and its lease so that both live as long as the VM, go to the VM's process.
//! let (_tap, _lease) = (attachment.tap(), attachment.lease());
//! # Ok::<(), spore_network::NetworkError>(())
//! ```
//!
//! What a sandbox can reach, and what all of this changes on the host, is in `docs/network.md`; why processes share
//! it without a daemon, in `docs/decisions/0011-the-network-is-shared-by-locks.md`.
//!
//! From the bottom: `netlink`, `link`, `conntrack`, `tap`, `sysctl` and `nft` say things to the kernel; `policy`,
//! `reach`, `dns`, `range` and `rules` work out what; `state` holds who uses what; `network` and `attachment` put
//! them together.

mod attachment;
mod config;
mod conntrack;
mod dns;
mod error;
mod link;
mod name;
mod netlink;
mod network;
mod nft;
mod policy;
mod range;
mod reach;
mod rules;
mod state;
mod sysctl;
mod tap;
mod uplink;

pub use attachment::{Attachment, Interface, Parts, Traffic};
pub use config::Config;
pub use dns::{Dns, Skipped};
pub use error::NetworkError;
pub use network::Network;
pub use policy::{AllowList, Allowed, EntryProblem, HostName, MAX_ALLOWED, Policy, PolicyError, Target};
pub use range::Index;
pub use tap::HEADER_BYTES;
