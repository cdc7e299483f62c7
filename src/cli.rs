//! Acts: the command line. `haproxy::command_line` decides what the words mean; here each command
//! does what it says.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser, Subcommand};
use tracing::error;
use tracing::level_filters::LevelFilter;

use crate::control::client::Client;
use crate::control::protocol::{Answer, GenerationStatus, Request, SOCKET, Status};
use crate::handover::receipt::Verdict;
use crate::handover::takeover::plain::paused;
use crate::haproxy::command_line::{Files, Invocation, LAST_RESORT, Source, command, invocation};
use crate::haproxy::embedded;
use crate::haproxy::hint::hint;
use crate::host::preflight::{self, RUN_DIRECTORY};
use crate::host::sweep::Swept;
use crate::host::{Wanted, instance::Instance, plan_for, sweep};
use crate::logging;
use crate::operator::runtime;
use crate::operator::server::{self, Patterns, Wish};
use crate::operator::servers::Order;
use crate::operator::sessions;
use crate::printable::printable_lines;
use crate::process::descriptors;
use crate::process::last_resort;
use crate::process::memory;
use crate::process::program::Run;
use crate::settings::LogFormat;
use crate::supervisor::boot::{Asked, Refused, SOFTWARE, Survey, UNAVAILABLE, USAGE, supervise};
use crate::supervisor::deadlines::docker_must_grant;
use crate::supervisor::signals::Signals;

/// A question whose answer needs no HAProxy.
const QUICK: Duration = Duration::from_secs(5);
/// A configuration with many names to resolve takes its time.
const CHECK_LIMIT: Duration = Duration::from_mins(5);
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// How often `reload` says what it waits for. hapilot has the limits; HAProxy may need minutes, and
/// another reload may be under way.
const TELL_AGAIN: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "\
Without a command, with `run`, or with HAProxy's own arguments (`-f …`, `haproxy -f …`) hapilot
supervises HAProxy. `haproxy -v`, `-vv` and `-c` just run; any other program is executed in place.

Settings are environment variables: HAPROXY_PORTS, HAPROXY_PIDS, HAPROXY_CONFIG, HAPROXY_TRANSPARENT,
HAPROXY_INTERCEPT, HAPROXY_FIREWALL, HAPROXY_MARK, HAPROXY_TABLE, HAPROXY_STOP_DEADLINE,
HAPROXY_DRAIN_DEADLINE, HAPROXY_MAX_GENERATIONS, HAPROXY_ON_CRASH, HAPROXY_RELOAD_GUARD,
HAPROXY_LOG_FORMAT, HAPROXY_LOG_LEVEL, HAPROXY_METRICS, HAPROXY_SYSLOG, HAPROXY_TAKEOVER,
HAPROXY_TAKEOVER_SECRET_FILE, HAPROXY_WATCH; the README explains each.

Signals: HUP, USR2 reload; TERM, USR1 stop gracefully; INT, QUIT, a second TERM stop now;
TTOU, TTIN pause and resume accepting.

Exit status: 0 clean stop; 64 bad arguments or settings; 69 the host lacks something; 70 our own
bug, or the host could not be given back; 126, 127 haproxy not executable, not found; else
HAProxy's own, or 128 + signal.";

#[derive(Debug, Parser)]
#[command(
    name = "hapilot",
    about = "Supervises the stock HAProxy as PID 1 of its container",
    version,
    after_help = AFTER_HELP,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Own,
}

