//! Acts: everything from the environment to the first generation, and from the last one to the
//! exit. Whatever is wrong is found, and told all at once, before anything is changed.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::FutureExt;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::deadlines;
use super::guarding::Policy;
use super::lifecycle::{CrashPolicy, Limits, StateName};
use super::orphan::{Orphan, generation_in, orphans};
use super::reaper::adopt_orphans;
use super::restart::{caller, forgetful, relieved};
use super::run::{Identity, Requests, Setting, run};
use super::signals::Signals;
use super::takeover::TakingOver;
use crate::control::door::{self, Door};
use crate::control::metrics::Metrics;
use crate::control::protocol::SOCKET;
use crate::control::scrape;
use crate::control::server::Server;
use crate::fault::{self, Point};
use crate::handover::takeover::choice::age;
use crate::handover::takeover::door::Door as SuccessorsDoor;
use crate::handover::takeover::find::Asker;
use crate::handover::takeover::marks;
use crate::handover::takeover::plain::paused;
use crate::handover::takeover::protocol::{Hello, Name, PROTOCOL};
use crate::haproxy::command_line::{HaproxyArguments, Source, source};
use crate::haproxy::configuration::{Configuration, closed_port};
use crate::haproxy::installed::{self, Installed};
use crate::haproxy::judge::{self, Judge};
use crate::haproxy::launch::{Lua, Program};
use crate::haproxy::version::Build;
use crate::haproxy::{configuration_files, embedded};
use crate::host::backend::Backend;
use crate::host::barrier::Site;
use crate::host::debts::Debts;
use crate::host::instance::Instance;
use crate::host::introduction::Admission;
use crate::host::orders::Orders;
use crate::host::preflight::{self, Findings, RUN_DIRECTORY};
use crate::host::secret::Secret;
use crate::host::surroundings::rules_by_mark;
use crate::host::sweep::{Swept, sweep};
use crate::host::{Host, Wanted};
use crate::listeners::keeper::{self, Keeper};
use crate::logging::Log;
use crate::problem::Problem;
use crate::process::panicked::Panicked;
use crate::process::rights::{Needs, keep_what_is_needed, lives_from_its_file};
use crate::process::together::both;
use crate::process::{descriptors, file, last_resort, procfs};
use crate::settings::{
    self, OnCrash, Predecessors, ReloadGuard, Settings, Takeover, Transparent, Warning,
};
use crate::syslog::socket::{Syslog, Territory};
use crate::syslog::udp;
use crate::watch::Watch;

pub const USAGE: u8 = 64;
pub const UNAVAILABLE: u8 = 69;
pub const SOFTWARE: u8 = 70;

/// A configuration with many names to resolve or large maps takes its time.
const READY_LIMIT: Duration = Duration::from_mins(5);
const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);
/// A program of a guard's takes some 10 ms, and later than this it would be no guard any more.
const GUARD_PROGRAM_LIMIT: Duration = Duration::from_secs(1);
/// Each guard has a tighter one of its own; this is for one that fails to say so.
const GUARD_LIMIT: Duration = Duration::from_secs(6);
/// What is left of a guard's 800 ms is for the predecessors, to listen again.
const ROOM_LIMIT: Duration = Duration::from_millis(700);
const GRACE: Duration = Duration::from_secs(5);
const MOST_CRASHES_IN_A_ROW: u32 = 10;

/// Why there is nothing to run, with the status to exit with.
#[derive(Debug)]
pub struct Refused {
    pub status: u8,
    pub text: String,
}

/// What was asked for: settings and HAProxy's arguments, without a look at the host.
#[derive(Debug)]
pub struct Asked {
    pub settings: Settings,
    pub warnings: Vec<Warning>,
    pub arguments: HaproxyArguments,
    pub source: Source,
}

/// What was asked for and what is there.
#[derive(Debug)]
pub struct Survey {
    pub asked: Asked,
    pub installed: Installed,
    pub findings: Findings,
    /// What must not keep us from running.
    pub warnings: Vec<Problem>,
    /// Those about the host, among them.
    pub host_warnings: Vec<Problem>,
    /// Whether the host is to be set up for transparent proxying.
    pub transparent: bool,
    /// Taken now: an address that somebody else has is found before anything is changed.
    pub metrics: Option<TcpListener>,
    /// The same.
    pub syslog: Option<UdpSocket>,
}

