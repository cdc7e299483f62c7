//! Promise: every recipe in `docker/examples/` does what its README says, as it is in the folder,
//! loses nobody in a reload, and leaves the host as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, and what it stands on, says so by panicking"
)]

mod compose;
mod example;
#[path = "../lab/mod.rs"]
mod lab;
mod names;
mod secure;
mod standin;
mod visitor;

mod canary;
mod cookies;
mod dns;
mod environment;
mod interception;
mod ipv6;
mod mail;
mod peers;
mod reencryption;
mod round_robin;
mod routing;
mod statistics;
mod threads;
mod tls;
mod transparent;

use std::fs;
use std::path::Path;

#[test]
fn every_folder_is_whole_and_has_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
    let declared = fs::read_to_string(tests.join("main.rs")).unwrap();
    let readme = fs::read_to_string(example::examples().join("README.md")).unwrap();
    for entry in fs::read_dir(example::examples()).unwrap().map(Result::unwrap) {
        if !entry.file_type().unwrap().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        for file in ["haproxy.cfg", "compose.yaml", "README.md"] {
            assert!(entry.path().join(file).is_file(), "{name} has no {file}");
        }
        assert!(
            readme.contains(&format!("]({name}/)")),
            "examples/README.md has no link to {name}"
        );
        let module = name.replace('-', "_");
        assert!(declared.contains(&format!("\nmod {module};\n")), "{name} has no test");
        let text = fs::read_to_string(tests.join(format!("{module}.rs"))).unwrap();
        let opens = ["open", "prepare"].map(|verb| format!("Example::{verb}(\"{name}\""));
        assert!(opens.iter().any(|open| text.contains(open)), "{module}.rs does not open {name}");
        assert!(text.contains("#[test]"), "{module}.rs has no test");
        let ends = [".end(", ".ended(", ".assert_same_as("];
        assert!(ends.iter().any(|end| text.contains(end)), "{module}.rs does not look at the host");
        let reloads = text.contains(".reload_under_load(") || text.contains("reload_between(");
        assert!(reloads, "{module}.rs does not reload");
    }
}
