//! Decides: what the bytes of HAProxy's `-x` protocol mean. Values only.
//!
//! hapilot speaks both sides. The one side sends [`REQUEST`]; the other answers with a 32-bit count in its own byte order and
//! then with messages of up to [`MOST_IN_ONE`] descriptors. The bytes of each message describe its
//! descriptors, in order: a length and the name of the network namespace, a length and the name of
//! the interface, 32 bits that were listener options before HAProxy 2.3. Each message is answered
//! with [`ACKNOWLEDGEMENT`] before the next one comes.

pub const REQUEST: &[u8] = b"_getsocks\n";
pub const ACKNOWLEDGEMENT: [u8; 4] = [0; 4];
/// `MAX_SEND_FD` in HAProxy; the kernel's own limit is 253 (`SCM_MAX_FD`).
pub const MOST_IN_ONE: usize = 252;
/// The longest description: both names at their limit of one length byte.
pub const LONGEST: usize = 2 * (1 + 255) + OPTIONS;
const OPTIONS: usize = 4;

/// What HAProxy says of a descriptor beside its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// `namespace` of the `bind` line.
    pub namespace: Option<String>,
    /// `interface` of the `bind` line.
    pub interface: Option<String>,
}

impl Description {
    /// Of both names together.
    #[must_use]
    pub fn length(&self) -> usize {
        [&self.namespace, &self.interface].into_iter().flatten().map(String::len).sum()
    }
}

/// Reads as many whole descriptions as the bytes hold and must hold exactly `count`.
pub fn descriptions(mut bytes: &[u8], count: usize) -> Result<Vec<Description>, String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (namespace, rest) = name(bytes).ok_or_else(|| torn(found.len()))?;
        let (interface, rest) = name(rest).ok_or_else(|| torn(found.len()))?;
        bytes = rest.get(OPTIONS..).ok_or_else(|| torn(found.len()))?;
        found.push(Description { namespace, interface });
    }
    if found.len() == count {
        Ok(found)
    } else {
        Err(format!("{count} descriptors came with {} descriptions", found.len()))
    }
}

/// The bytes that describe descriptors, in the same order.
#[must_use]
pub fn describe<'a>(descriptions: impl IntoIterator<Item = &'a Description>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Description { namespace, interface } in descriptions {
        for name in [namespace, interface] {
            let name = name.as_deref().unwrap_or_default().as_bytes();
            // They came over this same wire, so they fit into its length byte.
            let name = &name[..name.len().min(usize::from(u8::MAX))];
            bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(name);
        }
        bytes.extend_from_slice(&[0; OPTIONS]);
    }
    bytes
}

fn torn(whole: usize) -> String {
    format!("the bytes end within description {}", whole + 1)
}

fn name(bytes: &[u8]) -> Option<(Option<String>, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(length))?;
    let name = (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned());
    Some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [u8; 6] = [0; 6];

    #[test]
    fn a_plain_listener_is_six_zero_bytes() {
        assert_eq!(descriptions(&PLAIN, 1), Ok(vec![Description::default()]));
    }

    #[test]
    fn names_are_read_by_their_lengths() {
        let mut bytes = b"\x03red\x04eth0\0\0\0\0".to_vec();
        bytes.extend(PLAIN);
        let named =
            Description { namespace: Some("red".to_owned()), interface: Some("eth0".to_owned()) };
        assert_eq!(descriptions(&bytes, 2), Ok(vec![named, Description::default()]));
    }

    #[test]
    fn what_is_described_is_understood() {
        let name = |text: &str| Some(text.to_owned());
        let all = [
            Description::default(),
            Description { namespace: name("red"), interface: None },
            Description { namespace: None, interface: name("eth0") },
            Description { namespace: name(&"n".repeat(255)), interface: name(&"i".repeat(255)) },
        ];
        assert_eq!(descriptions(&describe(&all), all.len()), Ok(all.to_vec()));
    }

    #[test]
    fn every_torn_message_is_an_error() {
        let whole = b"\x03red\x04eth0\0\0\0\0";
        for end in 1..whole.len() {
            assert!(descriptions(&whole[..end], 1).is_err(), "cut at {end}");
        }
        assert!(descriptions(whole, 2).is_err());
        assert!(descriptions(&[], 1).is_err());
    }
}