impl Asked {
    pub fn read(arguments: &[OsString]) -> Result<Self, Refused> {
        let variables = std::env::vars_os();
        let settings =
            Settings::from_variables(variables, configuration_files::usable, Secret::read);
        let arguments = HaproxyArguments::parse(arguments).and_then(readable_again);
        match (settings, arguments) {
            (Ok((settings, warnings)), Ok(arguments)) => {
                let source = source(&arguments, settings.config.as_deref(), Path::exists);
                Ok(Self { settings, warnings, arguments, source })
            }
            (settings, arguments) => {
                let mut text = settings.err().map(|m| m.to_string()).unwrap_or_default();
                for mistake in arguments.err().unwrap_or_default() {
                    let _ = write!(text, "\narguments for HAProxy: {mistake}");
                }
                Err(Refused { status: USAGE, text: text.trim_start().to_owned() })
            }
        }
    }

    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            firewall: self.settings.firewall,
            intercept: self.settings.intercept.clone(),
            mark: self.settings.mark,
            table: self.settings.table,
        }
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        let settings = &self.settings;
        Limits {
            ready: READY_LIMIT,
            hand_over: HAND_OVER_LIMIT,
            guard: GUARD_LIMIT,
            room: ROOM_LIMIT,
            stop: settings.stop_deadline,
            drain: settings.drain_deadline,
            grace: GRACE,
            max_generations: settings.max_generations,
            on_crash: match settings.on_crash {
                OnCrash::Restart => CrashPolicy::Restart { most_in_a_row: MOST_CRASHES_IN_A_ROW },
                OnCrash::Exit => CrashPolicy::Exit,
            },
        }
    }
}

impl Survey {
    /// Changes nothing. All that is wrong comes in one refusal.
    pub fn take(asked: Asked) -> Result<Self, Refused> {
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        // Its first start in a container is HAProxy's slowest.
        let (findings, found) =
            both(|| preflight::look(&asked.wanted()), || installed::find(&search_path));
        // A file that cannot be read is HAProxy's to complain about, in its own words.
        let configuration = match &asked.source {
            Source::Paths(paths) => {
                let oldest = Build::oldest();
                let build = found.as_ref().map_or(&oldest, |installed| &installed.build);
                let local_peer = asked.arguments.local_peer.as_deref();
                let reader = judge::reader(build, local_peer, &hostname());
                configuration_files::read(paths, asked.arguments.directory.as_deref(), &reader)
                    .unwrap_or_default()
            }
            Source::Embedded => Configuration::default(),
        };
        let needs_transparent = needs_transparent(&asked, &configuration);
        let lacking = &findings.transparent;
        let mut problems = findings.problems.clone();
        let wanted = asked.settings.transparent != Transparent::Off;
        let insisted = asked.settings.transparent == Transparent::On || needs_transparent.is_some();
        if wanted && insisted {
            problems.extend(lacking.iter().cloned());
        }
        let forced = matches!(asked.settings.reload_guard, ReloadGuard::Hold | ReloadGuard::Drop);
        if forced && !(wanted && insisted) {
            problems.extend(lacking.iter().cloned());
        }
        let pids = &asked.settings.pids;
        let metrics = asked.settings.metrics.and_then(|address| {
            let what = "Prometheus cannot be answered at HAPROXY_METRICS";
            free(what, address, pids, scrape::listen(address), &mut problems)
        });
        let syslog = asked.settings.syslog.and_then(|address| {
            let what = "syslog messages cannot be received at HAPROXY_SYSLOG";
            free(what, address, pids, udp::listen(address), &mut problems)
        });
        let status = match &found {
            Ok(_) => UNAVAILABLE,
            Err(unusable) => {
                problems.insert(0, unusable.problem.clone());
                unusable.status
            }
        };
        match found {
            Ok(installed) if problems.is_empty() => {
                let transparent = wanted && lacking.is_empty();
                let (warnings, host_warnings) = (Vec::new(), Vec::new());
                let mut survey = Self {
                    asked,
                    installed,
                    findings,
                    warnings,
                    host_warnings,
                    transparent,
                    metrics,
                    syslog,
                };
                survey.warn();
                Ok(survey)
            }
            _ => Err(refusal(status, &problems, needs_transparent.as_deref())),
        }
    }