#[derive(Debug, Subcommand)]
enum Own {
    /// Supervise HAProxy (the default).
    Run {
        /// Arguments for HAProxy.
        #[arg(last = true)]
        haproxy: Vec<OsString>,
    },
    /// Check settings, host and configuration; changes nothing.
    Check {
        /// Arguments for HAProxy.
        #[arg(last = true)]
        haproxy: Vec<OsString>,
    },
    /// Print what would be changed on the host, as commands, and what undoes each.
    Plan,
    /// Show what the running hapilot does.
    Status {
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Again every second, until it is interrupted.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
    },
    /// Show the oldest sessions of every generation (why is an old one still there?), or end one.
    Sessions {
        /// One JSON list, with up to a thousand of each generation.
        #[arg(long)]
        json: bool,
        /// How many of each generation.
        #[arg(long, default_value_t = 20)]
        most: usize,
        /// End this one, by the id that is shown; the exit status is 1 if it is over already.
        #[arg(long, value_name = "ID", value_parser = sessions::Which::parse)]
        #[arg(conflicts_with_all = ["json", "most"])]
        end: Option<sessions::Which>,
    },
    /// Reload and wait until new connections meet the new configuration only; the exit status says
    /// whether it was taken.
    Reload {
        /// Print the receipt as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Stop gracefully and wait for the end.
    ///
    /// As with TERM and USR1, no new connection is taken, and sessions may finish within
    /// `HAPROXY_STOP_DEADLINE`. Whatever asks for a stop once more (`hapilot stop`, or a signal: TERM,
    /// USR1, INT, QUIT) cuts those that are left at once; INT and QUIT do so without a stop before
    /// them. Who interrupts this command only waits no longer: the stop goes on.
    Stop,
    /// Ask HAProxy over its runtime API; the exit status is 1 where it refuses.
    Runtime {
        /// Every generation that is alive, not only the one that serves; the status is 1 if any refuses
        /// or does not answer. One that drains takes one command at a time, without a payload.
        #[arg(long)]
        all: bool,
        /// A command of HAProxy's, such as `show stat`.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Let servers finish their sessions and get no new ones.
    Drain {
        #[command(flatten)]
        which: Which,
        /// Wait until they have no session any more, so long; then the status is 1.
        #[arg(long, value_name = "TIME", value_parser = length_of_time)]
        wait: Option<Duration>,
    },
    /// Let servers have new sessions again, after a drain or a maintenance.
    Enable {
        #[command(flatten)]
        which: Which,
    },
    /// Give servers a weight.
    Weight {
        #[command(flatten)]
        which: Which,
        /// 0 to 256.
        #[arg(value_parser = server::weight)]
        weight: u16,
    },
    /// Remove what dead instances left on this host.
    Sweep {
        /// Only print what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// What hapilot becomes when the stop deadline is over and it hangs.
    #[command(hide = true, name = LAST_RESORT)]
    LastResort {
        /// What is left of the deadline.
        milliseconds: u64,
    },
    /// Exit with 0 when HAProxy is being served, else with 1.
    Health,
    /// Print the versions of hapilot and of HAProxy.
    Version,
    /// Print this help.
    Help,
}

#[derive(Args, Debug)]
struct Which {
    /// Only show which servers are meant and what they would become.
    #[arg(long)]
    dry_run: bool,
    /// Shell patterns over backend/server; without a slash, that server in any backend.
    #[arg(required = true, value_name = "SERVER")]
    servers: Vec<String>,
}

#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let status = match invocation(&arguments) {
        Invocation::Supervise(haproxy) => run(&haproxy),
        Invocation::Own(words) => own(words),
        Invocation::Execute(argv) => execute(&argv),
    };
    ExitCode::from(status)
}

fn own(words: Vec<OsString>) -> u8 {
    let argv = std::iter::once(OsString::from("hapilot")).chain(words);
    let parsed = match Arguments::try_parse_from(argv) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version are "errors" that are not.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { 0 };
        }
    };
    let done = match parsed.command {
        Own::Run { haproxy } => return run(&haproxy),
        Own::Check { haproxy } => check(&haproxy),
        Own::Plan => plan(),
        Own::Status { json, watch: false } => status(json),
        Own::Status { watch: true, .. } => watch_status(),
        Own::Sessions { end: Some(which), .. } => end_session(&which),
        Own::Sessions { json, most, .. } => sessions(json, most),
        Own::Reload { json } => reload(json),
        Own::Stop => stop(),
        Own::Drain { which, wait } => servers(&which, Wish::Drain, wait),
        Own::Enable { which } => servers(&which, Wish::Ready, None),
        Own::Weight { which, weight } => servers(&which, Wish::Weight(weight), None),
        Own::Runtime { all, command } => runtime(all, &command.join(" ")),
        Own::Sweep { dry_run } => sweep(dry_run),
        Own::LastResort { milliseconds } => last_resort(Duration::from_millis(milliseconds)),
        Own::Health => health(),
        Own::Version => Ok(version()),
        Own::Help => help(),
    };
    done.unwrap_or_else(|failed| {
        complain(&failed.text);
        failed.status
    })
}

