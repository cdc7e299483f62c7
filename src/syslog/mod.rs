//! What HAProxy sends to `/dev/log`, or over UDP, is printed with everything else. `message` decides
//! what a datagram says; `socket` and `udp` receive it.

pub mod message;
pub mod socket;
pub mod udp;
