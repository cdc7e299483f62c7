//! Acts: everything from the environment to the first generation, and from the last one to the
//! exit. Whatever is wrong is found, and told all at once, before anything is changed.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::guarding::Policy;
use super::lifecycle::{CrashPolicy, Limits};
use super::reaper::adopt_orphans;
use super::run::{Identity, Setting, run};
use super::signals::Signals;
use crate::control::protocol::SOCKET;
use crate::control::server::Server;
use crate::haproxy::command_line::{HaproxyArguments, Source, source};
use crate::haproxy::configuration::Configuration;
use crate::haproxy::installed::{self, Installed};
use crate::haproxy::judge::Judge;
use crate::haproxy::launch::Program;
use crate::haproxy::{configuration_files, embedded};
use crate::host::barrier::Site;
use crate::host::instance::Instance;
use crate::host::preflight::{self, Findings, RUN_DIRECTORY};
use crate::host::sweep::{Swept, sweep};
use crate::host::{Host, Wanted};
use crate::listeners::keeper::{self, Keeper};
use crate::problem::Problem;
use crate::process::procfs;
use crate::process::together::both;
use crate::settings::{OnCrash, ReloadGuard, Settings, Transparent, Warning};

pub const USAGE: u8 = 64;
pub const UNAVAILABLE: u8 = 69;
pub const SOFTWARE: u8 = 70;

/// A configuration with many names to resolve or large maps takes its time.
const READY_LIMIT: Duration = Duration::from_mins(5);
const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);
/// Each guard has a tighter one of its own; this is for one that fails to say so.
const GUARD_LIMIT: Duration = Duration::from_secs(6);
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
    /// Whether the host is to be set up for transparent proxying.
    pub transparent: bool,
}