/// A line for people; a closed pipe is no reason to fail.
fn say(text: impl std::fmt::Display) {
    let text = text.to_string();
    let _ = writeln!(io::stdout(), "{}", printable_lines(&text));
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "hapilot: {}", printable_lines(text));
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self { status: UNAVAILABLE, text: format!("{error:#}") }
    }
}

fn run(haproxy: &[OsString]) -> u8 {
    descriptors::note_inherited();
    memory::keep_one_heap();
    let status = in_runtime(supervised(haproxy)).and_then(|status| status);
    status.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        SOFTWARE
    })
}

async fn supervised(haproxy: &[OsString]) -> Result<u8> {
    if let Err(error) = descriptors::raise() {
        complain(&format!("raise the limit of descriptors to what is allowed: {error}"));
    }
    // Before the look at the host, which takes a while: PID 1 never sees a signal for which it has
    // no handler (pid_namespaces(7)), so a stop that early would be lost.
    let signals = Signals::subscribe()?;
    let asked = Asked::read(haproxy).and_then(|asked| {
        let limits = asked.limits();
        last_resort::prepare(LAST_RESORT, limits.stop, limits.last_resort())?;
        Survey::take(asked)
    });
    let survey = match asked {
        Ok(survey) => survey,
        Err(refused) => {
            complain(&refused.text);
            return Ok(refused.status);
        }
    };
    let settings = &survey.asked.settings;
    let log = logging::start(settings.log_format, settings.log_level);
    let status = tokio::select! {
        status = supervise(survey, signals, log.clone()) => status,
        () = log.flush_when_possible() => SOFTWARE,
    };
    log.finish();
    Ok(status)
}

/// As in the deadlines of the environment, a number alone is seconds.
fn length_of_time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs);
    seconds.or_else(|_| humantime::parse_duration(text)).map_err(|error| {
        format!("{error}; expected seconds, or a number with a unit, for example 60s or 5m")
    })
}

/// One thread: see `supervisor::reaper` for why.
fn in_runtime<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, future))
}

fn execute(argv: &[OsString]) -> u8 {
    let Some((program, arguments)) = argv.split_first() else {
        return USAGE;
    };
    let error = Command::new(program).args(arguments).exec();
    let name = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        complain(&format!(
            "{name} is neither a command of hapilot nor a program: see hapilot help"
        ));
        return 127;
    }
    complain(&format!("execute {name}: {error}"));
    126
}

fn check(haproxy: &[OsString]) -> Result<u8, Refused> {
    let asked = Asked::read(haproxy)?;
    say("settings: good");
    for warning in &asked.warnings {
        say(format_args!("  warning: {warning}"));
    }
    let survey = Survey::take(asked)?;
    let build = &survey.installed.build;
    say(format_args!(
        "host: good (HAProxy {}, {})",
        build.version,
        survey.installed.path.display()
    ));
    say(format_args!(
        "transparent proxying: {}",
        if survey.transparent { survey.findings.facts.firewall() } else { "off".to_owned() }
    ));
    for warning in &survey.warnings {
        say(format_args!("  warning: {warning}"));
    }
    if let Some(told) = docker_must_grant(&survey.limits()) {
        say(format_args!("stop: {told}"));
    }
    let status = try_configuration(&survey)?;
    say(format_args!(
        "configuration: {}",
        if status == 0 {
            "good, as far as HAProxy can tell without starting"
        } else {
            "refused by HAProxy"
        }
    ));
    Ok(status)
}

