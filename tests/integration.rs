//! What is promised, shown on the real binary in the lab: one file for each promise, one program for all
//! of them, which is linked once. `cargo nextest run --test integration reload::`
#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

mod bad_input;
mod cli;
mod crash;
mod crash_state;
mod defaults;
mod drift;
mod faults;
mod generations;
mod hints;
mod lab_itself;
mod metrics;
mod nonsense;
mod ownership;
mod pid1;
mod reload;
mod rights;
mod runtime;
mod servers;
mod sessions;
mod stop;
mod strangers;
mod stuck;
mod syslog;
mod takeover;
mod takeover_clumsy;
mod takeover_plain;
mod takeover_rungs;
mod transparent;
mod transports;
mod watch;

#[test]
fn every_file_is_part_of_a_program() {
    let manifest = include_str!("../Cargo.toml");
    let ours = include_str!("integration.rs");
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_named = ours.contains(&format!("\nmod {name};\n"))
            || manifest.contains(&format!("path = \"tests/{name}.rs\""))
            || manifest.contains(&format!("path = \"tests/{name}/main.rs\""));
        assert!(is_named || name == "README", "{} is never run", path.display());
    }
}
