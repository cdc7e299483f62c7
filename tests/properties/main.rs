//! Promise: nothing that others write makes hapilot fail, and what it writes itself it reads back.
//!
//! Bounded here; `scripts/fuzz` runs the same for as long as you like.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

mod netlink;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use hapilot::control::protocol::Request;
use hapilot::haproxy::configuration::Configuration;
use hapilot::haproxy::configuration::environment::Environment;
use hapilot::haproxy::configuration::reader::Reader;
use hapilot::haproxy::runtime_api::field;
use hapilot::haproxy::server_state::{carry_over, servers};
use hapilot::haproxy::version::Build;
use hapilot::host::saved::Saved;
use hapilot::listeners::wire::{Description, describe, descriptions};
use hapilot::process::procfs::{parent_in_stat, socket_inode};
use hapilot::settings::Settings;
use proptest::collection::vec;
use proptest::prelude::*;

fn read(text: &str) -> Configuration {
    let build = Build::oldest();
    let environment = Environment::new([("A", "a b")], &build.version, "me");
    Reader { build, environment }.read(&[("h.cfg".into(), text.to_owned())])
}

/// What configurations are made of, in any order: much nearer to the edges than plain noise.
fn configuration() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "(global|defaults|frontend|peers|timeout|bind|server|source|setcap|maxconn|user)",
        "(crt|crt-list|-f|errorfile|filter|config|map\\(|set-map\\(|\"\\$|\\$\\{|\\}|.if|.elif|.else|.endif)",
        "(setenv|presetenv|resetenv|unsetenv|A|defined\\(A\\)|!|&&|\\|\\||1|0|\"\\$A\"|log|no|unix@)",
        "(usesrc|transparent|namespace|tunnel|client|hard-stop-after|localpeer|peer|disabled)",
        "(:[0-9]{1,7}|\\[::\\]:80-90|[0-9]{1,21}(us|ms|s|m|h|d|x)?|\\$\\{A\\}|0.0.0.0)",
        "[\"'\\\\# \t]{1,3}",
        "\\PC{0,6}",
    ];
    vec((word, prop_oneof![Just(" "), Just("\n "), Just("\n"), Just("")]), 0..60)
        .prop_map(|words| words.into_iter().map(|(word, end)| word + end).collect())
}

fn name() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(prop_oneof![15 => "[a-z0-9é-]{1,12}", 1 => "[a-z0-9é-]{120}"])
}

fn state(rows: &[(u8, u8, u32, u32, u32)]) -> String {
    let head = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
                srv_uweight srv_iweight\n";
    let rows = rows.iter().map(|(backend, server, admin, weight, configured)| {
        format!("3 b{backend} 1 s{server} - 2 {admin} {weight} {configured}\n")
    });
    head.to_owned() + &rows.collect::<String>()
}

