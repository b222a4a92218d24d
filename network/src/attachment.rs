//! One sandbox's part of the network: its TAP, its addresses, its rules.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::name::IfName;
use crate::network::{Inner, remove_tap};
use crate::range::{self, Index};
use crate::reach::Reach;
use crate::rules::Table;
use crate::state::{self, Lease, Locked, Record, Shared};
use crate::tap::{self, TapError};
use crate::uplink::{self, Uplink};
use crate::{conntrack, link};

/// Names in use by others that are passed over.
const MAX_NAMES_PASSED_OVER: u32 = 64;

/// What a VM and its guest are to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The name of the TAP on the host.
    pub tap: String,
    /// The only MAC address that the guest may send from.
    pub mac: [u8; 6],
    /// The only address that the guest may send from.
    pub address: Ipv4Addr,
    /// Bits of the network's part of the address: 31, the guest and its gateway.
    pub prefix_length: u8,
    /// The host's end, where the guest's default route goes.
    pub gateway: Ipv4Addr,
    /// The MAC address of the host's end.
    pub gateway_mac: [u8; 6],
    /// The uplink's MTU in bytes.
    pub mtu: u16,
    /// DNS servers that the guest reaches; there may be none ([`Dns`](crate::Dns) says why).
    pub dns: Vec<Ipv4Addr>,
}

/// What has gone through a sandbox's interface, from the sandbox's side. Packets that the rules drop count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes that the guest sent, with Ethernet headers.
    pub sent_bytes: u64,
    /// Frames that the guest sent; one may be many packets (segmentation offload).
    pub sent_frames: u64,
    /// Bytes that the guest was sent, with Ethernet headers.
    pub received_bytes: u64,
    /// Frames that the guest was sent.
    pub received_frames: u64,
    /// Frames that the guest was to be sent and did not take in time.
    pub missed_frames: u64,
}

/// The descriptors of an attachment, to be passed to another process. As long as anybody has `lease`, the
/// attachment stands; after that whoever opens or leaves the network next sweeps it.
#[derive(Debug)]
pub struct Parts {
    /// The TAP.
    pub tap: Option<OwnedFd>,
    /// The right to index, address and rules: hold it as long as `tap`.
    pub lease: OwnedFd,
}

/// One sandbox's part of the network. Dropping it removes TAP and rules, whoever has copies of the descriptors.
#[derive(Debug)]
pub struct Attachment {
    network: Arc<Inner>,
    index: Index,
    /// None when it was taken away by [`Attachment::into_parts`].
    lease: Option<Lease>,
    tap: Option<OwnedFd>,
    offloads: u32,
    interface: Interface,
}

impl Attachment {
    pub(crate) fn make(network: &Arc<Inner>, reach: Reach) -> Result<Attachment, NetworkError> {
        let uplink = Uplink::find(&network.settings)?;
        let dns = network.dns()?;
        if dns.servers.is_empty() {
            tracing::warn!("{dns}");
        }
        let reach = reach.with_dns(&dns.servers);
        let (locked, mut shared) = network.lock()?;
        let (record, lease, name, tap, offloads) = allocate(network, &locked, &mut shared, reach)?;
        let index = record.index;
        let interface = interface(network, index, &name, uplink.mtu(), dns.servers);
        let set_up = (|| {
            let new_uplink = uplink.enlist(&locked, &mut shared)?;
            set_up_link(network, index, &name, &interface)?;
            add_rules(network, &locked, &shared, record.clone(), new_uplink)?;
            bring_up(&name, &interface)
        })();
        if let Err(error) = set_up {
            drop(tap);
            undo(network, &locked, &shared, record);
            state::unlock(&lease.file);
            return Err(error);
        }
        Ok(Attachment {
            network: Arc::clone(network),
            index,
            lease: Some(lease),
            tap: Some(tap),
            offloads,
            interface,
        })
    }