    fn warn(&mut self) {
        let judge = self.judge();
        self.warnings = judge.judge().problems;
        if self.asked.source == Source::Embedded {
            let lowest = self.asked.settings.ports.iter().map(|port| port.number()).min();
            let closed =
                lowest.and_then(|port| closed_port("HAPROXY_PORTS", port, judge.open_from));
            self.warnings.extend(closed);
        }
        self.warnings.extend(deadlines::plan(&judge.read(), &self.limits()));
        if self.transparent {
            self.host_warnings = [self.findings.warnings.clone(), self.rules_by_mark()].concat();
            self.warnings.extend(self.host_warnings.iter().cloned());
            self.warnings.extend(deadlines::haste(&self.limits()));
        } else if self.asked.settings.transparent == Transparent::Auto {
            let because: Vec<_> = self.findings.transparent.iter().map(|p| &*p.what).collect();
            let mend: Vec<_> = self.findings.transparent.iter().map(|p| &*p.mend).collect();
            self.warnings.push(Problem::new(
                format!("transparent proxying is off: {}", because.join(", ")),
                format!("{}, or set HAPROXY_TRANSPARENT=off", mend.join(", ")),
            ));
        }
    }

    /// Rules of other programs that drop what transparent proxying needs, if that is used.
    fn rules_by_mark(&self) -> Vec<Problem> {
        let is_used =
            !self.asked.settings.intercept.is_empty() || !self.judge().read().usesrc.is_empty();
        let look = self.findings.facts.nftables && is_used;
        if look { rules_by_mark() } else { Vec::new() }
    }

    fn judge(&self) -> Judge {
        let arguments = &self.asked.arguments;
        let paths = match &self.asked.source {
            Source::Paths(paths) => paths.clone(),
            Source::Embedded => Vec::new(),
        };
        Judge {
            paths,
            directory: arguments.directory.clone(),
            build: self.installed.build.clone(),
            hostname: hostname(),
            local_peer: arguments.local_peer.clone(),
            maxconn: arguments.maxconn,
            descriptors: descriptor_limit(),
            own_descriptors: descriptors::most(),
            transparent: self.transparent,
            intercepts: !self.asked.settings.intercept.is_empty(),
            open_from: open_from(&self.installed.path),
            state_file: Path::new(RUN_DIRECTORY).join("server-state"),
        }
    }

    /// Where the configuration needs transparent proxying that is not to be set up.
    fn lacks_transparency(&self) -> Option<String> {
        if self.transparent {
            return None;
        }
        Some(self.judge().read().needs_the_host()?.to_string())
    }

    fn program(&self, configuration: Vec<PathBuf>) -> Program {
        let run_directory = PathBuf::from(RUN_DIRECTORY);
        Program {
            binary: self.installed.path.clone(),
            version: self.installed.build.version.to_string(),
            arguments: self.asked.arguments.rest.clone(),
            configuration,
            run_directory,
            // Each launch looks anew.
            state_file: None,
            questions: None,
            needs: self.needs(),
            threads: 0,
            lua: Lua::of(&self.installed.build),
        }
    }

    fn needs(&self) -> Needs {
        let configuration = self.judge().read();
        let enters = |capability: &String| capability == "cap_sys_admin";
        Needs {
            namespaces: configuration.namespace.is_some()
                || configuration.setcap.iter().any(enters),
            setuid: configuration.insecure_setuid_wanted.is_some(),
            // As PID 1 there is nobody to look into but HAProxy, whose connections are counted.
            look_into_others: self.findings.facts.pid_1,
            relieve: self.asked.settings.pids != Predecessors::None,
        }
    }