proptest! {
    #[test]
    fn descriptors_of_any_bytes_are_read_or_refused(bytes: Vec<u8>, count in 0..300_usize) {
        if let Ok(found) = descriptions(&bytes, count) {
            prop_assert_eq!(found.len(), count);
        }
    }

    #[test]
    fn descriptors_that_we_describe_are_understood(names in vec((name(), name()), 0..252)) {
        let all: Vec<_> = names
            .into_iter()
            .map(|(namespace, interface)| Description { namespace, interface })
            .collect();
        let bytes = describe(&all);
        prop_assert_eq!(descriptions(&bytes, all.len()), Ok(all.clone()));
        prop_assert!(descriptions(&bytes, all.len() + 1).is_err());
        if let Some(torn) = bytes.len().checked_sub(1) {
            prop_assert!(descriptions(&bytes[..torn], all.len()).is_err());
        }
    }

    #[test]
    fn a_process_is_found_whatever_its_name(name in "\\PC{0,20}", parent: i32, rest in "[ 0-9-]*") {
        let stat = format!("7 ({name}) S {parent} {rest}");
        prop_assert_eq!(parent_in_stat(&stat), Some(parent));
    }

    #[test]
    fn any_text_of_proc_is_read_or_not(text: String, inode: u64) {
        let _ = (parent_in_stat(&text), socket_inode(&text));
        prop_assert_eq!(socket_inode(&format!("socket:[{inode}]")), Some(inode));
    }

    #[test]
    fn any_configuration_is_read_and_every_place_is_in_it(text in configuration()) {
        let found = read(&text);
        let lines = text.lines().count();
        let usesrc = found.usesrc.iter().map(|usesrc| &usesrc.place);
        for place in usesrc.chain(&found.namespace).chain(&found.user) {
            prop_assert!((1..=lines).contains(&place.line), "{place} of {lines} lines");
        }
        for place in found.timeouts.iter().map(|timeout| &timeout.place) {
            prop_assert!((1..=lines).contains(&place.line), "{place} of {lines} lines");
        }
    }

    #[test]
    fn a_comment_says_nothing(text in configuration()) {
        let commented: String = text.lines().flat_map(|line| ["# ", line, "\n"]).collect();
        prop_assert_eq!(read(&commented), Configuration::default());
    }

    #[test]
    fn any_server_state_is_compared(old: String, new: String) {
        let (old, new) = (servers(&old), servers(&new));
        prop_assert_eq!(carry_over(&old, &old).commands, Vec::<String>::new());
        let _ = carry_over(&old, &new);
    }

    #[test]
    fn only_servers_that_both_have_are_told_anything(
        old in vec((0..3_u8, 0..3_u8, 0..64_u32, 0..9_u32, 0..9_u32), 0..9),
        new in vec((0..3_u8, 0..3_u8, 0..64_u32, 0..9_u32, 0..9_u32), 0..9),
    ) {
        let carried = carry_over(&servers(&state(&old)), &servers(&state(&new)));
        for command in carried.commands {
            let server = command.split(' ').nth(2).unwrap().to_owned();
            let there = |rows: &[(u8, u8, u32, u32, u32)]| {
                rows.iter().any(|row| format!("b{}/s{}", row.0, row.1) == server)
            };
            prop_assert!(there(&old) && there(&new), "{command}");
        }
    }

    #[test]
    fn settings_of_any_bytes_are_taken_or_all_named(
        values in vec((0..14_usize, vec(any::<u8>(), 0..24)), 0..14),
        texts in vec((0..14_usize, "[0-9:/x,.a-z \\[\\]-]{0,16}"), 0..14),
    ) {
        const NAMES: [&str; 14] = [
            "PORTS", "PIDS", "CONFIG", "TRANSPARENT", "INTERCEPT", "FIREWALL", "MARK", "TABLE",
            "RELOAD_GUARD", "STOP_DEADLINE", "DRAIN_DEADLINE", "MAX_GENERATIONS", "METRICS", "PORT",
        ];
        let texts = texts.into_iter().map(|(at, text)| (at, text.into_bytes()));
        let variables = values.into_iter().chain(texts).map(|(at, value)| {
            (OsString::from(format!("HAPROXY_{}", NAMES[at])), OsString::from_vec(value))
        });
        match Settings::from_variables(variables, |_| Ok(()), |_| Err(String::new())) {
            Ok((settings, _)) => prop_assert!(settings.max_generations >= 2),
            Err(mistakes) => prop_assert!(mistakes.to_string().contains("HAPROXY_")),
        }
    }

    #[test]
    fn a_request_of_any_text_is_one_or_is_refused(text: String) {
        if let Ok(request) = serde_json::from_str::<Request>(&text) {
            let again = serde_json::to_string(&request).unwrap();
            prop_assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), request);
        }
    }

    #[test]
    fn any_words_of_programs_are_read(text: String, lines in vec("(-A|:|\\*|#|COMMIT)[ -~]*", 0..9)) {
        let lines = lines.join("\n");
        for said in [&text, &lines] {
            let _ = (Saved::parse(said), Build::parse(said), field(said, "Pid"));
        }
    }
}
