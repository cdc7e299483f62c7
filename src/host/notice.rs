//! Decides: which of the kernel's notices say that something of ours was removed
//! (`linux/netfilter/nf_tables.h`, `linux/fib_rules.h`, `linux/rtnetlink.h`).
//!
//! Others change the firewall and the routes all the time: what does not name anything of ours is
//! passed over. What is cut short or unknown is, too.

use super::instance::{ChainName, Instance, Purpose};
use super::netlink::{attributes, find, messages};
use super::nftables::{Kind, Table};
use super::step::PROTOCOL;

const NFTABLES: u16 = 10 << 8;
const DELETE_TABLE: u16 = NFTABLES | 2;
const DELETE_CHAIN: u16 = NFTABLES | 5;
const DELETE_RULE: u16 = NFTABLES | 8;
/// Comes last in every transaction.
const NEW_GENERATION: u16 = NFTABLES | 15;
const PROGRAM: u16 = 3;
const TABLE: u16 = 1;
const MANGLE: &[u8] = b"mangle\0";

const DELETE_ROUTE: u16 = 25;
const DELETE_POLICY_RULE: u16 = 33;
const ROUTE_PROTOCOL: usize = 5;
const RULE_HEADER: usize = 12;
const RULE_PROTOCOL: u16 = 21;

/// The name of a program that removed something of ours, as far as the kernel tells it.
pub type Program = Option<String>;

/// Reads what the kernel says of nftables, which iptables-nft writes to as well.
#[derive(Clone, Debug)]
pub struct Transactions {
    /// As they are in a message: with the zero byte behind them.
    names: Vec<Vec<u8>>,
    /// The one that is being told of removes something of ours.
    touched: bool,
}

impl Transactions {
    /// A guard comes and goes by itself.
    #[must_use]
    pub fn of(instance: Instance) -> Self {
        let chains = [Purpose::Diversion, Purpose::Interception]
            .map(|purpose| ChainName { instance, purpose }.to_string());
        let record = Table { instance, kind: Kind::Record }.to_string();
        let names = chains.into_iter().chain([record]);
        let names = names.map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        Self { names, touched: false }
    }

    /// Whoever removed something of ours, once for each transaction.
    pub fn read(&mut self, datagram: &[u8]) -> Vec<Program> {
        let mut by = Vec::new();
        for message in messages(datagram) {
            match message.kind {
                DELETE_TABLE | DELETE_CHAIN | DELETE_RULE => {
                    // First what costs less: most of what others do is in other tables.
                    let table = find(message.attributes(), TABLE).unwrap_or_default();
                    if table == MANGLE || self.names.iter().any(|name| name == table) {
                        // A rule that leads to us bears the name inside.
                        let body = message.body();
                        self.touched |= self.names.iter().any(|name| contains(body, name));
                    }
                }
                NEW_GENERATION if std::mem::take(&mut self.touched) => {
                    by.push(find(message.attributes(), PROGRAM).and_then(program));
                }
                _ => {}
            }
        }
        by
    }
}

fn contains(body: &[u8], name: &[u8]) -> bool {
    body.windows(name.len()).any(|window| window == name)
}

fn program(name: &[u8]) -> Program {
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Whether a policy rule or a route of a hapilot was removed. By whom is not told.
#[must_use]
pub fn removes_routing(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| {
        let body = message.body();
        match message.kind {
            DELETE_ROUTE => body.get(ROUTE_PROTOCOL) == Some(&PROTOCOL),
            DELETE_POLICY_RULE => {
                let attributes = attributes(body.get(RULE_HEADER..).unwrap_or_default());
                find(attributes, RULE_PROTOCOL) == Some(&[PROTOCOL])
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::{Attributes, Header, message};

    const US: Instance = Instance::new(0x00c0_ffee);

    fn said(kind: u16, attributes: &Attributes) -> Vec<u8> {
        message(Header { kind, flags: 0, sequence: 0, family: 2, resource: 0 }, attributes)
    }

    fn rule(to: &str) -> Vec<u8> {
        let verdict = Attributes::default().text(2, to);
        let attributes = Attributes::default().text(1, "mangle").text(2, "PREROUTING");
        said(DELETE_RULE, &attributes.nest(4, &verdict))
    }

    fn end(by: &str) -> Vec<u8> {
        said(NEW_GENERATION, &Attributes::default().number(1, 7).text(PROGRAM, by))
    }

    #[test]
    fn who_removes_a_rule_that_leads_to_us_is_named_once() {
        let mut transactions = Transactions::of(US);
        let flush = [rule("HAPILOT-00c0ffee"), rule("HAPILOT-00c0ffee-TPROXY")].concat();
        assert_eq!(transactions.read(&flush), []);
        assert_eq!(transactions.read(&end("firewalld")), [Some("firewalld".to_owned())]);
        assert_eq!(transactions.read(&end("firewalld")), []);
        let record = said(DELETE_TABLE, &Attributes::default().text(1, "HAPILOT-00c0ffee-RECORD"));
        assert_eq!(transactions.read(&[record, end("nft")].concat()), [Some("nft".to_owned())]);
    }

    #[test]
    fn what_others_remove_and_a_guard_are_passed_over() {
        let mut transactions = Transactions::of(US);
        for to in ["DOCKER", "HAPILOT-00c0ffef", "HAPILOT-00c0ffee-GUARD", "HAPILOT-00c0ffee1"] {
            assert_eq!(transactions.read(&[rule(to), end("iptables")].concat()), [], "{to}");
        }
        let added = said(NFTABLES | 6, &Attributes::default().text(2, "HAPILOT-00c0ffee"));
        assert_eq!(transactions.read(&[added, end("iptables")].concat()), []);
        let whole = [rule("HAPILOT-00c0ffee"), end("nft")].concat();
        for length in 0..whole.len() {
            assert_eq!(Transactions::of(US).read(&whole[..length]), []);
        }
    }

    /// Behind netlink's header.
    fn routing(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = said(kind, &Attributes::default());
        bytes.truncate(16);
        bytes.extend(body);
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_routes_and_rules_with_our_protocol_count() {
        let route =
            |protocol| routing(DELETE_ROUTE, &[2, 0, 0, 0, 252, protocol, 254, 2, 0, 0, 0, 0]);
        assert!(removes_routing(&route(PROTOCOL)));
        assert!(!removes_routing(&route(3)));
        let rule = |protocol: u8| {
            let length = 5_u16.to_ne_bytes();
            let attribute = [&length[..], &RULE_PROTOCOL.to_ne_bytes(), &[protocol, 0, 0, 0]];
            routing(DELETE_POLICY_RULE, &[&[0; RULE_HEADER][..], &attribute.concat()].concat())
        };
        assert!(removes_routing(&rule(PROTOCOL)));
        assert!(!removes_routing(&rule(0)));
        for length in 0..rule(PROTOCOL).len() {
            let _ = removes_routing(&rule(PROTOCOL)[..length]);
        }
    }
}