    fn policy(&self, instance: Instance, host: Option<&Host>) -> Policy {
        let (settings, facts) = (&self.asked.settings, &self.findings.facts);
        Policy {
            setting: settings.reload_guard,
            site: Site {
                instance,
                backend: facts.backend,
                families: facts.families.clone(),
                nftables: host.map(Host::nftables).unwrap_or_default(),
                debts: Debts::default(),
                limit: (settings.stop_deadline / 10).min(GUARD_PROGRAM_LIMIT),
            },
            ports: settings.ports.iter().map(|port| port.number()).collect(),
            intercept: settings.intercept.clone(),
        }
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.asked.limits()
    }
}

/// What is read anew at each reload must not be a pipe.
fn readable_again(arguments: HaproxyArguments) -> Result<HaproxyArguments, Vec<String>> {
    let directory = arguments.directory.as_deref().unwrap_or(Path::new(""));
    let mistake = |path: &PathBuf| {
        let why = configuration_files::readable_again(&directory.join(path)).err()?;
        Some(format!("-f {}: {why}", path.display()))
    };
    let mistakes: Vec<_> = arguments.files.iter().filter_map(mistake).collect();
    if mistakes.is_empty() { Ok(arguments) } else { Err(mistakes) }
}

/// `None` where the hapilot of this very container has the address, for a check may run beside it,
/// and where it may be the one's from whom we take over.
fn free<T>(
    what: &str,
    address: SocketAddr,
    pids: &Predecessors,
    bound: io::Result<T>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let error = match bound {
        Ok(bound) => return Some(bound),
        Err(error) => error,
    };
    let (why, mend) = if error.kind() == ErrorKind::AddrInUse {
        let control = Path::new(RUN_DIRECTORY).join(SOCKET);
        let ours = std::os::unix::net::UnixStream::connect(control).is_ok();
        if ours || *pids != Predecessors::None {
            return None;
        }
        let port = address.port();
        let mend = format!("see which with ss -lntup 'sport = :{port}', or take another port");
        ("another process listens there".to_owned(), mend)
    } else {
        let mend =
            "name an address of this host (127.0.0.1, ::1, 0.0.0.0, ::) and a port that is free";
        (error.to_string(), mend.to_owned())
    };
    problems.push(Problem::new(format!("{what}={address}: {why}"), mend));
    None
}

/// What cannot work without transparent proxying, if anything.
fn needs_transparent(asked: &Asked, configuration: &Configuration) -> Option<String> {
    if let Some(place) = configuration.needs_the_host() {
        return Some(format!(
            "the configuration needs transparent proxying: {place}; if something else sets it up, \
             HAPROXY_TRANSPARENT=off starts all the same"
        ));
    }
    let first = asked.settings.intercept.first()?;
    Some(format!(
        "HAPROXY_INTERCEPT={first} needs transparent proxying; without that setting it is not needed"
    ))
}