/// `haproxy -c` with the operator's own arguments; HAProxy's words go where ours go.
fn try_configuration(survey: &Survey) -> Result<u8> {
    let mut scratch = None;
    let paths = match &survey.asked.source {
        Source::Paths(paths) => paths.clone(),
        Source::Embedded => {
            let directory = Scratch::make()?;
            let path = embedded::write(&directory.0, &survey.asked.settings.ports)?;
            scratch = Some(directory);
            vec![path]
        }
    };
    let binary = &survey.installed.path;
    let (first, others) = paths.split_first().context("find a configuration to try")?;
    let files = Files { fragment: first, configuration: others, last: None };
    let argv = command(binary, files, &survey.asked.arguments.rest, None);
    let run = Run::new(binary, CHECK_LIMIT).arguments(&argv[1..]).arguments(["-c"]);
    let ended = run.to_end().with_context(|| format!("check with {}", binary.display()))?;
    drop(scratch);
    let _ = io::stdout().write_all(&ended.output);
    repeat_with_hints(&String::from_utf8_lossy(&ended.words));
    if ended.cut {
        complain("HAProxy said more than is shown here");
    }
    // Never above 255.
    Ok(ended.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(SOFTWARE))
}

fn repeat_with_hints(words: &str) {
    let mut hinted = BTreeSet::new();
    for line in words.lines() {
        let _ = writeln!(io::stderr(), "{line}");
        if let Some(hint) = hint(line).filter(|hint| hinted.insert(*hint)) {
            complain(hint);
        }
    }
}