    pub(crate) fn adopt(
        network: &Arc<Inner>,
        lease: OwnedFd,
        tap: Option<OwnedFd>,
    ) -> Result<Attachment, NetworkError> {
        let uplink = Uplink::find(&network.settings)?;
        let dns = network.dns()?;
        let (locked, _) = network.lock()?;
        let (lease, record) = locked.recognise(lease)?;
        let name = network.settings.tap(record.index)?;
        Ok(Attachment {
            interface: interface(network, record.index, &name, uplink.mtu(), dns.servers),
            network: Arc::clone(network),
            index: record.index,
            lease: Some(lease),
            tap,
            offloads: 0,
        })
    }

    /// What the VM and its guest are to be told.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Which /31 of the range it has.
    #[must_use]
    pub fn index(&self) -> Index {
        self.index
    }

    /// The TAP, not blocking: frames behind a `struct virtio_net_hdr_v1` of
    /// [`HEADER_BYTES`](crate::HEADER_BYTES). None only if the attachment was adopted without it.
    #[must_use]
    pub fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.tap.as_ref().map(AsFd::as_fd)
    }

    /// What the TAP leaves to its reader (`TUN_F_*` of `linux/if_tun.h`): checksums, and the segmentation of TCP
    /// and, since Linux 6.2, UDP. A device sets less with `TUNSETOFFLOAD` as soon as it knows what its driver has
    /// accepted. 0 if the attachment was adopted.
    #[must_use]
    pub fn offloads(&self) -> u32 {
        self.offloads
    }

    /// A copy of this descriptor, in the process that has a copy of the TAP's, makes the attachment outlive this
    /// process.
    #[must_use]
    pub fn lease(&self) -> Option<BorrowedFd<'_>> {
        self.lease.as_ref().map(|lease| lease.file.as_fd())
    }

    /// Gives the attachment away.
    #[must_use]
    pub fn into_parts(mut self) -> Option<Parts> {
        Some(Parts {
            tap: self.tap.take(),
            lease: self.lease.take()?.file.into(),
        })
    }

    /// What has gone through the interface so far.
    ///
    /// # Errors
    /// When the TAP is gone.
    pub fn traffic(&self) -> Result<Traffic, NetworkError> {
        let name = self.network.settings.tap(self.index)?;
        let failed = || NetworkError::system(format!("reading the counters of {name}"));
        let found = link::find(&name).map_err(failed())?;
        let link = found.ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))?;
        Ok(Traffic {
            sent_bytes: link.counted.received_bytes,
            sent_frames: link.counted.received_packets,
            received_bytes: link.counted.sent_bytes,
            received_frames: link.counted.sent_packets,
            missed_frames: link.counted.sent_dropped,
        })
    }

    fn detach(&self, lease: &Lease) -> Result<(), NetworkError> {
        let (locked, shared) = self.network.lock()?;
        let record = locked.record(lease)?;
        undo(&self.network, &locked, &shared, record);
        state::unlock(&lease.file);
        Ok(())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        if let Err(error) = self.detach(&lease) {
            state::unlock(&lease.file);
            let tap = &self.interface.tap;
            tracing::error!("detaching {tap} (the next that opens the network sweeps it up): {error}");
        }
    }
}

type Allocated = (Record, Lease, IfName, OwnedFd, u32);

/// The next index that is free, with its TAP.
fn allocate(
    network: &Inner,
    locked: &Locked,
    shared: &mut Shared,
    reach: Reach,
) -> Result<Allocated, NetworkError> {
    let count = range::count(network.settings.range);
    let mut first_taken = None;
    let mut passed_over = 0;
    // The second round is for what the dead have left.
    for round in 0..2 {
        if round == 1 && !network.sweep(locked)? {
            break;
        }
        for index in (0..count).map(|n| Index((shared.next % count + n) % count)) {
            let record = Record {
                index,
                reach: reach.clone(),
            };
            let Some(lease) = locked.lease(&record)? else {
                continue;
            };
            let name = network.settings.tap(index)?;
            let failure = match tap::create(&name) {
                Ok((tap, offloads)) => {
                    shared.next = (index.0 + 1) % count;
                    if let Err(error) = locked.set_shared(shared) {
                        locked.end_lease(index);
                        return Err(error);
                    }
                    return Ok((record, lease, name, tap, offloads));
                }
                Err(failure) => failure,
            };
            locked.end_lease(index);
            match failure {
                TapError::NameInUse => {
                    tracing::warn!("an interface {name} exists that isn't ours: passed over");
                    first_taken.get_or_insert(name);
                    passed_over += 1;
                }
                TapError::NoDevice(source) => return Err(NetworkError::NoTun { source }),
                TapError::System(doing, source) => return Err(NetworkError::system(doing)(source)),
            }
            if passed_over == MAX_NAMES_PASSED_OVER {
                break;
            }
        }
    }
    Err(match first_taken {
        Some(first) => NetworkError::TapNamesInUse {
            first: first.to_string(),
        },
        None => NetworkError::Full {
            range: network.settings.range,
            count,
        },
    })
}

