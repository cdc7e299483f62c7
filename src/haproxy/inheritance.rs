//! Decides: what a new process knows of its servers before it accepts its first connection: which are
//! known to be bad, drained or in maintenance. Values only.
//!
//! It shares its listeners with the old one and accepts from its first moment on, so a command over
//! the runtime API may come too late. What is loaded with `lua-load` runs before (`hlua_post_init`),
//! when every server has its address: one that is somewhere else by now is left alone. A process
//! without Lua is told by the runtime API alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::server_state::{FORCED_DRAIN, FORCED_MAINTENANCE, Health, Server, Servers};

/// What is done to a server: a method of HAProxy's `Server` class.
fn methods(server: &Server) -> Vec<&'static str> {
    let mut methods = Vec::new();
    if server.is_known_to_be_bad() {
        methods.push(match (server.health, server.verdict()) {
            (Health::Stopping, _) => "check_force_nolb",
            (_, "agent down") => "agent_force_down",
            _ => "check_force_down",
        });
    }
    let by_configuration = server.admin & super::server_state::CONFIGURED_MAINTENANCE != 0;
    if server.admin & FORCED_DRAIN != 0 {
        methods.push("set_drain");
    }
    if server.admin & FORCED_MAINTENANCE != 0 && !by_configuration {
        methods.push("set_maint");
    }
    methods
}

/// `None` where there is nothing to be known. A drain or maintenance is left out where it would leave
/// a backend without a server, as half of what was set by hand may.
#[must_use]
pub fn script(servers: &Servers) -> Option<String> {
    let mut backends: BTreeMap<&str, Vec<(&Server, Vec<&str>)>> = BTreeMap::new();
    for server in &servers.all {
        let methods = methods(server);
        if !methods.is_empty() {
            backends.entry(&server.backend).or_default().push((server, methods));
        }
    }
    if backends.is_empty() {
        return None;
    }
    let mut known = String::new();
    for (backend, servers) in backends {
        // Into a `String` it cannot fail.
        let _ = writeln!(known, "  [{}] = {{", word(backend));
        for (server, methods) in servers {
            let (address, port) = server.place();
            let place = word(&format!("{address}:{port}"));
            let methods: Vec<_> = methods.into_iter().map(word).collect();
            let _ = writeln!(
                known,
                "    [{}] = {{{place}, {}}},",
                word(&server.name),
                methods.join(", ")
            );
        }
        known.push_str("  },\n");
    }
    Some(format!("{ABOUT}local known = {{\n{known}}}\n{APPLY}"))
}

/// As Lua reads it. HAProxy's names have no other characters than these.
fn word(text: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || ".:_-".contains(*c) || *c == ' ';
    format!("\"{}\"", text.chars().filter(plain).collect::<String>())
}

const ABOUT: &str = "-- What hapilot tells this HAProxy of its servers before it accepts its first \
    connection:\n-- the place of each, and what the HAProxy before it knew.\n";

const APPLY: &str = r#"
local function apply()
  for name, servers in pairs(known) do
    local backend = core.backends[name]
    if backend then
      local others = false
      for server in pairs(backend.servers) do
        others = others or not servers[server]
      end
      for server, told in pairs(servers) do
        local found = backend.servers[server]
        if found and found:get_addr() == told[1] then
          for at = 2, #told do
            local method = told[at]
            if others or not string.find(method, "^set_") then
              found[method](found)
            end
          end
        end
      end
    end
  end
end

core.register_init(function() pcall(apply) end)
"#;

#[cfg(test)]
mod tests {
    use super::super::server_state::servers;
    use super::*;

    #[test]
    fn what_is_known_is_told_by_place_and_what_is_good_needs_no_word() {
        let state = "# be_name srv_name srv_id srv_op_state srv_admin_state srv_uweight srv_iweight \
                     srv_addr srv_port srv_check_state srv_agent_state srv_check_health\n\
                     web a 1 0 0 1 1 192.0.2.1 80 6 0 0\nweb b 2 2 8 1 1 192.0.2.2 80 6 0 3\n\
                     web c 3 2 0 1 1 192.0.2.3 80 6 0 3\nweb d 4 0 0 1 1 192.0.2.4 80 6 22 3\n\
                     web e 5 0 5 1 1 192.0.2.5 80 14 0 0\nweb f 6 3 1 1 1 192.0.2.6 80 6 0 3\n";
        let text = script(&servers(state)).unwrap();
        for line in [
            "    [\"a\"] = {\"192.0.2.1:80\", \"check_force_down\"},\n",
            "    [\"b\"] = {\"192.0.2.2:80\", \"set_drain\"},\n",
            "    [\"d\"] = {\"192.0.2.4:80\", \"agent_force_down\"},\n",
            "    [\"f\"] = {\"192.0.2.6:80\", \"set_maint\"},\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(!text.contains("[\"c\"]") && !text.contains("[\"e\"]"), "{text}");
        assert_eq!(script(&Servers::default()), None);
    }

    #[test]
    fn no_name_ends_a_word_of_lua() {
        assert_eq!(word("a\"]=os.exit()--\\\n"), "\"aos.exit--\"");
    }
}
