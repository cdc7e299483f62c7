//! Decides: what HAProxy says of its servers, and what of it a new generation has to be told: what an
//! operator set by hand, and what checks found out. Values only.
//!
//! Both live in the process alone, and a configuration need not say `load-server-state-from-file`, so
//! the difference is put into commands for the new process. Format: HAProxy management guide, "show
//! servers state" (version 1), whose second line names the columns.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Bits of `srv_admin_state` that come from the runtime API (`SRV_ADMF_FMAINT`, `SRV_ADMF_FDRAIN`).
pub const FORCED_MAINTENANCE: u32 = 0x01;
pub const FORCED_DRAIN: u32 = 0x08;
/// Set beside `FORCED_MAINTENANCE` for `disabled` in the configuration (`SRV_ADMF_CMAINT`).
pub const CONFIGURED_MAINTENANCE: u32 = 0x04;
/// Every bit that means maintenance or a drain.
const OUT_OF_USE: u32 = 0x3f;
/// `CHK_ST_CONFIGURED` and `CHK_ST_ENABLED`.
const CHECKED: u32 = 0x06;
/// Of all servers together.
const MOST: usize = 50_000;
/// Of their lines. HAProxy needs some 100 for each.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// `srv_op_state`, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    Down,
    /// Its checks ask for no new sessions.
    Stopping,
    #[default]
    Up,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    pub backend: String,
    pub name: String,
    number: u64,
    pub health: Health,
    /// Of its checks, and of its agent.
    check: u32,
    agent: u32,
    check_health: u32,
    pub admin: u32,
    /// The weight in force and the one of the configuration.
    pub weight: u32,
    configured_weight: u32,
    /// `-` where there is none.
    pub address: String,
    pub port: u32,
    /// The name that DNS resolves, and the SRV record; `-` where there is none.
    pub host: String,
    pub record: String,
    /// Nor is any other server of its backend in use.
    hopeless: bool,
}

/// Whether the configuration is another one than that of the process that knew the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    Unchanged,
    Changed,
}

/// All servers of an answer, read line by line.
#[derive(Clone, Debug, Default)]
pub struct Servers {
    columns: Vec<Option<usize>>,
    pub all: Vec<Server>,
    /// There were more than can be kept.
    pub left_out: usize,
    bytes: usize,
}

const COLUMNS: [&str; 15] = [
    "be_name",
    "srv_name",
    "srv_id",
    "srv_op_state",
    "srv_admin_state",
    "srv_uweight",
    "srv_iweight",
    "srv_addr",
    "srv_port",
    "srv_fqdn",
    "srvrecord",
    "srv_check_state",
    "srv_agent_state",
    "srv_check_health",
    HOPELESS,
];
/// Ours, in what is kept.
const HOPELESS: &str = "hopeless";
const HOPELESS_AT: usize = COLUMNS.len() - 1;

impl Servers {
    /// Adds what one line says.
    pub fn add(&mut self, line: &str) {
        if let Some(names) = line.strip_prefix("# ") {
            let at = |wanted: &&str| names.split_whitespace().position(|name| name == *wanted);
            self.columns = COLUMNS.iter().map(at).collect();
        } else if let Some(server) = server(line, &self.columns) {
            self.bytes += line.len();
            if self.all.len() < MOST && self.bytes < MOST_BYTES {
                self.all.push(server);
            } else {
                self.left_out += 1;
            }
        }
    }

    /// Who mends a check by which a whole backend is down wants it up at once: where nothing of a backend
    /// is in use, what checks found out is believed only as long as the configuration is the same.
    #[must_use]
    pub fn believed(mut self, since: Since) -> Self {
        self.note_the_hopeless();
        if since == Since::Changed {
            for server in self.all.iter_mut().filter(|server| server.hopeless) {
                if server.is_known_to_be_bad() {
                    server.health = Health::Up;
                }
            }
        }
        self
    }

    /// What was set by hand alone.
    #[must_use]
    pub fn without_checks(mut self) -> Self {
        for server in self.all.iter_mut().filter(|server| server.is_known_to_be_bad()) {
            server.health = Health::Up;
        }
        self
    }

