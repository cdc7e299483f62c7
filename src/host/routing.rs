//! Policy rules and local routes, by rtnetlink; IPv4 and IPv6.
//!
//! Ours carry a protocol number of their own. A rule is always given with all its attributes: with
//! fewer the kernel deletes the first that fits, which may be somebody else's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::mark::{FwMark, TableId};
use super::record::Numbers;
use super::step::{Family, PROTOCOL};
use super::tproxy::Rule;
use crate::fault::{self, Point};

/// The kernel answers in microseconds; it can still be stuck on the lock that all routing shares.
const LIMIT: Duration = Duration::from_secs(5);

/// The loopback device is the first of every network namespace.
const LOOPBACK: u32 = 1;

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const EAFNOSUPPORT: i32 = 97;

/// What adding came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    New,
    AlreadySo,
}

/// Asks the kernel in the network namespace of the calling thread. Each call has a connection of its
/// own: the next one may come from another thread, with another tokio runtime.
#[derive(Debug, Default)]
pub struct Routing {
    until: Option<Instant>,
}

/// The connection is a task of the tokio runtime of the calling thread, and ends with this value: no
/// answer comes after it.
fn connect() -> Result<Handle> {
    // Strict: else the kernel ignores that one table is asked for, and dumps them all.
    let (connection, handle, _) =
        rtnetlink::new_connection_with_strict_check().context("open a routing socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

impl Routing {
    /// No call goes on after `until`.
    pub fn finish_by(&mut self, until: Instant) {
        self.until = Some(until);
    }

    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<Result<T, i32>> {
        let limit = self
            .until
            .map_or(LIMIT, |until| until.saturating_duration_since(Instant::now()).min(LIMIT));
        let call = async {
            fault::within(Point::Routing).await?;
            anyhow::Ok(call.await)
        };
        let answer = tokio::time::timeout(limit, call)
            .await
            .with_context(|| format!("no answer from the kernel after {limit:?}"))??;
        match answer {
            Ok(value) => Ok(Ok(value)),
            Err(error) => match errno(&error) {
                Some(number) => Ok(Err(number)),
                None => Err(error.into()),
            },
        }
    }

    pub async fn add_rule(&self, family: Family, numbers: Numbers) -> Result<Added> {
        let handle = connect()?;
        let mut request = handle.rule().add();
        *request.message_mut() = rule_message(family, numbers);
        added(self.bounded(request.execute()).await?)
    }

    pub async fn delete_rule(&self, family: Family, numbers: Numbers) -> Result<()> {
        let (handle, message) = (connect()?, rule_message(family, numbers));
        // A rule can be there more than once; the kernel deletes one at a time.
        loop {
            let request = handle.rule().del(message.clone());
            match self.bounded(request.execute()).await? {
                Ok(()) => {}
                Err(ENOENT | EAFNOSUPPORT) => return Ok(()),
                Err(number) => return Err(os_error(number)),
            }
        }
    }

    /// A table that has another default route already is refused: packets would leave by it.
    pub async fn add_route(&self, family: Family, table: TableId) -> Result<Added> {
        let handle = connect()?;
        let request = handle.route().add(route_message(family, table));
        let answer = added(self.bounded(request.execute()).await?)?;
        if answer == Added::AlreadySo {
            let routes = self.routes(family, table.number()).await?;
            if !routes.iter().any(is_local_default) {
                bail!("table {table} has another default route");
            }
        }
        Ok(answer)
    }

    pub async fn delete_route(&self, family: Family, table: TableId) -> Result<()> {
        let handle = connect()?;
        let request = handle.route().del(route_message(family, table));
        match self.bounded(request.execute()).await? {
            Ok(()) | Err(ESRCH | ENOENT | EAFNOSUPPORT) => Ok(()),
            Err(number) => Err(os_error(number)),
        }
    }

    pub async fn rules(&self, family: Family) -> Result<Vec<Rule>> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let handle = connect()?;
        let stream = handle.rule().get(version).execute();
        match self.bounded(pin!(stream).try_collect::<Vec<_>>()).await? {
            Ok(messages) => Ok(messages.iter().map(rule).collect()),
            Err(EAFNOSUPPORT) => Ok(Vec::new()),
            Err(number) => Err(os_error(number)),
        }
    }

    /// The numbers of rules that only a hapilot makes: our protocol, a mark, and a table with our
    /// route in it.
    pub async fn marked_as_ours(&self, family: Family) -> Result<Vec<Numbers>> {
        let mut ours = Vec::new();
        for rule in self.rules(family).await? {
            let (mark, table) = (FwMark::new(rule.mark, rule.mask), TableId::new(rule.table));
            let (PROTOCOL, Some(mark), Some(table)) = (rule.protocol, mark, table) else {
                continue;
            };
            let routes = self.routes(family, table.number()).await?;
            if routes.iter().any(|route| is_local_default(route) && is_tagged(route)) {
                ours.push(Numbers { mark, table, priority: rule.priority });
            }
        }
        Ok(ours)
    }

    /// Whether somebody has a route in that table.
    pub async fn table_in_use(&self, family: Family, table: u32) -> Result<bool> {
        Ok(!self.routes(family, table).await?.is_empty())
    }

    async fn routes(&self, family: Family, table: u32) -> Result<Vec<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(family);
        message.attributes.push(RouteAttribute::Table(table));
        let handle = connect()?;
        let stream = handle.route().get(message).execute();
        match self.bounded(pin!(stream).try_collect::<Vec<_>>()).await? {
            Ok(routes) => Ok(routes.into_iter().filter(|r| table_of(r) == table).collect()),
            Err(ENOENT | EAFNOSUPPORT) => Ok(Vec::new()),
            Err(number) => Err(os_error(number)),
        }
    }
}