impl Asked {
    pub fn read(arguments: &[OsString]) -> Result<Self, Refused> {
        let settings = Settings::from_variables(std::env::vars_os(), configuration_files::usable);
        let arguments = HaproxyArguments::parse(arguments);
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
            intercept: self.settings.intercept.clone(),
            mark: self.settings.mark,
            table: self.settings.table,
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
                configuration_files::read(paths, asked.arguments.directory.as_deref())
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
                let mut survey =
                    Self { asked, installed, findings, warnings: Vec::new(), transparent };
                survey.warn();
                Ok(survey)
            }
            _ => Err(refusal(status, &problems, needs_transparent.as_deref())),
        }
    }

    fn warn(&mut self) {
        self.warnings = self.judge().judge().problems;
        if self.transparent {
            self.warnings.extend(self.findings.warnings.iter().cloned());
        } else if self.asked.settings.transparent == Transparent::Auto {
            let because: Vec<_> = self.findings.transparent.iter().map(|p| &*p.what).collect();
            let mend: Vec<_> = self.findings.transparent.iter().map(|p| &*p.mend).collect();
            self.warnings.push(Problem::new(
                format!("transparent proxying is off: {}", because.join(", ")),
                format!("{}, or set HAPROXY_TRANSPARENT=off", mend.join(", ")),
            ));
        }
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
            version: self.installed.build.version.clone(),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            local_peer: arguments.local_peer.clone(),
            maxconn: arguments.maxconn,
            descriptors: descriptor_limit(),
            transparent: self.transparent,
            state_file: Path::new(RUN_DIRECTORY).join("server-state"),
        }
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
        }
    }

    fn policy(&self, instance: Instance) -> Policy {
        let (settings, facts) = (&self.asked.settings, &self.findings.facts);
        Policy {
            setting: settings.reload_guard,
            site: Site { instance, program: facts.program, families: facts.families.clone() },
            ports: settings.ports.iter().map(|port| port.number()).collect(),
            intercept: settings.intercept.clone(),
        }
    }

    fn limits(&self) -> Limits {
        let settings = &self.asked.settings;
        Limits {
            ready: READY_LIMIT,
            hand_over: HAND_OVER_LIMIT,
            guard: GUARD_LIMIT,
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

/// What cannot work without transparent proxying, if anything.
fn needs_transparent(asked: &Asked, configuration: &Configuration) -> Option<String> {
    if let Some(place) = configuration.transparent().next() {
        return Some(format!("the configuration needs transparent proxying: {place}"));
    }
    let first = asked.settings.intercept.first()?;
    Some(format!("HAPROXY_INTERCEPT={first} needs transparent proxying"))
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

/// `None` where HAProxy may have as many as it likes.
fn descriptor_limit() -> Option<u64> {
    let may_raise =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    if may_raise { None } else { getrlimit(Resource::Nofile).maximum }
}

/// Supervises until the end; the answer is the exit status.
pub async fn supervise(survey: Survey, signals: Signals) -> u8 {
    match boot(survey, signals).await {
        Ok(status) => status,
        Err(error) => {
            error!("cannot start: {error:#}");
            UNAVAILABLE
        }
    }
}

async fn boot(survey: Survey, signals: Signals) -> Result<u8> {
    if !survey.findings.facts.pid_1 {
        adopt_orphans().context("become a child subreaper")?;
    }
    make_run_directory(Path::new(RUN_DIRECTORY))?;
    let (asked, requests) = mpsc::unbounded_channel();
    let _control = Server::open(&Path::new(RUN_DIRECTORY).join(SOCKET), asked)?;
    remove_leftovers(Path::new(RUN_DIRECTORY))?;
    let configuration = match &survey.asked.source {
        Source::Paths(paths) => paths.clone(),
        Source::Embedded => {
            vec![embedded::write(Path::new(RUN_DIRECTORY), &survey.asked.settings.ports)?]
        }
    };
    let program = survey.program(configuration);
    let keeper = Keeper::open(&Path::new(RUN_DIRECTORY).join(keeper::SOCKET))?;
    let lease = Host::take_lease()?;
    announce(&survey, &program, &lease.instance().to_string());
    let host = set_up_host(&survey, &lease).await?;
    let identity = Identity {
        instance: lease.instance().to_string(),
        haproxy_version: survey.installed.build.version.to_string(),
        intercepted_ports: survey
            .asked
            .settings
            .intercept
            .iter()
            .map(|intercept| intercept.from.number())
            .collect(),
    };
    let (judge, limits) = (survey.judge(), survey.limits());
    let policy = survey.policy(lease.instance());
    let setting = Setting { program, judge, limits, host, keeper, policy, identity };
    let status = run(setting, signals, requests).await;
    // Given back last: until here, what we had on the host was not an orphan's.
    drop(lease);
    info!(status, "ended");
    Ok(status)
}

fn announce(survey: &Survey, program: &Program, instance: &str) {
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
    for warning in neighbours(survey.findings.facts.pid_1) {
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

/// Processes around us that an operator should know of.
fn neighbours(pid_1: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    let parent = parent.and_then(|pid| procfs::name(pid).ok()).unwrap_or_default();
    if !pid_1 && ["tini", "docker-init", "dumb-init"].contains(&parent.as_str()) {
        problems.push(Problem::new(
            format!("{parent} is above us and does not pass SIGTTOU and SIGTTIN on as they are"),
            "leave docker run --init away: hapilot does what it would do",
        ));
    }
    let of_a_generation = format!("{RUN_DIRECTORY}/generation-");
    for pid in procfs::with_argument(|word| word.starts_with(of_a_generation.as_bytes())) {
        problems.push(Problem::new(
            format!("HAProxy {pid} of a hapilot that was killed is still there and may be serving"),
            format!("end it with kill -USR1 {pid} once this one serves"),
        ));
    }
    problems
}

async fn set_up_host(survey: &Survey, lease: &crate::host::lease::Lease) -> Result<Option<Host>> {
    let facts = &survey.findings.facts;
    if !survey.transparent {
        // Also where we set up nothing ourselves: a dead one's interception still hurts.
        if !facts.programs.is_empty() {
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
        "transparent proxying is set up"
    );
    Ok(Some(host))
}

fn tell_of_sweep(swept: &Swept) {
    for instance in &swept.instances {
        warn!(%instance, "removed what a dead instance had left on the host");
    }
    for failure in &swept.failures {
        error!("{failure}");
    }
}

/// Ours alone, and without what a killed hapilot left in it.
fn make_run_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {}", path.display()));
        }
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("make {} private", path.display()))
}

/// Not before the control socket is ours: until then they may be another hapilot's.
fn remove_leftovers(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        if entry.file_name().as_bytes().starts_with(b"generation-") {
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
