//! Acts: looks for facts of this host that break transparent proxying though nothing is lacking.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use super::nftables::Nftables;
use super::reverse_path::{Checks, by_rules, by_sysctl, chain, lookup};
use crate::problem::Problem;

const SYSCTLS: &str = "/proc/sys/net/ipv4/conf";

/// Cheap enough for each reload. What cannot be read is no reason to warn.
#[must_use]
pub fn reverse_path() -> Option<Problem> {
    let all = checks("all")?;
    let names = fs::read_dir(SYSCTLS).ok()?.flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let each = names.filter(|name| !["all", "default", "lo"].contains(&name.as_str()));
    let mut each: Vec<Checks> = each.filter_map(|name| checks(&name)).collect();
    each.sort_by(|one, other| one.name.cmp(&other.name));
    by_sysctl(&all, &each)
}

fn checks(name: &str) -> Option<Checks> {
    let directory = Path::new(SYSCTLS).join(name);
    let value = |key| fs::read_to_string(directory.join(key)).ok()?.trim().parse().ok();
    Some(Checks {
        name: name.to_owned(),
        rp_filter: value("rp_filter")?,
        src_valid_mark: value("src_valid_mark")?,
        accept_local: value("accept_local")?,
    })
}

/// Reads every rule of nftables: only once, at the start.
#[must_use]
pub fn rules_by_mark() -> Vec<Problem> {
    let nftables = Nftables::default();
    let read = || Some((nftables.chains(chain).ok()?, nftables.rules(lookup).ok()?));
    read().map(|(chains, lookups)| by_rules(&chains, &lookups)).unwrap_or_default()
}

/// Whether it is an address of this host: then the kernel takes it for the sender's as well.
#[must_use]
pub fn is_local(address: IpAddr) -> bool {
    if address.is_loopback() {
        return true;
    }
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let sender = || {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // No packet is sent; the port is that of "discard".
        socket.connect((address, 9)).ok()?;
        socket.local_addr().ok()
    };
    sender().is_some_and(|sender| sender.ip() == address)
}
