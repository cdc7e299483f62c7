//! What the kernel says over netlink: whole, it is read as it was meant; cut short, with bits that
//! flipped and lengths that are wrong, it is read as far as it goes, and that ends.
//!
//! The messages are put together here, byte by byte, as far as hapilot does not send such itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hapilot::handover::guard::queued;
use hapilot::host::instance::{ChainName, Instance, Purpose};
use hapilot::host::mark::{FwMark, TableId};
use hapilot::host::netlink::{
    Attributes, DONE, ERROR, Header, Received, attributes, frame, message, messages,
};
use hapilot::host::nftables::answer::{answers, packets, table};
use hapilot::host::nftables::{Kind, Seen, Table};
use hapilot::host::notice::{Transactions, removes_routing};
use hapilot::host::record::{Former, Migration, Numbers, Record};
use hapilot::host::step::PROTOCOL;
use hapilot::listeners::diagnosis::{Connection, HalfOpen, Listening, Session, Socket, read};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const US: Instance = Instance::new(0x00c0_ffee);

/// No message is shorter, nor is an attribute.
const SHORTEST: usize = 16;
const SHORTEST_ATTRIBUTE: usize = 4;

/// An attribute's kind and value.
type Attribute = (u16, Vec<u8>);

/// Lengths, kinds and error numbers at which a reader may trip.
const EDGES: [u32; 12] = [0, 1, 3, 4, 5, 15, 16, 17, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

#[derive(Clone, Debug)]
enum Damage {
    Cut(Index),
    Flip(Index, u8),
    /// Where lengths and kinds are: at a multiple of two.
    Half(Index, u16),
    Word(Index, u32),
    Insert(Index, Vec<u8>),
    Behind(Vec<u8>),
}

impl Damage {
    fn to(&self, bytes: &mut Vec<u8>) {
        let place = |at: &Index, width: usize| at.index(bytes.len() / width + 1) * width;
        match self {
            Self::Cut(at) => bytes.truncate(place(at, 1)),
            Self::Flip(at, bit) => {
                let at = place(at, 1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Half(at, number) => {
                let at = place(at, 2);
                overwrite(bytes, at, &number.to_ne_bytes());
            }
            Self::Word(at, number) => {
                let at = place(at, 4);
                overwrite(bytes, at, &number.to_ne_bytes());
            }
            Self::Insert(at, more) => {
                let at = place(at, 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Behind(more) => bytes.extend(more),
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + with.len()) {
        place.copy_from_slice(with);
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let edge = proptest::sample::select(&EDGES[..]);
    let half = edge.clone().prop_map(|edge| u16::try_from(edge & 0xffff).unwrap());
    prop_oneof![
        any::<Index>().prop_map(Damage::Cut),
        any::<(Index, u8)>().prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), half).prop_map(|(at, number)| Damage::Half(at, number)),
        (any::<Index>(), edge).prop_map(|(at, number)| Damage::Word(at, number)),
        (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, more)| Damage::Insert(at, more)),
        vec(any::<u8>(), 1..40).prop_map(Damage::Behind),
    ]
}

fn damaged(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (valid, vec(damage(), 1..6)).prop_map(|(mut bytes, damages)| {
        for damage in damages {
            damage.to(&mut bytes);
        }
        bytes
    })
}

/// Of kinds that none of those has that are looked for.
fn unknown() -> impl Strategy<Value = Vec<Attribute>> {
    vec((100..0x3fff_u16, vec(any::<u8>(), 0..20)), 0..4)
}

fn written(attributes: &[Attribute]) -> Attributes {
    attributes.iter().fold(Attributes::default(), |all, (kind, value)| all.with(*kind, value))
}

/// As they are behind netlink's and netfilter's headers.
fn bytes_of(attributes: &Attributes) -> Vec<u8> {
    of_netfilter(0, 0, attributes).split_off(SHORTEST + 4)
}

fn of_netfilter(kind: u16, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    message(Header { kind, flags: 0, sequence, family: 1, resource: 0 }, attributes)
}

/// `wanted` among others.
fn among(before: &[Attribute], wanted: &Attributes, after: &[Attribute]) -> Attributes {
    let all =
        before.iter().fold(Attributes::default(), |all, (kind, value)| all.with(*kind, value));
    let wanted = bytes_of(wanted);
    let all = attributes(&wanted).fold(all, |all, (kind, value)| all.with(kind, value));
    after.iter().fold(all, |all, (kind, value)| all.with(*kind, value))
}

#[derive(Clone, Debug)]
struct Said {
    header: Header,
    attributes: Vec<Attribute>,
}

fn said() -> impl Strategy<Value = Said> {
    let header = (any::<(u16, u16, u32, u8, u16)>()).prop_map(
        |(kind, flags, sequence, family, resource)| Header {
            kind,
            flags,
            sequence,
            family,
            resource,
        },
    );
    let attributes = vec((0..0x8000_u16, vec(any::<u8>(), 0..40)), 0..6);
    (header, attributes).prop_map(|(header, attributes)| Said { header, attributes })
}

fn datagram(all: &[Said]) -> Vec<u8> {
    all.iter().flat_map(|said| message(said.header, &written(&said.attributes))).collect()
}

/// All that can be told of a message.
fn told(message: &Received<'_>) -> (u16, u16, u32, Vec<u8>, Vec<Attribute>) {
    let attributes = message.attributes().map(|(kind, value)| (kind, value.to_vec())).collect();
    (message.kind, message.flags, message.sequence, message.body().to_vec(), attributes)
}

/// Reads everything that there is in it, as deep as it goes.
fn read_all(bytes: &[u8]) {
    let mut count = 0;
    for message in messages(bytes) {
        count += 1;
        let _ = message.answer();
        let mut inside = 0;
        for (_, value) in message.attributes() {
            inside += 1;
            assert!(attributes(value).count() * SHORTEST_ATTRIBUTE <= value.len());
        }
        assert!(inside * SHORTEST_ATTRIBUTE <= message.body().len());
        let _ = (table(&message), packets(&message));
    }
    assert!(count * SHORTEST <= bytes.len());
    assert!(queued::packets(bytes).len() <= count);
    assert!(answers(bytes).count() <= count);
    assert!(Transactions::of(US).read(bytes).len() <= count);
    let _ = removes_routing(bytes);
    let mut sockets = 0;
    let _ = read(bytes, |socket| {
        sockets += 1;
        let _ = (socket.bound_to(), Session::from(socket));
    });
    assert!(sockets <= count);
}

fn deleted(kind: u16, table: &str, chain: &str) -> Vec<u8> {
    of_netfilter(10 << 8 | kind, 0, &Attributes::default().text(1, table).text(3, chain))
}

#[derive(Clone, Debug)]
struct Removal {
    kind: u16,
    table: String,
    chain: String,
    ours: bool,
}

/// Of a table, a chain or a rule.
fn removal() -> impl Strategy<Value = Removal> {
    let chain = prop_oneof![
        any::<u32>().prop_filter("of another one", |n| *n != 0x00c0_ffee).prop_map(|number| {
            let instance = Instance::new(number);
            (ChainName { instance, purpose: Purpose::Diversion }.to_string(), false)
        }),
        Just((ChainName { instance: US, purpose: Purpose::Diversion }.to_string(), true)),
        Just((ChainName { instance: US, purpose: Purpose::Interception }.to_string(), true)),
        Just((ChainName { instance: US, purpose: Purpose::Guard }.to_string(), false)),
        "[a-zA-Z-]{0,20}".prop_map(|name| (name, false)),
    ];
    let table = prop_oneof![Just("mangle".to_owned()), Just("filter".to_owned())];
    (table, chain, proptest::sample::select(&[5_u16, 8][..])).prop_map(
        |(table, (chain, of_us), kind)| {
            let ours = of_us && table == "mangle";
            Removal { kind, table, chain, ours }
        },
    )
}

fn transactions() -> impl Strategy<Value = Vec<(Vec<Removal>, String)>> {
    vec((vec(removal(), 0..4), "[a-z-]{1,15}"), 0..4)
}

fn told_of(transactions: &[(Vec<Removal>, String)]) -> Vec<u8> {
    let told = transactions.iter().flat_map(|(removals, program)| {
        let removals = removals.iter().map(|r| deleted(r.kind, &r.table, &r.chain));
        let end = Attributes::default().number(1, 7).text(3, program);
        removals.chain([of_netfilter(10 << 8 | 15, 0, &end)])
    });
    told.flatten().collect()
}

#[derive(Clone, Debug)]
struct Fields {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    timer: u8,
    retries: u8,
    /// Interface, queues, user, inode; and in between when the timer is up.
    numbers: [u32; 6],
    v6_only: Option<u8>,
    silent: Option<(u32, u32)>,
    unknown: Vec<Attribute>,
}

fn fields() -> impl Strategy<Value = Fields> {
    let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let any_of_both = any::<bool>().prop_map(|six| {
        let any = if six { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
        (any, any)
    });
    let about = any::<(u16, u16, u8, [u32; 6], Option<u8>, Option<(u32, u32)>)>();
    (prop_oneof![v4, v6, any_of_both], about, any::<u8>(), 0..5_u8, unknown()).prop_map(
        |((local, remote), about, retries, timer, unknown)| {
            let (from, to, state, numbers, v6_only, silent) = about;
            let (local, remote) = (SocketAddr::new(local, from), SocketAddr::new(remote, to));
            Fields { local, remote, state, timer, retries, numbers, v6_only, silent, unknown }
        },
    )
}

impl Fields {
    /// `struct inet_diag_msg` and its attributes.
    fn message(&self) -> Vec<u8> {
        let family = if self.local.is_ipv4() { 2 } else { 10 };
        let address = |address: SocketAddr| {
            let mut bytes = match address.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            bytes.resize(16, 0);
            bytes
        };
        let [interface, expires, received, sent, user, inode] = self.numbers;
        let mut body = vec![family, self.state, self.timer, self.retries];
        body.extend(self.local.port().to_be_bytes());
        body.extend(self.remote.port().to_be_bytes());
        body.extend(address(self.local));
        body.extend(address(self.remote));
        body.extend(interface.to_ne_bytes());
        body.extend([0xff; 8]);
        for number in [expires, received, sent, user, inode] {
            body.extend(number.to_ne_bytes());
        }
        let mut known = Attributes::default();
        if let Some(only) = self.v6_only {
            known = known.with(11, &[only]);
        }
        if let Some((sent, received)) = self.silent {
            let mut info = vec![0x55; 104];
            info[44..48].copy_from_slice(&sent.to_ne_bytes());
            info[52..56].copy_from_slice(&received.to_ne_bytes());
            known = known.with(2, &info);
        }
        body.extend(bytes_of(&among(&self.unknown, &known, &self.unknown)));
        frame(20, 2, 0, &body)
    }

    fn check(&self, socket: &Socket<'_>) {
        let [interface, _, received, sent, user, inode] = self.numbers;
        let (local_port, inode) = (self.local.port(), u64::from(inode));
        let retries = if self.timer == 1 { self.retries } else { 0 };
        assert_eq!(socket.interface, interface);
        assert_eq!(Connection::from(socket), Connection { local_port, inode });
        let silent = self.silent.map_or(0, |(sent, received)| sent.min(received));
        let silent = Duration::from_millis(silent.into());
        let remote = self.remote;
        assert_eq!(Session::from(socket), Session { local_port, remote, inode, silent });
        let listening = Listening { local_port, inode, queued: received, backlog: sent, user };
        assert_eq!(Listening::from(socket), listening);
        assert_eq!(HalfOpen::from(socket), HalfOpen { local_port, remote, retries });
        let only = self.local.ip().is_unspecified() && self.v6_only.is_some_and(|only| only != 0);
        let bound_to = format!("{}{}", self.local, if only { " v6only" } else { "" });
        assert_eq!(socket.bound_to(), bound_to);
    }
}

fn record() -> impl Strategy<Value = Record> {
    let mark = any::<(u32, u32)>()
        .prop_filter_map("a mark with a bit", |(value, mask)| FwMark::new(value & mask, mask));
    let table = any::<u32>().prop_filter_map("not the kernel's own", TableId::new);
    (mark, table, any::<(u32, Option<u8>, Option<u8>)>()).prop_map(
        |(mark, table, (priority, v4, v6))| Record {
            instance: US,
            numbers: Numbers { mark, table, priority },
            former: Former { v4, v6 },
        },
    )
}

/// A comment, as `nft` keeps it.
fn commented(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap();
    [&[0, length][..], text.as_bytes(), &[0]].concat()
}

fn seen() -> impl Strategy<Value = (Seen, Vec<u8>)> {
    let kind = proptest::sample::select(&[Kind::Rules, Kind::Record, Kind::Migration][..]);
    let comment = (proptest::option::of(record()), any::<Option<u8>>());
    (kind, any::<bool>(), comment, unknown(), unknown()).prop_map(
        |(kind, owned, (record, former), before, after)| {
            let table = Table { instance: US, kind };
            let migration = former
                .map(|former| Migration { instance: US, former })
                .filter(|_| record.is_none());
            let comment = record.map(|record| record.to_string());
            let comment = comment.or(migration.map(|migration| migration.to_string()));
            let mut all = Attributes::default().text(1, &table.to_string());
            all = all.number(2, if owned { 2 } else { 0 }).number(3, 9);
            if let Some(comment) = &comment {
                all = all.with(6, &commented(comment));
            }
            let bytes = of_netfilter(10 << 8, 1, &among(&before, &all, &after));
            (Seen { table, owned, record, migration }, bytes)
        },
    )
}

/// A rule that counted so many packets, in each of its counters.
fn rule(counters: &[u64], unknown: &[Attribute]) -> Vec<u8> {
    let expressions = counters.iter().fold(Attributes::default(), |all, packets| {
        let counter = Attributes::default()
            .with(1, &(packets / 2).to_be_bytes())
            .with(2, &packets.to_be_bytes());
        let counter = Attributes::default().text(1, "counter").nest(2, &counter);
        let other = Attributes::default().text(1, "meta").nest(2, &Attributes::default());
        all.nest(1, &counter).nest(1, &other)
    });
    let all = Attributes::default().text(1, "HAPILOT-00c0ffee").nest(4, &expressions);
    of_netfilter(10 << 8 | 6, 1, &among(unknown, &all, unknown))
}

fn routing(kind: u16, header: &[u8], attributes: &[Attribute]) -> Vec<u8> {
    frame(kind, 0, 0, &[header, &bytes_of(&written(attributes))].concat())
}

/// Of each sort one, or several.
fn of_any_sort() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        vec(said(), 0..4).prop_map(|all| datagram(&all)),
        transactions().prop_map(|all| told_of(&all)),
        fields().prop_map(|fields| fields.message()),
        seen().prop_map(|(_, bytes)| bytes),
        (vec(any::<u64>(), 0..4), unknown()).prop_map(|(counters, more)| rule(&counters, &more)),
        (any::<u8>(), unknown()).prop_map(|(by, more)| routing(
            25,
            &[2, 0, 0, 0, 252, by, 254, 2, 0, 0, 0, 0],
            &more
        )),
        any::<u32>().prop_map(packet),
        any::<i32>().prop_map(|code| frame(ERROR, 0, 1, &code.to_ne_bytes())),
        any::<i32>().prop_map(|code| frame(DONE, 0, 1, &code.to_ne_bytes())),
    ];
    vec(one, 1..4).prop_map(|all| all.concat())
}

fn packet(number: u32) -> Vec<u8> {
    let header = [&number.to_be_bytes()[..], &[8, 0, 0]].concat();
    of_netfilter(3 << 8, 0, &Attributes::default().with(9, b"x").with(1, &header))
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_an_end(bytes in vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
    }

    #[test]
    fn whatever_is_damaged_is_read_to_an_end(bytes in damaged(of_any_sort())) {
        read_all(&bytes);
    }

    #[test]
    fn each_message_and_attribute_is_read_as_it_was_written(all in vec(said(), 0..6)) {
        let bytes = datagram(&all);
        prop_assert_eq!(messages(&bytes).count(), all.len());
        for (said, read) in all.iter().zip(messages(&bytes)) {
            let (kind, flags, sequence, _, attributes) = told(&read);
            prop_assert_eq!(kind, said.header.kind);
            prop_assert_eq!((flags, sequence), (said.header.flags, said.header.sequence));
            prop_assert_eq!(&attributes, &said.attributes);
        }
    }

    #[test]
    fn what_is_cut_short_is_read_up_to_there(all in vec(said(), 1..6), at: Index) {
        let bytes = datagram(&all);
        let whole: Vec<_> = messages(&bytes).map(|message| told(&message)).collect();
        let cut = &bytes[..at.index(bytes.len() + 1)];
        let read: Vec<_> = messages(cut).map(|message| told(&message)).collect();
        prop_assert_eq!(&read[..], &whole[..read.len()]);
        // None that is there with all its bytes is missed.
        let lengths = all.iter().map(|said| datagram(std::slice::from_ref(said)).len());
        let ends = lengths.scan(0, |end, length| { *end += length; Some(*end) });
        prop_assert_eq!(read.len(), ends.filter(|end| *end <= cut.len()).count());
    }

    #[test]
    fn what_comes_behind_does_not_change_what_was_said(
        all in vec(said(), 1..4),
        behind in vec(any::<u8>(), 0..60),
    ) {
        let bytes = datagram(&all);
        let more = [&bytes[..], &behind].concat();
        let first: Vec<_> = messages(&more).take(all.len()).map(|m| told(&m)).collect();
        let alone: Vec<_> = messages(&bytes).map(|m| told(&m)).collect();
        prop_assert_eq!(first, alone);
    }

    #[test]
    fn an_answer_is_that_of_its_message(numbers in vec((any::<u32>(), 0..200_i32), 0..6)) {
        let all: Vec<u8> = numbers
            .iter()
            .flat_map(|(sequence, code)| frame(ERROR, 0, *sequence, &(-code).to_ne_bytes()))
            .collect();
        let read = answers(&all).map(|(sequence, answer)| {
            (sequence, answer.err().and_then(|error| error.raw_os_error()).unwrap_or(0))
        });
        prop_assert_eq!(read.collect::<Vec<_>>(), numbers);
    }

    #[test]
    fn every_socket_is_read_whatever_else_is_told_of_it(
        all in vec(fields(), 0..5),
        code in 0..200_i32,
    ) {
        let mut bytes: Vec<u8> = all.iter().flat_map(Fields::message).collect();
        let mut left = all.iter();
        prop_assert!(read(&bytes, |socket| left.next().unwrap().check(socket)).is_none());
        prop_assert_eq!(left.count(), 0);
        bytes.extend(frame(DONE, 2, 0, &(-code).to_ne_bytes()));
        let end = read(&bytes, |_| {}).unwrap();
        let error = end.err().and_then(|error| error.raw_os_error());
        prop_assert_eq!(error, (code != 0).then_some(code));
    }

    #[test]
    fn only_who_removes_something_of_ours_is_named(transactions in transactions(), at: Index) {
        let wanted: Vec<_> = transactions
            .iter()
            .filter(|(removals, _)| removals.iter().any(|removal| removal.ours))
            .map(|(_, program)| Some(program.clone()))
            .collect();
        prop_assert_eq!(Transactions::of(US).read(&told_of(&transactions)), &wanted[..]);
        // However it is divided into datagrams.
        let (before, after) = transactions.split_at(at.index(transactions.len() + 1));
        let mut reader = Transactions::of(US);
        let mut read = reader.read(&told_of(before));
        read.extend(reader.read(&told_of(after)));
        prop_assert_eq!(read, wanted);
    }

    #[test]
    fn only_the_protocol_says_whose_a_route_or_a_rule_is(
        by in prop_oneof![Just(PROTOCOL), any::<u8>()],
        header: [u8; 12],
        before in unknown(),
        after in unknown(),
    ) {
        let mut route = header;
        route[5] = by;
        prop_assert_eq!(removes_routing(&routing(25, &route, &before)), by == PROTOCOL);
        let all = [before, vec![(21, vec![by])], after].concat();
        prop_assert_eq!(removes_routing(&routing(33, &header, &all)), by == PROTOCOL);
        // What is added is not removed.
        prop_assert!(!removes_routing(&routing(32, &header, &all)));
        prop_assert!(!removes_routing(&routing(24, &route, &all)));
    }

    #[test]
    fn a_table_of_ours_is_known_with_all_that_it_keeps((wanted, bytes) in seen()) {
        let read: Vec<_> = messages(&bytes).filter_map(|message| table(&message)).collect();
        prop_assert_eq!(read, [wanted]);
    }

    #[test]
    fn tables_of_others_are_not_ours(name in "\\PC{0,30}", unknown in unknown()) {
        let all = among(&unknown, &Attributes::default().text(1, &name).number(2, 2), &unknown);
        let bytes = of_netfilter(10 << 8, 1, &all);
        let seen = messages(&bytes).find_map(|message| table(&message));
        prop_assert_eq!(seen.map(|seen| seen.table), name.parse::<Table>().ok());
    }

    #[test]
    fn all_that_a_rule_counted_is_added_up(
        counters in vec(any::<u64>(), 0..4),
        unknown in unknown(),
    ) {
        let bytes = rule(&counters, &unknown);
        let read = messages(&bytes).map(|message| packets(&message)).collect::<Vec<_>>();
        prop_assert_eq!(read, [counters.into_iter().fold(0, u64::saturating_add)]);
    }

    #[test]
    fn each_packet_is_known_by_its_number(numbers in vec(any::<u32>(), 0..6)) {
        let all: Vec<u8> = numbers.iter().flat_map(|number| packet(*number)).collect();
        prop_assert_eq!(queued::packets(&all), numbers);
    }

    #[test]
    fn a_record_is_read_back(record in record(), former: u8, other: String) {
        prop_assert_eq!(record.to_string().parse(), Ok(record));
        let migration = Migration { instance: US, former };
        prop_assert_eq!(migration.to_string().parse(), Ok(migration));
        let _ = (other.parse::<Record>(), other.parse::<Migration>(), other.parse::<Table>());
    }
}
