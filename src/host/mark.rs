//! Decides: the numbers that we claim on the host. Values only; nothing here touches the kernel.
//!
//! A `FwMark` is a value under a mask; only the bits of the mask are ever written or matched, so
//! that marks of others (kube-proxy, Tailscale, VPNs) pass through unharmed.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// A TCP port, 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    #[must_use]
    pub fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // u16's own parser takes a leading plus sign, which no operator means.
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a port (1 to 65535)"))
    }
}

/// A firewall mark with the mask that it lives under (ip-rule(8), `fwmark VALUE/MASK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FwMark {
    value: u32,
    mask: u32,
}

impl FwMark {
    /// `None` when the value has no bit under the mask (it could not be told from "unmarked") or
    /// has bits outside it (they could never be matched).
    #[must_use]
    pub fn new(value: u32, mask: u32) -> Option<Self> {
        (value != 0 && value & !mask == 0).then_some(Self { value, mask })
    }

    #[must_use]
    pub fn value(self) -> u32 {
        self.value
    }

    #[must_use]
    pub fn mask(self) -> u32 {
        self.mask
    }
}

impl fmt::Display for FwMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// A routing table's number (ip-route(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(u32);

impl TableId {
    /// `None` for 0 and for 253 to 255, which are the kernel's own (`default`, `main`, `local`).
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (number != 0 && !(253..=255).contains(&number)).then_some(Self(number))
    }

    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One entry of `HAPROXY_INTERCEPT`: traffic to any address on `from` goes to our listener on `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Intercept {
    pub from: Port,
    pub to: Port,
}

impl fmt::Display for Intercept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.from, self.to)
    }
}