    fn note_the_hopeless(&mut self) {
        let usable = self.all.iter().filter(|server| server.is_usable());
        let alive: HashSet<String> = usable.map(|server| server.backend.clone()).collect();
        for server in &mut self.all {
            // Of what was kept the good ones are not there.
            let kept = self.columns.get(HOPELESS_AT).is_some_and(Option::is_some);
            server.hopeless = if kept { server.hopeless } else { !alive.contains(&server.backend) };
        }
    }

    /// How many were set by hand.
    #[must_use]
    pub fn by_hand(&self) -> usize {
        self.all.iter().filter(|server| server.is_set_by_hand()).count()
    }

    fn by_name(&self) -> HashMap<(&str, &str), &Server> {
        self.all.iter().map(|server| (server.key(), server)).collect()
    }
}

impl Server {
    fn key(&self) -> (&str, &str) {
        (&self.backend, &self.name)
    }

    /// HAProxy may send it a new session.
    fn is_usable(&self) -> bool {
        self.health == Health::Up && self.admin & OUT_OF_USE == 0 && self.weight > 0
    }

    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    #[must_use]
    pub fn configured_weight(&self) -> u32 {
        self.configured_weight
    }

    /// What is written of its checks: `srv_op_state`, their health and state, and the agent's. One in
    /// maintenance is neither checked nor down.
    #[must_use]
    pub fn checks(&self) -> (u8, u32, u32, u32) {
        const PAUSED: u32 = 0x08;
        let health = if self.admin & OUT_OF_USE == 0 { self.health } else { Health::Up };
        (health.number(), self.check_health, self.check & !PAUSED & 0x0f, self.agent & 0x0f)
    }

    #[must_use]
    pub fn place(&self) -> (&str, u32) {
        (&self.address, self.port)
    }

    /// Set over the runtime API.
    fn is_set_by_hand(&self) -> bool {
        self.admin & (FORCED_DRAIN | FORCED_MAINTENANCE) != 0
            || self.weight != self.configured_weight
    }

    fn is_checked(&self) -> bool {
        self.check & CHECKED == CHECKED
    }

    fn has_agent(&self) -> bool {
        self.agent & CHECKED == CHECKED
    }

    /// By checks that go on, so that it comes up again by itself.
    #[must_use]
    pub fn is_known_to_be_bad(&self) -> bool {
        (self.is_checked() || self.has_agent())
            && self.health != Health::Up
            && self.admin & OUT_OF_USE == 0
    }

    /// The word of a command that makes another the same.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.health {
            Health::Stopping => "health stopping",
            _ if self.is_checked() && (self.check_health == 0 || !self.has_agent()) => {
                "health down"
            }
            _ => "agent down",
        }
    }
}

/// What is to be said to the new process, and what is not, with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarryOver {
    pub commands: Vec<String>,
    /// What was set by hand and is so from the birth of the new process on.
    pub already: Vec<String>,
    pub left: Vec<String>,
}

/// The commands that give the servers of the new process what those of the old one had.
#[must_use]
pub fn carry_over(old: &Servers, new: &Servers) -> CarryOver {
    let known = new.by_name();
    let mut carried = CarryOver::default();
    let mut backends: HashMap<&str, Backend<'_>> = HashMap::new();
    let mut order = Vec::new();
    for server in &old.all {
        let backend = backends.entry(&server.backend).or_insert_with(|| {
            order.push(&*server.backend);
            Backend::default()
        });
        backend.had_a_usable_one |= server.is_usable();
        if let Some(now) = known.get(&server.key()) {
            backend.pairs.push((server, now));
        }
    }
    for server in &new.all {
        if let Some(backend) = backends.get_mut(&*server.backend) {
            backend.now.push(server);
        }
    }
    for backend in order.iter().filter_map(|name| backends.get(name)) {
        backend.carry_over(&mut carried);
    }
    carried
}

#[derive(Debug, Default)]
struct Backend<'a> {
    /// In the old process.
    had_a_usable_one: bool,
    /// A server in the old process, and the same in the new one.
    pairs: Vec<(&'a Server, &'a Server)>,
    now: Vec<&'a Server>,
}

