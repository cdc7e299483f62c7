//! Decides: the messages of an NFQUEUE as bytes (`linux/netfilter/nfnetlink_queue.h`).

use crate::host::netlink::{
    ACKNOWLEDGE, Attributes, Header, REQUEST, find, message, messages, number,
};

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;

const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const COMMAND: u16 = 1;
const PARAMETERS: u16 = 2;
const MOST: u16 = 3;
const MASK: u16 = 4;
const FLAGS: u16 = 5;

const BIND: u8 = 1;
const WITHOUT_CONTENT: u8 = 1;
/// What does not fit passes.
const FAIL_OPEN: u32 = 1;
/// The packet goes through the same hook once more.
const REPEAT: u32 = 4;

/// The queue of that number shall be ours and hold that many packets.
#[must_use]
pub fn bind(number: u16, most: u32) -> Vec<u8> {
    let flags = FAIL_OPEN.to_be_bytes();
    let attributes = Attributes::default()
        .with(COMMAND, &[BIND, 0, 0, 0])
        .with(PARAMETERS, &[0, 0, 0, 0, WITHOUT_CONTENT])
        .number(MOST, most)
        .with(MASK, &flags)
        .with(FLAGS, &flags);
    request(CONFIG, ACKNOWLEDGE, number, &attributes)
}

/// A packet shall go its way, which begins with all rules of the hook once more.
#[must_use]
pub fn repeat(number: u16, packet: u32) -> Vec<u8> {
    let mut verdict = [0; 8];
    verdict[..4].copy_from_slice(&REPEAT.to_be_bytes());
    verdict[4..].copy_from_slice(&packet.to_be_bytes());
    request(VERDICT, 0, number, &Attributes::default().with(VERDICT_HEADER, &verdict))
}

fn request(kind: u16, flags: u16, queue: u16, attributes: &Attributes) -> Vec<u8> {
    let flags = REQUEST | flags;
    message(Header { kind, flags, sequence: 0, family: 0, resource: queue }, attributes)
}

/// The numbers by which the kernel knows the packets that came.
#[must_use]
pub fn packets(datagram: &[u8]) -> Vec<u32> {
    messages(datagram)
        .filter(|message| message.kind == PACKET)
        .filter_map(|message| number(find(message.attributes(), PACKET_HEADER)?))
        .map(u32::from_be_bytes)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_in_order_and_anything_else_is_passed_over() {
        let header = |id: u32| [&id.to_be_bytes()[..], &[8, 0, 0]].concat();
        let packet = |kind: u16, id: u32| {
            let attributes = Attributes::default().with(9, b"x").with(PACKET_HEADER, &header(id));
            request(kind, 0, 7, &attributes)
        };
        let datagram = [packet(PACKET, 258), packet(VERDICT, 1), packet(PACKET, 259)].concat();
        assert_eq!(packets(&datagram), [258, 259]);
        for end in 0..datagram.len() {
            assert!(packets(&datagram[..end]).len() < 2);
        }
    }
}