fn added(answer: Result<(), i32>) -> Result<Added> {
    match answer {
        Ok(()) => Ok(Added::New),
        Err(EEXIST) => Ok(Added::AlreadySo),
        Err(number) => Err(os_error(number)),
    }
}

fn os_error(number: i32) -> anyhow::Error {
    std::io::Error::from_raw_os_error(number).into()
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn rule_message(family: Family, numbers: Numbers) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        // The header has room for 255 tables only.
        RuleAttribute::Table(numbers.table.number()),
        RuleAttribute::Priority(numbers.priority),
        RuleAttribute::FwMark(numbers.mark.value()),
        RuleAttribute::FwMask(numbers.mark.mask()),
        RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
    ];
    message
}

fn route_message(family: Family, table: TableId) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK)
            .table_id(table.number())
            .protocol(RouteProtocol::from(PROTOCOL))
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK)
            .table_id(table.number())
            .protocol(RouteProtocol::from(PROTOCOL))
            .scope(RouteScope::Universe)
            .kind(RouteType::Local)
            .build(),
    }
}

fn rule(message: &RuleMessage) -> Rule {
    let mut rule = Rule {
        priority: 0,
        mark: 0,
        mask: u32::MAX,
        table: u32::from(message.header.table),
        protocol: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::FwMark(number) => rule.mark = *number,
            RuleAttribute::FwMask(number) => rule.mask = *number,
            RuleAttribute::Table(number) => rule.table = *number,
            RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
            _ => {}
        }
    }
    if rule.mark == 0 && rule.mask == u32::MAX {
        rule.mask = 0;
    }
    rule
}

fn table_of(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(number) => Some(*number),
        _ => None,
    });
    wide.unwrap_or(u32::from(message.header.table))
}

fn is_local_default(message: &RouteMessage) -> bool {
    message.header.kind == RouteType::Local && message.header.destination_prefix_length == 0
}

fn is_tagged(message: &RouteMessage) -> bool {
    u8::from(message.header.protocol) == PROTOCOL
}