impl Backend<'_> {
    fn carry_over(&self, carried: &mut CarryOver) {
        let mut by_hand = Vec::new();
        let mut then: HashMap<&str, Server> =
            self.now.iter().map(|now| (&*now.name, (*now).clone())).collect();
        for (old, new) in &self.pairs {
            let Some(then) = then.get_mut(&*new.name) else { continue };
            if let Some(command) = found_out(old, new) {
                then.health = if new.health == Health::Up { old.health } else { Health::Up };
                carried.commands.push(command);
            }
        }
        let usable = then.values().any(Server::is_usable);
        for (old, new) in &self.pairs {
            let Some(then) = then.get_mut(&*new.name) else { continue };
            carried.already.extend(kept_by_hand(old, new));
            by_hand.extend(set_by_hand(old, new, then));
        }
        let left = usable && !then.values().any(Server::is_usable);
        if left && self.had_a_usable_one {
            let why = "the backend would be left without a server that is in use";
            carried
                .left
                .extend(by_hand.iter().map(|command| format!("not said: {command}: {why}")));
        } else {
            carried.commands.append(&mut by_hand);
        }
    }
}

/// What the checks of the old process found out, where those of the new one ask the same server.
fn found_out(old: &Server, new: &Server) -> Option<String> {
    let checks = |server: &Server| (server.is_checked(), server.has_agent());
    let same = old.place() == new.place() && checks(old) == checks(new);
    let worse = old.is_known_to_be_bad()
        && old.health != new.health
        && new.health != Health::Down
        && new.admin & OUT_OF_USE == 0;
    // Told at its birth, and nothing would bring it up again.
    if old.is_known_to_be_bad() && new.health != Health::Up && checks(new) == (false, false) {
        return Some(format!("set server {}/{} health up", old.backend, old.name));
    }
    (same && worse).then(|| format!("set server {}/{} {}", old.backend, old.name, old.verdict()))
}

/// By a drain or maintenance that no configuration can have.
fn kept_by_hand(old: &Server, new: &Server) -> Option<String> {
    let both = old.admin & new.admin;
    let state = if both & CONFIGURED_MAINTENANCE != 0 {
        return None;
    } else if both & FORCED_MAINTENANCE != 0 {
        "maint"
    } else if both & FORCED_DRAIN != 0 && new.configured_weight > 0 {
        "drain"
    } else {
        return None;
    };
    Some(format!("set server {}/{} state {state}", old.backend, old.name))
}

/// `then` becomes what the new one is once it is told.
fn set_by_hand(old: &Server, new: &Server, then: &mut Server) -> Vec<String> {
    let server = format!("{}/{}", old.backend, old.name);
    let mut commands = Vec::new();
    let gained = old.admin & !new.admin;
    // Drain first: maintenance is the stronger one and HAProxy keeps both bits.
    if gained & FORCED_DRAIN != 0 {
        commands.push(format!("set server {server} state drain"));
        then.admin |= FORCED_DRAIN;
    }
    if gained & FORCED_MAINTENANCE != 0 && old.admin & CONFIGURED_MAINTENANCE == 0 {
        commands.push(format!("set server {server} state maint"));
        then.admin |= FORCED_MAINTENANCE;
    }
    // A weight that the configuration changed is the operator's newer word.
    if old.weight != old.configured_weight
        && old.configured_weight == new.configured_weight
        && old.weight != new.weight
    {
        commands.push(format!("set server {server} weight {}", old.weight));
        then.weight = old.weight;
    }
    commands
}

/// The servers of a process when it began to serve, and where they were: what came later was set by
/// hand. Kept as hashes, for there may be many.
#[derive(Clone, Debug, Default)]
pub struct Born(HashMap<u64, u64>);

impl Born {
    #[must_use]
    pub fn with(servers: &Servers) -> Self {
        let one = |server: &Server| (hash(&server.key()), hash(&server.place()));
        Self(servers.all.iter().map(one).collect())
    }

