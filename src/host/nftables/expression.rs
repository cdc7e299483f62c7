//! Decides: the expressions that rules are made of, as the kernel takes them
//! (`linux/netfilter/nf_tables.h`). Each works on registers: a word of the packet goes into one,
//! is compared or changed there, and is written back.

use crate::host::mark::FwMark;
use crate::host::netlink::Attributes;

const TCP: u8 = 6;
const IPV4: u8 = 2;
/// The kernel's number of `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

const TRANSPORT: u32 = 2;
const DESTINATION_PORT: u32 = 2;
const TCP_FLAGS: u32 = 13;
/// FIN, SYN, RST and ACK; and SYN.
const FLAGS_OF_INTEREST: u8 = 0x17;
const SYN: u8 = 0x02;

#[derive(Clone, Copy, Debug)]
enum Meta {
    Mark = 3,
    InputInterface = 4,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

#[derive(Clone, Copy, Debug)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Drop = 0,
    Accept = 1,
    Jump = -3,
}

/// The expressions of one rule, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Expressions(Attributes);

fn empty() -> Attributes {
    Attributes::default()
}

impl Expressions {
    fn push(self, name: &str, data: &Attributes) -> Self {
        const LIST_ELEMENT: u16 = 1;
        let expression = empty().text(1, name).nest(2, data);
        Self(self.0.nest(LIST_ELEMENT, &expression))
    }

    pub(super) fn into_attributes(self) -> Attributes {
        self.0
    }

    fn load_meta(self, key: Meta) -> Self {
        self.push("meta", &empty().number(1, REGISTER).number(2, key as u32))
    }

    fn compare(self, how: Compare, value: &[u8]) -> Self {
        let data = empty().with(1, value);
        self.push("cmp", &empty().number(1, REGISTER).number(2, how as u32).nest(3, &data))
    }

    fn load_transport(self, offset: u32, length: u32) -> Self {
        let place = empty().number(1, REGISTER).number(2, TRANSPORT);
        self.push("payload", &place.number(3, offset).number(4, length))
    }

    /// The register under `mask`, with the bits of `flip` changed.
    fn bitwise(self, mask: &[u8], flip: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let registers = empty().number(1, REGISTER).number(2, REGISTER).number(3, length);
        let value = |bytes| empty().with(1, bytes);
        self.push("bitwise", &registers.nest(4, &value(mask)).nest(5, &value(flip)))
    }

    fn load_socket(self, key: u32) -> Self {
        self.push("socket", &empty().number(1, key).number(2, REGISTER))
    }

    /// `meta nfproto ipv4`
    pub(super) fn ipv4(self) -> Self {
        self.load_meta(Meta::NetworkProtocol).compare(Compare::Equal, &[IPV4])
    }

    /// `meta l4proto tcp`
    pub(super) fn tcp(self) -> Self {
        self.load_meta(Meta::TransportProtocol).compare(Compare::Equal, &[TCP])
    }

    /// `iif != "lo"`
    pub(super) fn outside(self) -> Self {
        let loopback = LOOPBACK.to_ne_bytes();
        self.load_meta(Meta::InputInterface).compare(Compare::NotEqual, &loopback)
    }

    /// `tcp flags & (fin | syn | rst | ack) == syn`
    pub(super) fn syn(self) -> Self {
        let flags = self.tcp().load_transport(TCP_FLAGS, 1);
        flags.bitwise(&[FLAGS_OF_INTEREST], &[0]).compare(Compare::Equal, &[SYN])
    }

    /// `tcp dport PORT`
    pub(super) fn dport(self, port: u16) -> Self {
        let port_in_register = self.tcp().load_transport(DESTINATION_PORT, 2);
        port_in_register.compare(Compare::Equal, &port.to_be_bytes())
    }

    /// `tcp dport @SET`
    pub(super) fn dports_in(self, set: &str) -> Self {
        let port = self.tcp().load_transport(DESTINATION_PORT, 2);
        port.push("lookup", &empty().text(1, set).number(2, REGISTER))
    }

    /// `socket transparent 1 socket wildcard 0`: without the second, packets to the port of a
    /// listener that is bound to no address would be taken for that listener's, wherever they go.
    pub(super) fn transparent_socket(self) -> Self {
        const TRANSPARENT: u32 = 0;
        const WILDCARD: u32 = 2;
        let transparent = self.load_socket(TRANSPARENT).compare(Compare::Equal, &[1]);
        transparent.load_socket(WILDCARD).compare(Compare::Equal, &[0])
    }

    /// `counter`
    pub(super) fn counter(self) -> Self {
        self.push("counter", &empty().with(1, &[0; 8]).with(2, &[0; 8]))
    }

    /// `meta mark set meta mark & ~MASK | VALUE`: bits of others stay as they are.
    pub(super) fn set_mark(self, mark: FwMark) -> Self {
        let keep = (!mark.mask()).to_ne_bytes();
        let marked = self.load_meta(Meta::Mark).bitwise(&keep, &mark.value().to_ne_bytes());
        marked.push("meta", &empty().number(2, Meta::Mark as u32).number(3, REGISTER))
    }

    /// `tproxy to :PORT`. Where nobody listens there, the rule ends here.
    pub(super) fn tproxy(self, port: u16) -> Self {
        const ANY_FAMILY: u32 = 0;
        let value = empty().with(1, &port.to_be_bytes());
        let register = self.push("immediate", &empty().number(1, REGISTER).nest(2, &value));
        register.push("tproxy", &empty().number(1, ANY_FAMILY).number(3, REGISTER))
    }

    /// `queue num NUMBER bypass`
    pub(super) fn queue(self, number: u16) -> Self {
        const BYPASS: [u8; 2] = [0, 1];
        let one = 1_u16.to_be_bytes();
        self.push("queue", &empty().with(1, &number.to_be_bytes()).with(2, &one).with(3, &BYPASS))
    }

    /// The same by the target of iptables, for kernels that were built without the expression.
    pub(super) fn xt_queue(self, number: u16) -> Self {
        const REVISION: u32 = 3;
        let (one_queue, bypass) = (1_u16.to_ne_bytes(), 1_u16.to_ne_bytes());
        let info = [number.to_ne_bytes(), one_queue, bypass, [0; 2]].concat();
        self.push("target", &empty().text(1, "NFQUEUE").number(2, REVISION).with(3, &info))
    }

    pub(super) fn verdict(self, verdict: Verdict) -> Self {
        self.end(&empty().with(1, &(verdict as i32).to_be_bytes()))
    }

    pub(super) fn jump(self, chain: &str) -> Self {
        let code = empty().with(1, &(Verdict::Jump as i32).to_be_bytes());
        self.end(&code.text(2, chain))
    }

    fn end(self, verdict: &Attributes) -> Self {
        let data = empty().nest(2, verdict);
        self.push("immediate", &empty().number(1, VERDICT_REGISTER).nest(2, &data))
    }
}
