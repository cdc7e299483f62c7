//! Acts: the command line. `haproxy::command_line` decides what the words mean; here each command
//! does what it says.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};

use crate::control::client::Client;
use crate::control::protocol::{Answer, Request, SOCKET};
use crate::handover::receipt::Verdict;
use crate::haproxy::command_line::{Invocation, Source, command, invocation};
use crate::haproxy::embedded;
use crate::host::preflight::{self, RUN_DIRECTORY};
use crate::host::{Wanted, instance::Instance, plan_for, sweep};
use crate::logging;
use crate::supervisor::boot::{Asked, Refused, SOFTWARE, Survey, UNAVAILABLE, USAGE, supervise};
use crate::supervisor::signals::Signals;

/// A question whose answer needs no HAProxy.
const QUICK: Duration = Duration::from_secs(5);
/// Two reloads that are refused at the last moment, and some.
const RELOAD_LIMIT: Duration = Duration::from_mins(5);

const AFTER_HELP: &str = "\
Without a command, with `run`, or with HAProxy's own arguments (`-f …`, `haproxy -f …`) hapilot
supervises HAProxy. `haproxy -v`, `-vv` and `-c` just run; any other program is executed in place.

Settings are environment variables: HAPROXY_PORTS, HAPROXY_CONFIG, HAPROXY_TRANSPARENT,
HAPROXY_INTERCEPT, HAPROXY_FIREWALL, HAPROXY_MARK, HAPROXY_TABLE, HAPROXY_STOP_DEADLINE,
HAPROXY_DRAIN_DEADLINE, HAPROXY_MAX_GENERATIONS, HAPROXY_ON_CRASH, HAPROXY_RELOAD_GUARD,
HAPROXY_LOG_FORMAT, HAPROXY_LOG_LEVEL; the README explains each.

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
    },
    /// Reload and wait; the exit status says whether the reload was taken.
    Reload {
        /// Print the receipt as one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Stop gracefully and wait for the end.
    Stop,
    /// Remove what dead instances left on this host.
    Sweep {
        /// Only print what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Exit with 0 when HAProxy is being served, else with 1.
    Health,
    /// Print the versions of hapilot and of HAProxy.
    Version,
    /// Print this help.
    Help,
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
        Own::Status { json } => status(json),
        Own::Reload { json } => reload(json),
        Own::Stop => stop(),
        Own::Sweep { dry_run } => sweep(dry_run),
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
    let _ = writeln!(io::stdout(), "{text}");
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "hapilot: {text}");
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self { status: UNAVAILABLE, text: format!("{error:#}") }
    }
}

fn run(haproxy: &[OsString]) -> u8 {
    let status = in_runtime(supervised(haproxy)).and_then(|status| status);
    status.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        SOFTWARE
    })
}

async fn supervised(haproxy: &[OsString]) -> Result<u8> {
    // Before the look at the host, which takes a while: PID 1 never sees a signal for which it has
    // no handler (pid_namespaces(7)), so a stop that early would be lost.
    let signals = Signals::subscribe()?;
    let survey = match Asked::read(haproxy).and_then(Survey::take) {
        Ok(survey) => survey,
        Err(refused) => {
            complain(&refused.text);
            return Ok(refused.status);
        }
    };
    let settings = &survey.asked.settings;
    let log = logging::start(settings.log_format, settings.log_level);
    let status = tokio::select! {
        status = supervise(survey, signals) => status,
        () = log.flush_when_possible() => SOFTWARE,
    };
    log.finish();
    Ok(status)
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
    let argv = command(binary, first, others, &survey.asked.arguments.rest, None);
    let status = Command::new(binary)
        .args(&argv[1..])
        .arg("-c")
        .status()
        .with_context(|| format!("execute {}", binary.display()))?;
    drop(scratch);
    // Killed while it checked: nobody knows.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(SOFTWARE))
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

fn status(as_json: bool) -> Result<u8, Refused> {
    match client()?.ask(Request::Status, Some(QUICK))? {
        Answer::Status(status) if as_json => say(json(&status)?),
        Answer::Status(status) => say(status.to_string().trim_end()),
        other => return Err(unexpected(&other).into()),
    }
    Ok(0)
}

fn reload(as_json: bool) -> Result<u8, Refused> {
    let receipt = match client()?.ask(Request::Reload, Some(RELOAD_LIMIT))? {
        Answer::Reload(receipt) => receipt,
        other => return Err(unexpected(&other).into()),
    };
    if as_json {
        say(json(&receipt)?);
    } else {
        say(format_args!("reload {receipt}"));
        for warning in &receipt.warnings {
            say(format_args!("warning: {warning}"));
        }
        for line in &receipt.haproxy {
            say(line);
        }
    }
    Ok(u8::from(receipt.verdict == Verdict::Refused))
}

fn stop() -> Result<u8, Refused> {
    let mut client = client()?;
    match client.ask(Request::Stop, Some(QUICK))? {
        Answer::Stopping => client.wait_for_end()?,
        other => return Err(unexpected(&other).into()),
    }
    Ok(0)
}

fn health() -> Result<u8, Refused> {
    let asked = client().and_then(|mut client| client.ask(Request::Health, Some(QUICK)));
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
    if findings.facts.programs.is_empty() {
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
    for undo in &swept.undone {
        say(undo);
    }
    say(format_args!("swept what {} dead instances had left", swept.instances.len()));
    for failure in &swept.failures {
        complain(&failure.to_string());
    }
    Ok(if swept.failures.is_empty() { 0 } else { UNAVAILABLE })
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