    /// What was set by hand in the old process and is not in the new one, which no command brings back.
    #[must_use]
    pub fn lost(&self, old: &Servers, new: &Servers) -> Vec<String> {
        let now = new.by_name();
        let mut lost = Vec::new();
        for server in &old.all {
            let name = format!("{}/{}", server.backend, server.name);
            match (self.0.get(&hash(&server.key())), now.get(&server.key())) {
                (None, None) => lost.push(format!(
                    "server {name} ({}:{}) was added over the runtime API and is lost: add it \
                     again, or write it into the configuration",
                    server.address, server.port
                )),
                // One that DNS moves is moved again.
                (Some(born), Some(now))
                    if *born == hash(&now.place())
                        && *born != hash(&server.place())
                        && (&*server.host, &*server.record) == ("-", "-") =>
                {
                    lost.push(format!(
                        "server {name}: its address {}:{} was set over the runtime API and is \
                         lost: set it again, or write it into the configuration",
                        server.address, server.port
                    ));
                }
                _ => {}
            }
        }
        lost
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

const KEPT: &str = "# be_name srv_id srv_name srv_op_state srv_admin_state srv_uweight srv_iweight \
    srv_addr srv_port srv_check_state srv_agent_state srv_check_health srv_fqdn srvrecord \
    hopeless\n";

impl Health {
    /// As HAProxy writes it.
    fn number(self) -> u8 {
        match self {
            Self::Down => 0,
            Self::Up => 2,
            Self::Stopping => 3,
        }
    }
}

/// What has to be remembered of a state for the next process: the servers that were set by hand, are
/// known to be bad, or have an address from DNS. The rest changes by itself, such as the time since the
/// last change.
#[must_use]
pub fn worth_keeping(servers: &mut Servers) -> String {
    servers.note_the_hopeless();
    let mut kept = KEPT.to_owned();
    for server in &servers.all {
        let resolved = server.host != "-" || server.record != "-";
        if !(server.is_set_by_hand() || server.is_known_to_be_bad() || resolved) {
            continue;
        }
        let Server { backend, name, number, health, admin, weight, configured_weight, .. } = server;
        let Server { address, port, check, agent, check_health, host, record, .. } = server;
        let hopeless = u8::from(server.hopeless);
        let operation = health.number();
        // Into a `String` it cannot fail.
        let _ = writeln!(
            kept,
            "{backend} {number} {name} {operation} {admin} {weight} {configured_weight} {address} \
             {port} {check} {agent} {check_health} {host} {record} {hopeless}"
        );
    }
    kept
}

/// The numbers of the servers, by backend and name.
#[must_use]
pub fn numbers(servers: &Servers) -> HashMap<String, HashMap<String, u64>> {
    let mut all: HashMap<String, HashMap<String, u64>> = HashMap::new();
    for server in &servers.all {
        all.entry(server.backend.clone()).or_default().insert(server.name.clone(), server.number);
    }
    all
}

/// Every server of a state that has the columns which we need.
#[must_use]
pub fn servers(state: &str) -> Servers {
    let mut servers = Servers::default();
    state.lines().for_each(|line| servers.add(line));
    servers
}

fn server(line: &str, columns: &[Option<usize>]) -> Option<Server> {
    let values: Vec<&str> = line.split_whitespace().collect();
    let value = |at: usize| values.get((*columns.get(at)?)?).copied();
    let number = |at| value(at).and_then(|text| text.parse::<u32>().ok());
    let text = |at| value(at).unwrap_or("-").to_owned();
    Some(Server {
        backend: value(0)?.to_owned(),
        name: value(1)?.to_owned(),
        number: value(2)?.parse().ok()?,
        health: match value(3) {
            Some("0") => Health::Down,
            Some("3") => Health::Stopping,
            _ => Health::Up,
        },
        admin: number(4)?,
        weight: number(5)?,
        configured_weight: number(6)?,
        address: text(7),
        port: number(8).unwrap_or_default(),
        host: text(9),
        record: text(10),
        check: number(11).unwrap_or_default(),
        agent: number(12).unwrap_or_default(),
        check_health: number(13).unwrap_or_default(),
        hopeless: number(14) == Some(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_goes_by_changes_nothing_that_was_set_by_hand() {
        let at = |seconds: u32| {
            worth_keeping(&mut servers(&format!(
                "1\n# be_id be_name srv_id srv_name srv_admin_state srv_uweight srv_iweight \
                 srv_time_since_last_change\n3 web 1 a 8 1 1 {seconds}\n3 web 2 b 0 1 1 9\n"
            )))
        };
        assert_eq!(at(1), at(60));
        assert_eq!(servers(&at(1)).all.len(), 1);
    }

    fn state(all: &[(&str, u32, u32, u32)]) -> Servers {
        let mut text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
                        srv_uweight srv_iweight\n"
            .to_owned();
        for (name, admin, weight, configured) in all {
            let line = format!("3 web 1 {name} 192.0.2.1 2 {admin} {weight} {configured}\n");
            text.push_str(&line);
        }
        servers(&(text + "\n"))
    }

    #[test]
    fn what_an_operator_set_is_carried_over() {
        let old = state(&[("a", 8, 1, 1), ("b", 1, 1, 1), ("c", 0, 5, 10), ("d", 0, 1, 1)]);
        let new = state(&[("a", 0, 1, 1), ("b", 0, 1, 1), ("c", 0, 10, 10), ("d", 0, 1, 1)]);
        assert_eq!(
            carry_over(&old, &new).commands,
            [
                "set server web/a state drain",
                "set server web/b state maint",
                "set server web/c weight 5",
            ]
        );
    }

    #[test]
    fn only_what_was_set_by_hand_is_remembered_and_it_is_enough() {
        let old = state(&[("a", 8, 1, 1), ("b", 0, 1, 1), ("c", 0, 5, 10), ("d", 4, 1, 1)]);
        let new = state(&[("a", 0, 1, 1), ("b", 0, 1, 1), ("c", 0, 10, 10), ("d", 0, 1, 1)]);
        let kept = servers(&worth_keeping(&mut old.clone()));
        assert_eq!((old.all.len(), kept.all.len()), (4, 2));
        assert_eq!(carry_over(&kept, &new), carry_over(&old, &new));
        assert_eq!(carry_over(&kept, &new).commands.len(), 2);
    }

    #[test]
    fn servers_are_numbered_within_their_backend() {
        let numbers = numbers(&state(&[("a", 0, 1, 1)]));
        assert_eq!(numbers["web"]["a"], 1);
    }

    #[test]
    fn what_the_configuration_says_is_not_overruled() {
        // "b" was disabled in the configuration itself, for which HAProxy sets 0x01 and 0x04; "c" got a new weight there.
        let old = state(&[("b", 5, 1, 1), ("c", 0, 5, 10), ("gone", 8, 1, 1)]);
        let new = state(&[("b", 0, 1, 1), ("c", 0, 20, 20)]);
        assert_eq!(carry_over(&old, &new), CarryOver::default());
    }

    #[test]
    fn what_is_so_already_needs_no_command() {
        let same = state(&[("a", 9, 3, 1)]);
        let carried = carry_over(&same, &same);
        assert_eq!(carried.commands, Vec::<String>::new());
        assert_eq!(carried.already, ["set server web/a state maint"]);
    }
    /// Name, health, admin state, weight, address, port, checks, their health.
    type Shown<'a> = (&'a str, u32, u32, u32, &'a str, u32, u32, u32);

    fn shown(all: &[Shown<'_>]) -> Servers {
        let mut text = KEPT.to_owned();
        for (name, operation, admin, weight, address, port, check, health) in all {
            let line = format!(
                "web 1 {name} {operation} {admin} {weight} 1 {address} {port} {check} 0 {health} - - 0\n"
            );
            text.push_str(&line);
        }
        servers(&text)
    }

    #[test]
    fn what_checks_found_out_is_carried_over_to_the_same_server_with_the_same_check() {
        let old = shown(&[
            ("dead", 0, 0, 1, "192.0.2.1", 80, 6, 0),
            ("moved", 0, 0, 1, "192.0.2.2", 80, 6, 0),
            ("port", 0, 0, 1, "192.0.2.3", 80, 6, 0),
            ("unchecked", 0, 0, 1, "192.0.2.4", 80, 6, 0),
            ("leaving", 3, 0, 1, "192.0.2.5", 80, 6, 3),
            ("maint", 0, 1, 1, "192.0.2.6", 80, 14, 0),
            ("good", 2, 0, 1, "192.0.2.7", 80, 6, 3),
            ("hand", 0, 0, 1, "192.0.2.8", 80, 0, 0),
        ]);
        let new = shown(&[
            ("dead", 2, 0, 1, "192.0.2.1", 80, 6, 2),
            ("moved", 2, 0, 1, "192.0.2.22", 80, 6, 2),
            ("port", 2, 0, 1, "192.0.2.3", 81, 6, 2),
            ("unchecked", 2, 0, 1, "192.0.2.4", 80, 0, 2),
            ("leaving", 2, 0, 1, "192.0.2.5", 80, 6, 2),
            ("maint", 0, 1, 1, "192.0.2.6", 80, 14, 0),
            ("good", 2, 0, 1, "192.0.2.7", 80, 6, 2),
            ("hand", 2, 0, 1, "192.0.2.8", 80, 0, 0),
        ]);
        let expected =
            ["set server web/dead health down", "set server web/leaving health stopping"];
        assert_eq!(carry_over(&old, &new).commands, expected);
        assert_eq!(carry_over(&servers(&worth_keeping(&mut old.clone())), &new).commands, expected);
    }

    #[test]
    fn no_backend_is_left_without_a_server_by_half_of_what_was_set_by_hand() {
        let a = |admin, weight| ("a", 2, admin, weight, "192.0.2.1", 80, 0, 0);
        let added = ("added", 2, 0, 1, "192.0.2.2", 80, 0, 0);
        let new = shown(&[a(0, 1)]);
        for (drained, command) in [
            (a(8, 1), "set server web/a state drain"),
            (a(1, 1), "set server web/a state maint"),
            (a(0, 0), "set server web/a weight 0"),
        ] {
            let half = carry_over(&shown(&[drained, added]), &new);
            assert_eq!(half.commands, Vec::<String>::new());
            assert!(half.left[0].contains(command), "{half:?}");
            // The old process was so as well.
            assert_eq!(carry_over(&shown(&[drained]), &new).commands, [command]);
            assert_eq!(
                carry_over(&shown(&[drained, added]), &shown(&[a(0, 1), added])).left.len(),
                0
            );
        }
    }

    #[test]
    fn what_was_added_or_moved_by_hand_and_is_not_there_any_more_is_lost() {
        let at = |name, address| (name, 2, 0, 1, address, 80, 0, 0);
        let born = Born::with(&shown(&[at("a", "192.0.2.1"), at("b", "192.0.2.2"), at("c", "-")]));
        let old = shown(&[at("a", "192.0.2.9"), at("b", "192.0.2.2"), at("added", "192.0.2.3")]);
        let lost = born.lost(&old, &shown(&[at("a", "192.0.2.1")]));
        assert_eq!(lost.len(), 2, "{lost:?}");
        assert!(lost[0].contains("web/a: its address 192.0.2.9:80"), "{lost:?}");
        assert!(lost[1].contains("web/added (192.0.2.3:80) was added"), "{lost:?}");
        // What the configuration says now is the operator's newer word.
        assert!(
            born.lost(&old, &shown(&[at("a", "192.0.2.5"), at("added", "192.0.2.3")])).is_empty()
        );
    }
    #[test]
    fn a_backend_that_is_down_as_a_whole_is_believed_to_be_so_while_the_configuration_is_the_same()
    {
        let dead = ("dead", 0, 0, 1, "192.0.2.1", 80, 6, 0);
        let good = ("good", 2, 0, 1, "192.0.2.2", 80, 6, 3);
        let new = shown(&[("dead", 2, 0, 1, "192.0.2.1", 80, 6, 2), good]);
        for (old, since, commands) in [
            (shown(&[dead]), Since::Unchanged, 1),
            (shown(&[dead]), Since::Changed, 0),
            (shown(&[dead, good]), Since::Changed, 1),
        ] {
            let mut old = Servers { columns: servers("# be_name").columns, ..old };
            let kept = servers(&worth_keeping(&mut old)).believed(since);
            assert_eq!(carry_over(&kept, &new).commands.len(), commands, "{since:?}");
            assert_eq!(
                carry_over(&old.believed(since), &new).commands.len(),
                commands,
                "{since:?}"
            );
        }
    }

    #[test]
    fn one_that_is_not_checked_any_more_comes_up() {
        let old = shown(&[("a", 0, 0, 1, "192.0.2.1", 80, 6, 0)]);
        let new = shown(&[("a", 0, 0, 1, "192.0.2.1", 80, 0, 0)]);
        assert_eq!(carry_over(&old, &new).commands, ["set server web/a health up"]);
    }
}
