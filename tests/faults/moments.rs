//! Killed at any moment, between steps or in the middle of one.
//!
//! `HAPILOT_KILLS=200` kills as often on each backend; `HAPILOT_SEED` repeats a run.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::life::{Came, CleanUp, Life, Scene, Way};
use super::verdict::{assert_harmless, assert_same};
use super::walk::side_by_side;
use crate::lab::{LONG, SHORT};

const LIVES: [Life; 3] = [Life::Alone, Life::Successor, Life::Predecessor];

fn number(name: &str, or: u64) -> u64 {
    std::env::var(name).map_or(or, |text| text.parse().unwrap())
}

/// Splitmix64: any seed is a good one.
fn random(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How long such a life lasts here and now.
fn lasts(life: Life, way: Way) -> Duration {
    let host = way.host();
    let begun = Instant::now();
    let mut scene = Scene::begin(&host, life, way, "none");
    assert_eq!(scene.go_on(), Came::Through, "{}", scene.instance.log.text());
    scene.instance.wait(LONG);
    begun.elapsed()
}

fn kill_after(life: Life, way: Way, moment: Duration, clean_up: CleanUp, what: &str) {
    let host = way.host();
    let before = host.state();
    let mut scene = Scene::begin(&host, life, way, "none");
    let pid = Pid::from_raw(scene.instance.pid().cast_signed()).unwrap();
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(moment);
            // It may have ended by itself.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        });
        scene.go_on();
    });
    scene.instance.wait(SHORT);
    scene.end_others();
    assert_harmless(&scene, way, what);
    let came = scene.instance.log.text().lines().count();
    drop(scene);
    clean_up.run(&host, life, way);
    assert_same(&host, &before, what);
    eprintln!("{what}: clean, {came} lines of its log");
}

fn at_random_moments(way: Way) {
    let (kills, seed) =
        (number("HAPILOT_KILLS", 12), number("HAPILOT_SEED", u64::from(std::process::id())));
    eprintln!("HAPILOT_SEED={seed} HAPILOT_KILLS={kills}");
    let lengths = LIVES.map(|life| lasts(life, way));
    side_by_side(4, (0..kills).collect(), |turn| {
        let number = usize::try_from(turn).unwrap();
        let at = number % LIVES.len();
        let (life, length, clean_up) = (LIVES[at], lengths[at], CleanUp::at(number));
        // Others run beside it, so it may last longer.
        let longest = u64::try_from(length.as_micros()).unwrap() * 3 / 2;
        let moment = Duration::from_micros(random(seed ^ turn) % longest);
        let way_of = way.firewall;
        let what = format!(
            "{way_of} {life:?} killed after {moment:?} (seed {seed}, {turn}), {clean_up:?}"
        );
        kill_after(life, way, moment, clean_up, &what);
    });
}

#[test]
fn killed_at_random_moments_with_iptables_nft() {
    at_random_moments(Way { firewall: "iptables-nft", guard: "drop" });
}

#[test]
fn killed_at_random_moments_with_iptables_legacy() {
    at_random_moments(Way { firewall: "iptables-legacy", guard: "hold" });
}

#[test]
fn killed_at_random_moments_with_nftables() {
    at_random_moments(Way { firewall: "nftables", guard: "auto" });
}