/// A directory of our own that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        // With `--read-only` only /run may be there to write to. PID 1 is PID 1 again next time.
        let since = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let name = format!("hapilot-check-{}-{since}", std::process::id());
        let temporary = std::env::temp_dir().join(&name);
        let path = [Path::new("/run").join(&name), temporary.clone()]
            .into_iter()
            .find(|path| std::fs::create_dir(path).is_ok());
        path.map(Self).with_context(|| format!("make {} or the same in /run", temporary.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn plan() -> Result<u8, Refused> {
    let survey = Survey::take(Asked::read(&[])?)?;
    for warning in &survey.warnings {
        complain(&format!("warning: {warning}"));
    }
    if !survey.transparent {
        say("# nothing: transparent proxying is off");
        return Ok(0);
    }
    let wanted = survey.asked.wanted();
    let facts = &survey.findings.facts;
    let plan = in_runtime(plan_for(Instance::new(0), &wanted, facts))??;
    say("# 00000000 stands for the name that the instance gets when it starts");
    say(plan);
    Ok(0)
}

fn client() -> Result<Client> {
    Client::connect(&Path::new(RUN_DIRECTORY).join(SOCKET))
}

fn unexpected(answer: &Answer) -> anyhow::Error {
    anyhow!("hapilot gave an answer to another question: {answer:?}")
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).context("write JSON")
}

fn ask_status() -> Result<Box<Status>> {
    match client()?.ask(&Request::Status, Some(QUICK))? {
        Answer::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

fn status(as_json: bool) -> Result<u8, Refused> {
    let status = ask_status()?;
    if as_json {
        say(json(&status)?);
    } else {
        say(status.to_string().trim_end());
    }
    Ok(0)
}

fn watch_status() -> Result<u8, Refused> {
    loop {
        let status = ask_status()?;
        // Home, then clear: without the blink of the other order.
        let text = status.to_string();
        let text = format!("\x1b[H\x1b[2J{}", printable_lines(text.trim_end()));
        let mut out = io::stdout();
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
            return Ok(0);
        }
        std::thread::sleep(WATCH_AGAIN);
    }
}

fn sessions(as_json: bool, most: usize) -> Result<u8, Refused> {
    match client()?.ask(&Request::Sessions, Some(QUICK))? {
        Answer::Sessions { generations } if as_json => say(json(&generations)?),
        Answer::Sessions { generations } => say(sessions::picture(&generations, most).trim_end()),
        other => return Err(unexpected(&other).into()),
    }
    Ok(0)
}

fn end_session(which: &sessions::Which) -> Result<u8, Refused> {
    let status = ask_status()?;
    let owner = status.generations.iter().find(|generation| generation.id == which.generation);
    let owner = owner.ok_or_else(|| Refused {
        status: 1,
        text: format!(
            "end session {which}: there is no generation {} now; hapilot sessions shows those that \
             there are",
            which.generation
        ),
    })?;
    let answer = runtime::one(&which.end(), owner, ask_inside);
    let answer = answer.with_context(|| format!("end session {which}"))?;
    if answer.refused {
        complain(&format!(
            "end session {which}: HAProxy says {:?}; hapilot sessions shows those that there are",
            answer.text
        ));
    } else {
        say(format_args!("ended {which}"));
    }
    Ok(u8::from(answer.refused))
}

/// For as long as hapilot lives and answers: it ends each reload within limits of its own.
fn await_reload() -> Result<Answer> {
    let mut client = client()?;
    client.send(&Request::Reload)?;
    let mut waited = Duration::ZERO;
    loop {
        if let Some(answer) = client.answer(Some(TELL_AGAIN))? {
            return Ok(answer);
        }
        waited += TELL_AGAIN;
        let status = ask_status().context(
            "ask what the reload waits for; it may still be taken, which `hapilot status` shows",
        )?;
        let generation = |one: &GenerationStatus| format!("generation {} is {}", one.id, one.state);
        let generations: Vec<_> = status.generations.iter().map(generation).collect();
        complain(&format!(
            "the reload is not over after {}: hapilot is {}, {}",
            humantime::format_duration(waited),
            status.state,
            generations.join(", ")
        ));
    }
}

fn reload(as_json: bool) -> Result<u8, Refused> {
    let receipt = match await_reload()? {
        Answer::Reload(receipt) => receipt,
        other => return Err(unexpected(&other).into()),
    };
    if as_json {
        say(json(&receipt)?);
    } else {
        say(format_args!("reload {receipt}"));
        for line in &receipt.haproxy {
            say(line);
        }
        for warning in &receipt.warnings {
            say(format_args!("warning: {warning}"));
        }
    }
    Ok(u8::from(receipt.verdict == Verdict::Refused))
}

fn stop() -> Result<u8, Refused> {
    let mut client = client()?;
    match client.ask(&Request::Stop, Some(QUICK))? {
        Answer::Stopping => client.wait_for_end()?,
        other => return Err(unexpected(&other).into()),
    }
    Ok(0)
}

/// Only hapilot has a way into one that drains.
fn ask_inside(generation: u32, command: &str) -> Result<String> {
    let words = command.to_owned();
    match client()?.ask(&Request::Runtime { generation, words }, Some(QUICK))? {
        Answer::Runtime { text } => Ok(text),
        other => Err(unexpected(&other)),
    }
}

fn runtime(all: bool, command: &str) -> Result<u8, Refused> {
    if !all {
        let mut complained = false;
        let refused = runtime::serving(command, |kind, line| match kind {
            runtime::Line::Answer => say(line),
            runtime::Line::Refusal if std::mem::replace(&mut complained, true) => {
                let _ = writeln!(io::stderr(), "{line}");
            }
            runtime::Line::Refusal => complain(line),
        })?;
        return Ok(u8::from(refused));
    }
    let told = runtime::all(command, &*ask_status()?, ask_inside);
    if !told.text.is_empty() {
        say(told.text);
    }
    Ok(u8::from(told.refused))
}

fn servers(which: &Which, wish: Wish, wait: Option<Duration>) -> Result<u8, Refused> {
    let refused = |text| Refused { status: USAGE, text };
    let order = Order { patterns: Patterns::parse(&which.servers).map_err(refused)?, wish };
    if which.dry_run {
        for server in order.look()? {
            let change = if wish.is_true_of(&server) { "already so" } else { &*wish.to_string() };
            say(format_args!("{server} -> {change}"));
        }
        return Ok(0);
    }
    let done = order.carry_out(ask_status)?;
    for server in &done.servers {
        say(server);
    }
    for text in &done.refused {
        complain(text);
    }
    let Some(limit) = wait.filter(|_| done.refused.is_empty()) else {
        return Ok(u8::from(!done.refused.is_empty()));
    };
    let busy = order.wait(limit)?;
    for server in &busy {
        complain(&format!("{server} are left after {}", humantime::format_duration(limit)));
    }
    Ok(u8::from(!busy.is_empty()))
}

fn health() -> Result<u8, Refused> {
    let asked = client().and_then(|mut client| client.ask(&Request::Health, Some(QUICK)));
    // Docker knows 0 and 1.
    match asked.map_err(|error| Refused { status: 1, text: format!("{error:#}") })? {
        Answer::Health { healthy, state } => {
            say(state);
            Ok(u8::from(!healthy))
        }
        other => Err(Refused { status: 1, text: unexpected(&other).to_string() }),
    }
}

fn sweep(dry_run: bool) -> Result<u8, Refused> {
    let findings = preflight::look(&Wanted::default());
    if !findings.facts.can_be_swept() {
        let text: Vec<_> = findings.transparent.iter().map(ToString::to_string).collect();
        return Err(Refused { status: UNAVAILABLE, text: text.join("\n  ") });
    }
    if dry_run {
        for undo in in_runtime(sweep::dry_run(&findings.facts, None))?? {
            say(undo);
        }
        return Ok(0);
    }
    let swept = in_runtime(sweep::sweep(&findings.facts, None))??;
    for warning in &swept.warnings {
        complain(&warning.to_string());
    }
    for undo in &swept.undone {
        say(undo);
    }
    match swept.instances.len() {
        0 => say("no dead instance has left anything"),
        1 => say("swept what a dead instance had left"),
        count => say(format_args!("swept what {count} dead instances had left")),
    }
    for failure in &swept.failures {
        complain(&failure.to_string());
    }
    Ok(if swept.failures.is_empty() { 0 } else { UNAVAILABLE })
}

/// We are the same process as before, without anything that it held.
fn last_resort(left: Duration) -> Result<u8, Refused> {
    last_resort::end_within(left)?;
    // Who reads our words may be what hung.
    let log = logging::start(LogFormat::Text, LevelFilter::INFO);
    error!("hapilot hung, and the stop deadline is over: ending HAProxy and giving the host back");
    last_resort::kill_children();
    // First, since it takes no program: HAProxy serves again even if there is no time for the rest.
    paused::resume(Path::new(RUN_DIRECTORY));
    let findings = preflight::look(&Wanted::default());
    let swept = if findings.facts.can_be_swept() {
        in_runtime(sweep::sweep(&findings.facts, None)).and_then(|swept| swept)
    } else {
        Ok(Swept::default())
    };
    match swept {
        Ok(swept) => swept.failures.iter().for_each(|failure| error!("{failure}")),
        Err(error) => error!("{error:#}; `hapilot sweep` tries again"),
    }
    log.finish();
    Ok(last_resort::STATUS)
}

fn version() -> u8 {
    say(format_args!("hapilot {}", env!("CARGO_PKG_VERSION")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    match crate::haproxy::installed::find(&path) {
        Ok(installed) => {
            say(format_args!("HAProxy {}, {}", installed.build.version, installed.path.display()));
        }
        Err(unusable) => say(format_args!("HAProxy: {}", unusable.problem)),
    }
    0
}

fn help() -> Result<u8, Refused> {
    use clap::CommandFactory;
    Arguments::command().print_help().context("print the help")?;
    Ok(0)
}
