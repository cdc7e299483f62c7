//! Where no NFQUEUE can be had.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::load::{HalfOpen, Load, burst};
use crate::world::{Namespace, Serving, World, until};
use crate::{OTHER_BIND, PLAIN, SHORT};

/// From where hapilot looks for a free number, and how far.
const FIRST: u32 = 32_768;
const RANGE: u32 = 16_384;
const TRIES: u32 = 64;

/// Queues of somebody else: the kernel gives none of them to another.
fn take_queues(namespace: &Namespace, serving: &Serving) -> OwnedFd {
    let first = FIRST + serving.pid() % RANGE;
    namespace.enter(|| {
        let protocol = Some(netlink::NETFILTER);
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap();
        for number in first..first + TRIES {
            take(&socket, u16::try_from(number).unwrap());
        }
        socket
    })
}

/// `NFQNL_MSG_CONFIG` with `NFQNL_CFG_CMD_BIND` (`linux/netfilter/nfnetlink_queue.h`).
fn take(socket: &OwnedFd, number: u16) {
    let mut request = Vec::from(28_u32.to_ne_bytes());
    request.extend(0x302_u16.to_ne_bytes());
    request.extend(5_u16.to_ne_bytes());
    request.extend([0; 10]);
    request.extend(number.to_be_bytes());
    request.extend(8_u16.to_ne_bytes());
    request.extend(1_u16.to_ne_bytes());
    request.extend([1, 0, 0, 0]);
    send(socket, &request, SendFlags::empty()).unwrap();
    let mut answer = [0; 64];
    recv(socket, &mut answer, RecvFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4], "queue {number} is taken");
}

#[test]
fn where_every_queue_is_taken_hold_becomes_drop_and_the_receipt_says_so() {
    let world = World::new();
    let serving = world.serve(PLAIN, &[]);
    let before = world.rules();
    let _queues = take_queues(&world.balancer, &serving);
    let load = Load::start(&world.client, Duration::from_millis(5));
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(OTHER_BIND);
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    half_open.finish();
    let receipt = reload();
    let slowest = load.stop();
    eprintln!("{receipt}\n{slowest:?}");
    assert_eq!(receipt["guard"], "drop", "{receipt}");
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    let warnings = receipt["warnings"].to_string();
    assert!(warnings.contains("guard hold: open an NFQUEUE"), "{receipt}");
    assert!(warnings.contains("/proc/net/netfilter/nfnetlink_queue"), "{receipt}");
    assert_eq!(slowest.resent, 1, "{slowest:?}");
    assert_eq!(world.rules(), before);
}

/// Who asks for `hold` asks that no SYN is dropped.
#[test]
fn where_every_queue_is_taken_and_hold_was_asked_for_the_receipt_says_that_there_was_none() {
    let world = World::new();
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "hold")]);
    let _queues = take_queues(&world.balancer, &serving);
    serving.configure(OTHER_BIND);
    let receipt = serving.reload();
    assert_eq!((&receipt["guard"], &receipt["verdict"]), (&"none".into(), &"taken".into()));
    assert!(receipt["warnings"].to_string().contains("open an NFQUEUE"), "{receipt}");
    assert_ne!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    burst(&world.client, 100).join().expect("every connection after the reload is answered");
}