fn interface(network: &Inner, index: Index, name: &IfName, mtu: u16, dns: Vec<Ipv4Addr>) -> Interface {
    let (gateway, address) = range::addresses(network.settings.range, index);
    Interface {
        tap: name.to_string(),
        mac: range::guest_mac(address),
        address,
        prefix_length: 31,
        gateway,
        gateway_mac: range::host_mac(gateway),
        mtu,
        dns,
    }
}

/// Everything about the TAP that can be set while it is down.
fn set_up_link(
    network: &Inner,
    index: Index,
    name: &IfName,
    interface: &Interface,
) -> Result<(), NetworkError> {
    let failed = || NetworkError::system(format!("setting up the TAP {name}"));
    let link = link::find(name).map_err(failed())?;
    let link = link.ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))?;
    let alias = network.instance.alias(index);
    link::dress(link.index, &alias, interface.gateway_mac, interface.mtu).map_err(failed())?;
    uplink::set_up_tap(name)
}

/// After this, packets are let through and dropped as they should be.
fn add_rules(
    network: &Inner,
    locked: &Locked,
    shared: &Shared,
    record: Record,
    new_uplink: bool,
) -> Result<(), NetworkError> {
    if new_uplink {
        return network.rewrite(locked, shared);
    }
    let text = Table::of(&network.settings, shared, &[]).add(&network.guest(record)?);
    match network.nft.apply("add a sandbox", &text) {
        Err(NetworkError::Nft { said, .. }) => {
            // Such as when somebody has flushed all rules: what the others had is gone, too.
            tracing::warn!("the table is not as it was left, and is made anew: {said}");
            network.rewrite(locked, shared)
        }
        other => other,
    }
}

/// Only a TAP with rules is brought up.
fn bring_up(name: &IfName, interface: &Interface) -> Result<(), NetworkError> {
    if let Err(error) = conntrack::forget(interface.address) {
        // Then it is the order in which indexes are used that keeps old connections away.
        tracing::warn!("making conntrack forget {}: {error}", interface.address);
    }
    let failed = || NetworkError::system(format!("bringing up the TAP {name}"));
    let link = link::find(name).map_err(failed())?;
    let link = link.ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))?;
    link::up(link.index).map_err(failed())?;
    link::add_address(link.index, interface.gateway).map_err(failed())?;
    link::add_neighbour(link.index, interface.address, interface.mac).map_err(failed())
}

/// Removes TAP, rules and lease, as far as they are there. What can't be removed now is when the network is next
/// opened.
fn undo(network: &Inner, locked: &Locked, shared: &Shared, record: Record) {
    let index = record.index;
    let tap = remove_tap(&network.settings, &network.instance, index);
    locked.end_lease(index);
    let rules = network.guest(record).and_then(|guest| {
        let text = Table::of(&network.settings, shared, &[]).remove(&guest);
        match network.nft.apply("remove a sandbox", &text) {
            Ok(()) => Ok(()),
            Err(_) => network.rewrite(locked, shared),
        }
    });
    for error in [tap, rules].into_iter().filter_map(Result::err) {
        tracing::error!("removing index {:x}: {error}", index.0);
    }
}