fn refusal(status: u8, problems: &[Problem], because: Option<&str>) -> Refused {
    let mut text = match problems.len() {
        1 => "cannot start, nothing was changed:".to_owned(),
        count => format!("cannot start for {count} reasons, nothing was changed:"),
    };
    for problem in problems {
        let _ = write!(text, "\n  {problem}");
    }
    if let Some(because) = because {
        let _ = write!(text, "\n({because})");
    }
    Refused { status, text }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The first port that HAProxy may bind whatever its rights are.
fn open_from(haproxy: &Path) -> u16 {
    let bind = CapabilitySet::NET_BIND_SERVICE;
    let has = capabilities(None).is_ok_and(|sets| sets.effective.contains(bind));
    if has || lives_from_its_file(haproxy) {
        return 0;
    }
    // Of our network namespace. Where it cannot be read HAProxy will say what is wrong.
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// `None` where HAProxy may have as many as it likes.
fn descriptor_limit() -> Option<u64> {
    let may_raise =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    if may_raise { None } else { getrlimit(Resource::Nofile).maximum }
}

/// Supervises until the end; the answer is the exit status.
pub async fn supervise(mut survey: Survey, signals: Signals, log: Log) -> u8 {
    if let Some(secret) = survey.asked.settings.secret.take() {
        secret.keep();
    }
    let Ok(ended) = AssertUnwindSafe(boot(survey, signals, log.clone())).catch_unwind().await
    else {
        // Outside the loop there is nothing that serves; what is in force is not known.
        error!(
            "hapilot failed, which is a bug; what it has on the host is swept by this process anew"
        );
        log.finish();
        last_resort::begin();
        return SOFTWARE;
    };
    match ended {
        Ok(status) => status,
        Err(error) => {
            error!("cannot start: {error:#}");
            if error.is::<Panicked>() { SOFTWARE } else { UNAVAILABLE }
        }
    }
}

async fn boot(mut survey: Survey, signals: Signals, log: Log) -> Result<u8> {
    close_what_was_inherited(&survey);
    if !survey.findings.facts.pid_1 {
        adopt_orphans().context("become a child subreaper")?;
    }
    let container = marks::container();
    let relieves_all = survey.asked.settings.pids == Predecessors::Auto;
    if let Some(why) = relieved(container.as_ref(), relieves_all).await {
        info!(
            "{why}: nothing was started. To serve here again, stop that one first; to go back \
             without losing a connection, start a new container of this image with \
             HAPROXY_PIDS=auto"
        );
        return Ok(0);
    }
    // Before there is another thread, or a child that would have more.
    keep_what_is_needed(survey.needs(), &survey.installed.path)?;
    make_run_directory(Path::new(RUN_DIRECTORY))?;
    let (asked, requests) = mpsc::unbounded_channel();
    let _control = Server::open(&Path::new(RUN_DIRECTORY).join(SOCKET), asked.clone())?;
    marks::remove(Path::new(RUN_DIRECTORY))?;
    let orphans = orphans(Path::new(RUN_DIRECTORY));
    remove_leftovers(Path::new(RUN_DIRECTORY), &orphans)?;
    paused::wake(Path::new(RUN_DIRECTORY)).await;
    let configuration = match &survey.asked.source {
        Source::Paths(paths) => paths.clone(),
        Source::Embedded => {
            vec![embedded::write(Path::new(RUN_DIRECTORY), &survey.asked.settings.ports)?]
        }
    };
    let program = survey.program(configuration);
    let watch = open_watch(&survey)?;
    let keeper = Keeper::open(&Path::new(RUN_DIRECTORY).join(keeper::SOCKET))?;
    let lease = Host::take_lease()?;
    let (sender, knocks) = mpsc::unbounded_channel();
    let hello = hello(&survey, lease.instance(), container.clone())?;
    let caller = caller(&hello.name);
    let lacks = survey.lacks_transparency();
    let successor = Asker { instance: lease.instance(), caller, age: age(&hello), lacks };
    let facts = Rc::new(RefCell::new(hello));
    let (admission, doubt) = admission(survey.asked.settings.takeover);
    survey.warnings.extend(doubt);
    let runtime_socket = Path::new(RUN_DIRECTORY).join(door::SOCKET);
    let (told, offer) = (Rc::clone(&facts), keeper.offer());
    let successors = SuccessorsDoor::open(&lease, told, offer, sender, runtime_socket, admission)?;
    announce(&survey, &program, &lease.instance().to_string(), container.as_ref());
    for orphan in &orphans {
        warn!("{}", orphan.problem(&survey.asked.settings.pids));
    }
    let intercept = &survey.asked.settings.intercept;
    let identity = Identity {
        instance: lease.instance().to_string(),
        haproxy_version: survey.installed.build.version.to_string(),
        intercepted_ports: intercept.iter().map(|intercept| intercept.from.number()).collect(),
        warnings: survey.host_warnings.iter().map(ToString::to_string).collect(),
    };
    let version = env!("CARGO_PKG_VERSION");
    let metrics = Metrics::new(version, &identity.haproxy_version, &identity.instance)?;
    match (survey.metrics.take(), survey.asked.settings.metrics) {
        (Some(listener), _) => scrape::serve(listener, asked)?,
        (None, Some(address)) => {
            tokio::task::spawn_local(scrape::serve_when_free(address, asked));
        }
        (None, None) => {}
    }
    let territory = if survey.findings.facts.pid_1 { Territory::Ours } else { Territory::Shared };
    let mut syslog = Syslog::new(territory);
    if let Some(address) = survey.asked.settings.syslog {
        syslog.receive(address, survey.syslog.take());
    }
    let door = Door::open(&Path::new(RUN_DIRECTORY).join(door::SOCKET))?;
    // From here on nothing fails: whatever is set up is taken down.
    let host = set_up_host(&survey, &lease).await?;
    let (judge, limits) = (survey.judge(), survey.limits());
    let policy = survey.policy(lease.instance(), host.as_ref());
    let (pids, facts_of_host) = (survey.asked.settings.pids.clone(), survey.findings.facts.clone());
    let taking_over = TakingOver::new(pids, successor, facts_of_host);
    let setting = Setting {
        program,
        judge,
        limits,
        host: Orders::of(host),
        keeper,
        policy,
        identity,
        metrics,
        log,
        door,
        syslog,
        watch,
        taking_over,
        facts,
    };
    let status = run(setting, Requests { signals, asked: requests, knocks }).await;
    successors.farewell().await;
    // Given back last: until here, what we had on the host was not an orphan's.
    drop(lease);
    info!(status, "ended");
    Ok(status)
}

/// Whom the door for a successor lets in, and what an operator should know of that.
fn admission(takeover: Takeover) -> (Admission, Option<Problem>) {
    if takeover == Takeover::Off {
        return (Admission::Closed, None);
    }
    let (admission, doubt) = Admission::here();
    let user = rustix::process::geteuid().as_raw();
    let problem = |error: anyhow::Error| {
        if admission == Admission::Shown {
            return Problem::new(
                format!(
                    "no successor may take over from this one as long as it cannot be seen here \
                     which has CAP_NET_ADMIN: {error:#}"
                ),
                "give this one and its successor the same HAPROXY_TAKEOVER_SECRET_FILE",
            );
        }
        Problem::new(
            format!(
                "every process of user {user} on this network may take over from this one, since \
                 CAP_NET_ADMIN cannot tell them apart here ({error:#})"
            ),
            "give this one and its successor the same HAPROXY_TAKEOVER_SECRET_FILE, or set \
             HAPROXY_TAKEOVER=off",
        )
    };
    (admission, doubt.map(problem))
}

fn open_watch(survey: &Survey) -> Result<Option<Watch>> {
    if survey.asked.settings.watch == settings::Watch::Off {
        return Ok(None);
    }
    if survey.asked.source == Source::Embedded {
        warn!("HAPROXY_WATCH=on has nothing to watch: no configuration was found");
        return Ok(None);
    }
    Watch::open(&survey.judge()).map(Some)
}

fn close_what_was_inherited(survey: &Survey) {
    let named = survey.judge().read().descriptors;
    for closed in descriptors::keep(|number| named.has(number)) {
        debug!(descriptor = closed.number, what = closed.what, "closed what was inherited");
    }
    for kept in descriptors::kept() {
        info!(descriptor = kept.number, what = kept.what, "kept what the configuration names");
    }
}

/// The age counts from after the lease was taken: whoever does not see our lease when it looks for
/// others is then older than we are, and we see it.
fn hello(survey: &Survey, instance: Instance, container: Option<String>) -> Result<Hello> {
    let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let started = Duration::try_from(since_boot).context("read the time since the boot")?;
    Ok(Hello {
        protocol: PROTOCOL,
        name: Name { instance: instance.to_string(), container },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        haproxy_version: survey.installed.build.version.to_string(),
        state: StateName::Starting.as_str().to_owned(),
        started: u64::try_from(started.as_nanos()).unwrap_or(u64::MAX),
        created: marks::created(),
        transparent: survey.transparent,
        relieves_all: survey.asked.settings.pids == Predecessors::Auto,
        lineage: marks::lineage(Path::new(RUN_DIRECTORY)),
    })
}

fn announce(survey: &Survey, program: &Program, instance: &str, container: Option<&String>) {
    let configuration: Vec<_> =
        program.configuration.iter().map(|path| path.display().to_string()).collect();
    info!(
        instance,
        version = env!("CARGO_PKG_VERSION"),
        haproxy = %survey.installed.build.version,
        configuration = configuration.join(" "),
        "hapilot"
    );
    if survey.asked.source == Source::Embedded {
        let ports: Vec<_> = survey.asked.settings.ports.iter().map(ToString::to_string).collect();
        info!(
            ports = ports.join(","),
            statistics = embedded::STATISTICS,
            "no configuration was found; serving the embedded page"
        );
    }
    if let Some(told) = deadlines::docker_must_grant(&survey.limits()) {
        info!("{told}");
    }
    if let Some(warning) = wrapper(survey.findings.facts.pid_1) {
        warn!("{warning}");
    }
    if let Some(warning) = forgetful(survey, container) {
        warn!("{warning}");
    }
    for note in &survey.asked.arguments.notes {
        warn!("{note}");
    }
    for warning in &survey.asked.warnings {
        warn!("{warning}");
    }
    for warning in &survey.warnings {
        warn!("{warning}");
    }
}

/// What a parent keeps from us.
fn swallows(parent: &str, is_first: bool) -> Option<Problem> {
    match parent {
        "tini" | "docker-init" | "dumb-init" => Some(Problem::new(
            format!("{parent} is above us and does not pass SIGTTOU and SIGTTIN on as they are"),
            "leave docker run --init away: hapilot does what it would do",
        )),
        "sh" | "bash" | "dash" | "ash" | "busybox" if is_first => Some(Problem::new(
            format!(
                "{parent} is the container's first process and passes no signal on: docker stop ends in \
                 a kill, with sessions cut and nothing torn down"
            ),
            "write exec before hapilot in that script, or leave the script away",
        )),
        _ => None,
    }
}

/// A process above us that an operator should know of.
fn wrapper(pid_1: bool) -> Option<Problem> {
    let parent = rustix::process::getppid().filter(|_| !pid_1);
    let above = parent.and_then(|pid| Some((pid, procfs::name(pid.as_raw_nonzero().get()).ok()?)));
    above.and_then(|(pid, name)| swallows(&name, pid.is_init()))
}

async fn set_up_host(survey: &Survey, lease: &crate::host::lease::Lease) -> Result<Option<Host>> {
    let facts = &survey.findings.facts;
    if !survey.transparent {
        // Also where we set up nothing ourselves: a dead one's interception still hurts.
        if facts.can_be_swept() {
            tell_of_sweep(&sweep(facts, Some(lease.instance())).await?);
        }
        return Ok(None);
    }
    let (swept, host) = Host::begin(lease.instance(), &survey.asked.wanted(), facts)
        .await
        .context("set up transparent proxying")?;
    tell_of_sweep(&swept);
    for warning in host.warnings() {
        warn!("{warning}");
    }
    info!(
        firewall = facts.firewall(),
        items = host.owned().len(),
        other = facts.backend.map(Backend::the_other_adds),
        "transparent proxying is set up"
    );
    Ok(Some(host))
}

pub(super) fn tell_of_sweep(swept: &Swept) {
    for warning in &swept.warnings {
        warn!("{warning}");
    }
    for instance in &swept.instances {
        warn!(%instance, "removed what a dead instance had left on the host");
    }
    for failure in &swept.failures {
        error!("{failure}");
    }
}

/// Ours alone: no other user may put a file or a link there.
fn make_run_directory(path: &Path) -> Result<()> {
    fault::at(Point::RunDirectory)
        .and_then(|()| file::private_directory(path))
        .with_context(|| format!("make {} a directory of our own", path.display()))
}

/// Not before the control socket is ours: until then they may be another hapilot's. Those of an
/// orphan stay: it can be relieved over its runtime socket.
fn remove_leftovers(path: &Path, orphans: &[Orphan]) -> Result<()> {
    let entries = fault::at(Point::Leftovers).and_then(|()| fs::read_dir(path));
    for entry in entries.with_context(|| format!("read {}", path.display()))? {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        let name = entry.file_name();
        let generation = generation_in(&name.to_string_lossy());
        let is_orphans = orphans.iter().any(|orphan| Some(orphan.generation) == generation);
        if name.as_bytes().starts_with(b"generation-") && !is_orphans {
            let file = entry.path();
            let removed =
                if file.is_dir() { fs::remove_dir_all(&file) } else { fs::remove_file(&file) };
            if let Err(error) = removed {
                warn!("remove {}: {error}", file.display());
            }
        }
    }
    Ok(())
}
