//! What is promised, shown on the real binary in the lab: one file for each promise, one program for all
//! of them, which is linked once. `cargo nextest run --test integration reload::`
#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod lab;

mod answers;
mod bad_input;
mod carried;
mod cli;
mod crash;
mod crash_state;
mod defaults;
mod door;
mod drift;
mod faults;
mod generations;
mod hints;
mod lab_itself;
mod limits;
mod master_worker;
mod metrics;
mod nonsense;
mod ownership;
mod panics;
mod pid1;
mod reload;
mod rights;
mod runtime;
mod servers;
mod sessions;
mod stock;
mod stop;
mod strangers;
mod stuck;
mod surroundings;
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

const MAP: &str = include_str!("../docs/architecture.md");

fn source(path: &str) -> std::path::PathBuf {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).join(path)
}

/// All of a folder's files, with what is in them.
fn files(folder: &std::path::Path) -> Vec<(std::path::PathBuf, String)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        if path.is_dir() {
            return files(&path);
        }
        vec![(path.clone(), std::fs::read_to_string(path).unwrap())]
    };
    entries.flat_map(read).collect()
}

#[test]
fn the_map_of_the_source_names_every_file_where_it_belongs() {
    let row = |line: &'static str| match line.split('|').collect::<Vec<_>>()[..] {
        [_, folder, _, decides, acts, _] => {
            Some((folder.trim().strip_prefix('`')?.strip_suffix('`')?, decides, acts))
        }
        _ => None,
    };
    let map: Vec<_> = MAP.lines().filter_map(row).collect();
    assert!(map.len() > 5, "{map:?}");
    for (folder, decides, acts) in map.iter().filter(|row| !row.1.contains("all of it")) {
        let folder = source(folder);
        for (path, text) in files(&folder) {
            let name = path.strip_prefix(&folder).unwrap().with_extension("");
            let name = name.to_str().unwrap().trim_end_matches("/mod");
            // What is deeper has a row of its own, or is its folder's business.
            if name == "mod" || name == "tests" || name.contains('/') {
                continue;
            }
            let has_row = map.iter().any(|row| source(row.0) == folder.join(name));
            let is_in = |column: &str| {
                column.contains(&format!("`{name}`")) || column.contains(&format!("`{name}/"))
            };
            let decided = text.starts_with("//! Decides") && is_in(decides);
            let acted = text.starts_with("//! Acts") && is_in(acts);
            let either = !text.starts_with("//! Decides") && !text.starts_with("//! Acts");
            let named = decided || acted || either && (is_in(decides) || is_in(acts));
            assert!(named || has_row, "{} has no place on the map", path.display());
        }
    }
}

#[test]
fn dependencies_point_the_way_that_the_map_says() {
    let line = MAP.lines().find_map(|l| l.strip_prefix("Dependencies point one way: ")).unwrap();
    let layers: Vec<Vec<_>> =
        line.split('←').map(|layer| layer.split('`').skip(1).step_by(2).collect()).collect();
    for (depth, layer) in layers.iter().enumerate() {
        for folder in layer.iter().filter(|folder| **folder != "cli") {
            for (path, text) in files(&source(folder)) {
                let above = layers[depth..].iter().flatten().filter(|other| *other != folder);
                for other in above {
                    let used = text.contains(&format!("crate::{other}::"));
                    assert!(!used, "{} uses {other}, which is not below it", path.display());
                }
            }
        }
    }
    let folders = std::fs::read_dir(source("")).unwrap().map(|entry| entry.unwrap());
    for folder in folders.filter(|entry| entry.path().is_dir()) {
        let name = folder.file_name();
        assert!(layers.iter().flatten().any(|one| **one == name), "{name:?} is in no layer");
    }
}

/// A file without its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

#[test]
fn programs_and_threads_are_started_in_one_place_each() {
    let command = "Command::new(";
    let starts = [
        // The bounded runner, the HAProxy that serves, and `execute`, which is in our own place.
        (command, &["process/program/mod.rs", "haproxy/launch.rs", "cli.rs"][..]),
        ("thread::spawn(", &[]),
        ("thread::Builder", &[]),
        ("::thread::{Builder", &["process/threads.rs"]),
        ("Builder::new().name(", &["process/threads.rs"]),
        ("scope.spawn(", &[]),
        ("spawn_blocking(", &[]),
        ("tokio::fs::", &[]),
        ("lookup_host(", &[]),
        ("iptables::IPTables", &[]),
    ];
    for (path, text) in files(&source("")) {
        let name = path.strip_prefix(source("")).unwrap().to_str().unwrap();
        for (words, places) in starts {
            let found = without_tests(&text).contains(words);
            assert!(!found || places.contains(&name), "{name} is not the place for {words}");
        }
    }
    let runner = std::fs::read_to_string(source("process/program/mod.rs")).unwrap();
    assert_eq!(without_tests(&runner).matches(command).count(), 1, "this test looks at nothing");
}
