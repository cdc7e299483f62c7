//! Decides: netlink messages as bytes, written and read, netfilter's above all
//! (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`).
//!
//! Reading takes nothing for granted: what is cut short or unknown is passed over.

use std::io;

pub const REQUEST: u16 = 1;
pub const ACKNOWLEDGE: u16 = 4;
pub const DUMP: u16 = 0x300;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;

pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

/// Set in the flags of a dump during which something changed.
pub const INTERRUPTED: u16 = 0x10;

/// netlink's header alone, and with netfilter's behind it.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
const NESTED: u16 = 0x8000;

/// What comes before the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Of addresses; 0 where it does not matter.
    pub family: u8,
    /// Of a queue, or a subsystem.
    pub resource: u16,
}

/// Attributes one after the other, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// As C has it, with a zero byte at its end.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Self {
        self.with(kind, &[text.as_bytes(), b"\0"].concat())
    }

    #[must_use]
    pub fn number(self, kind: u16, number: u32) -> Self {
        self.with(kind, &number.to_be_bytes())
    }

    #[must_use]
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.with(kind | NESTED, &inner.0)
    }
}

#[must_use]
pub fn message(header: Header, attributes: &Attributes) -> Vec<u8> {
    let mut body = vec![header.family, 0];
    body.extend(header.resource.to_be_bytes());
    body.extend_from_slice(&attributes.0);
    frame(header.kind, header.flags, header.sequence, &body)
}

/// A message that is not netfilter's: behind netlink's own header comes what its kind wants.
#[must_use]
pub fn frame(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend_from_slice(body);
    bytes
}

/// A message of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Behind netlink's own header.
    body: &'a [u8],
}

impl<'a> Received<'a> {
    /// What it says of the message that it answers; `None` if it is no answer. The end of a dump
    /// is one, and an error if there was no such dump to be had: it is not to be taken for empty.
    #[must_use]
    pub fn answer(&self) -> Option<io::Result<()>> {
        let code = number(self.body).map(i32::from_ne_bytes);
        let code = match self.kind {
            ERROR => code?,
            // Some dumps end without a word.
            DONE => code.unwrap_or_default(),
            _ => return None,
        };
        Some(match code {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        })
    }

    /// What is behind netlink's own header.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    pub fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.body.get(HEADERS - HEADER..).unwrap_or_default())
    }
}

/// Those of one datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(number(bytes)?)).ok()?.max(HEADER);
        let message = bytes.get(..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received {
            kind: u16::from_ne_bytes(number(&message[4..])?),
            flags: u16::from_ne_bytes(number(&message[6..])?),
            sequence: u32::from_ne_bytes(number(&message[8..])?),
            body: &message[HEADER..],
        })
    })
}

/// Each with its kind, nested or not.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(number(bytes)?)).max(4);
        let kind = u16::from_ne_bytes(number(bytes.get(2..)?)?) & !NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of that kind.
#[must_use]
pub fn find<'a>(
    attributes: impl IntoIterator<Item = (u16, &'a [u8])>,
    kind: u16,
) -> Option<&'a [u8]> {
    attributes.into_iter().find(|(other, _)| *other == kind).map(|(_, value)| value)
}

/// The first bytes, for a number.
#[must_use]
pub fn number<const LENGTH: usize>(bytes: &[u8]) -> Option<[u8; LENGTH]> {
    bytes.get(..LENGTH)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Header =
        Header { kind: 0x0a00, flags: REQUEST | CREATE, sequence: 7, family: 1, resource: 10 };

    #[test]
    fn a_message_is_as_the_kernel_wants_it() {
        let inner = Attributes::default().number(2, 1);
        let bytes = message(HEAD, &Attributes::default().text(1, "abc").nest(4, &inner));
        let wanted = [
            &40_u32.to_ne_bytes()[..],
            &0x0a00_u16.to_ne_bytes(),
            &0x401_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
            &[0, 0, 0, 0, 1, 0, 0, 10],
            &[8_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat(),
            b"abc\0",
            &[12_u16.to_ne_bytes(), 0x8004_u16.to_ne_bytes()].concat(),
            &[8_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat(),
            &[0, 0, 0, 1],
        ];
        assert_eq!(bytes, wanted.concat());
    }

    #[test]
    fn what_was_written_is_read_back_and_what_is_cut_short_ends_the_reading() {
        let inner = Attributes::default().number(2, 258);
        let one = message(HEAD, &Attributes::default().text(1, "abcd").nest(4, &inner));
        let both = [one.clone(), one].concat();
        let read: Vec<Received<'_>> = messages(&both).collect();
        assert_eq!((read.len(), read[1].kind, read[1].sequence), (2, 0x0a00, 7));
        assert_eq!(find(read[0].attributes(), 1), Some(&b"abcd\0"[..]));
        let nested = find(read[0].attributes(), 4).unwrap();
        assert_eq!(find(attributes(nested), 2), Some(&[0, 0, 1, 2][..]));
        for end in 0..both.len() {
            for message in messages(&both[..end]) {
                assert!(message.attributes().count() <= 2);
            }
        }
    }

    #[test]
    fn an_answer_is_a_success_or_the_kernels_error() {
        let answer = |code: i32| {
            let mut bytes = message(Header { kind: ERROR, ..HEAD }, &Attributes::default());
            bytes[16..20].copy_from_slice(&code.to_ne_bytes());
            bytes
        };
        let read = |bytes: &[u8]| messages(bytes).next().and_then(|message| message.answer());
        assert!(read(&answer(0)).unwrap().is_ok());
        assert_eq!(read(&answer(-1)).unwrap().unwrap_err().raw_os_error(), Some(1));
        assert!(read(&answer(i32::MIN)).unwrap().is_err());
        assert!(read(&message(HEAD, &Attributes::default())).is_none());
        assert!(read(&[]).is_none());
        let end = |body: &[u8]| read(&frame(DONE, 0, 7, body)).unwrap();
        assert!(end(&[]).is_ok() && end(&0_i32.to_ne_bytes()).is_ok());
        assert_eq!(end(&(-2_i32).to_ne_bytes()).unwrap_err().raw_os_error(), Some(2));
    }
}
