//! Makes connection tracking forget a guest's address, so that its next owner gets nothing of the last.
//! (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`)

use std::io;
use std::net::Ipv4Addr;

use rustix::io::Errno;

use crate::netlink::{self, Message, NLM_F_DUMP, attributes};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `struct nfgenmsg`: IPv4, version 0, resource 0.
const FIXED: [u8; 4] = [2, 0, 0, 0];
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Compare the source address only.
const BY_SOURCE: u32 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;

struct Flow {
    tuple: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

fn parse(content: &[u8], source: Ipv4Addr) -> Option<Flow> {
    let (mut tuple, mut id, mut zone) = (None, None, None);
    for (kind, value) in attributes(content.get(FIXED.len()..)?) {
        match kind {
            CTA_TUPLE_ORIG => tuple = Some(value),
            CTA_ID => id = Some(value.to_vec()),
            CTA_ZONE => zone = Some(value.to_vec()),
            _ => {}
        }
    }
    let tuple = tuple?;
    let (_, ip) = attributes(tuple).find(|(kind, _)| *kind == CTA_TUPLE_IP)?;
    let (_, from) = attributes(ip).find(|(kind, _)| *kind == CTA_IP_V4_SRC)?;
    // A kernel before 5.8 doesn't know the filter and sends everything.
    (from == source.octets()).then(|| Flow {
        tuple: tuple.to_vec(),
        id,
        zone,
    })
}

/// Forgets every connection that `source` began, and says how many there were.
pub(crate) fn forget(source: Ipv4Addr) -> io::Result<usize> {
    let mut flows = Vec::new();
    let message = Message::new(GET, NLM_F_DUMP, &FIXED)
        .nest(CTA_TUPLE_ORIG, |m| {
            m.nest(CTA_TUPLE_IP, |m| m.attribute(CTA_IP_V4_SRC, &source.octets()))
        })
        .nest(CTA_FILTER, |m| {
            m.attribute(CTA_FILTER_ORIG_FLAGS, &BY_SOURCE.to_ne_bytes())
                .attribute(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes())
        });
    netlink::netfilter(message, |_, content| flows.extend(parse(content, source)))?;
    let count = flows.len();
    for flow in flows {
        let mut message =
            Message::new(DELETE, 0, &FIXED).attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, &flow.tuple);
        if let Some(zone) = &flow.zone {
            message = message.attribute(CTA_ZONE, zone);
        }
        if let Some(id) = &flow.id {
            message = message.attribute(CTA_ID, id);
        }
        match netlink::netfilter(message, |_, _| {}) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            other => other?,
        }
    }
    Ok(count)
}
