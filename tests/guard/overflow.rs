//! More SYNs than can be held: a guard gives way, and takes no more memory.

use std::fs;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

use crate::load::{HalfOpen, burst, connects};
use crate::world::{BALANCER, Namespace, PORT, Serving, World, until};
use crate::{OTHER, PLAIN, SHORT, window};

/// With so many hapilot lowers the guard; so many the kernel keeps for it.
const MOST_HELD: u16 = 4096;
const MOST_QUEUED: u16 = 16 * 1024;
/// Until then the guard waits for handshakes that are under way.
const HALF_WAY: Duration = Duration::from_millis(400);
/// Far less than the packets' content would take.
const GROWTH_KIB: u64 = 2048;

/// So many SYNs, each from a port of its own, below those that the kernel gives to clients.
fn flood(client: &Namespace, count: u16) {
    client.enter(|| {
        let (family, kind) = (AddressFamily::INET, SocketType::RAW);
        let protocol = Some(ipproto::TCP);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap();
        let to = SocketAddrV4::new(BALANCER.parse().unwrap(), 0);
        for port in 1024..1024 + count {
            sendto(&socket, &syn(port), SendFlags::empty(), &to).unwrap();
        }
    });
}

/// From 10.9.0.2.
fn syn(from: u16) -> [u8; 20] {
    const HEADER_AND_FLAGS: u16 = 0x5002;
    const WINDOW: u16 = 1024;
    let words = [from, PORT, 0, 1, 0, 0, HEADER_AND_FLAGS, WINDOW];
    // With the addresses, the protocol and the length.
    let rest = [0x0a09, 0x0002, 0x0a09, 0x0001, 6, 20];
    let mut sum: u32 = words.iter().chain(&rest).map(|word| u32::from(*word)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut bytes = [0; 20];
    for (place, word) in bytes.chunks_mut(2).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    let sum = !u16::try_from(sum).unwrap();
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The most that it ever had.
fn memory_kib(serving: &Serving) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", serving.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// So many SYNs while hapilot is stopped: it finds them all at once, however busy the machine is.
/// How many were held.
fn overflow(count: u16) -> u64 {
    let world = World::new();
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "hold")]);
    // Handshakes are under way, so that the guard stays.
    let _half_open = HalfOpen::connect(&world.client, 8);
    serving.configure(OTHER);
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    serving.signal("STOP");
    let (stopped_at, memory) = (Instant::now(), memory_kib(&serving));
    flood(&world.client, count);
    let rules = world.rules();
    assert!(rules.contains("-j NFQUEUE") && !rules.contains("-GUARD -j RETURN"), "{rules}");
    let queued = u64::try_from(world.queued()).unwrap();
    if queued < u64::from(count) {
        until(SHORT, "SYNs pass", || connects(&world.client).then_some(()));
        assert_eq!(u64::try_from(world.queued()).unwrap(), queued, "it did not wait");
    }
    serving.signal("CONT");
    let stopped = stopped_at.elapsed();
    let receipt = reload();
    let grown = memory_kib(&serving) - memory;
    eprintln!("{receipt}\nstopped for {stopped:?}, {grown} KiB more");
    assert_eq!((&receipt["guard"], &receipt["verdict"]), (&"hold".into(), &"taken".into()));
    assert_eq!(receipt["warnings"].as_array().unwrap().len(), 0, "{receipt}");
    // Else the guard waits for them; after a longer stop its own limit may come first.
    let doubt = "the old listeners were still there when the guard was lowered";
    let in_time = stopped < HALF_WAY;
    assert!(!in_time || receipt["doubts"].to_string().contains(doubt), "{receipt}");
    assert_eq!(receipt["held"], queued, "{receipt}");
    // Nothing hangs.
    assert!(window(&receipt) < stopped + SHORT, "{receipt}");
    assert!(grown < GROWTH_KIB, "{grown} KiB");
    assert_eq!(world.queued(), 0);
    assert!(!world.guard_is_up(), "{}", world.rules());
    burst(&world.client, 100).join().expect("every connection after the reload is answered");
    queued
}

#[test]
fn more_than_hapilot_holds_lower_the_guard_and_all_are_let_through() {
    let count = MOST_HELD + 1000;
    assert_eq!(overflow(count), u64::from(count));
}

/// Half of it at least: the socket's buffer is bounded as well.
#[test]
fn more_than_the_kernel_holds_pass() {
    let held = overflow(MOST_QUEUED + 3000);
    assert!((MOST_QUEUED / 2..=MOST_QUEUED).contains(&u16::try_from(held).unwrap()), "{held}");
}
