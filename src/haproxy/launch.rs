//! Acts: starts a generation.
//!
//! The runtime socket of each generation is bound here and inherited by HAProxy (`fd@`), so it is
//! there before HAProxy is: whoever connects waits in our backlog until HAProxy answers or dies,
//! and nobody has to look for a file. Each generation has a path of its own, because `-x` needs the
//! old one's socket while the new one starts.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::pipe::{PipeFlags, pipe_with};

use super::command_line;
use super::command_line::Files;
use super::generation::GenerationId;
use super::inheritance::script;
use super::server_state::Servers;
use super::state_file::{Written, state_file};
use super::version::Build;
use crate::fault::{self, Point};
use crate::process::birth;
use crate::process::descriptors;
use crate::process::exit::Exit;
use crate::process::file::{self, Readers};
use crate::process::handle::Handle;
use crate::process::limits::explained;
use crate::process::private;
use crate::process::rights::{Needs, as_haproxy};
use crate::process::threads::ensure_room;

/// What is the same for every generation.
#[derive(Clone, Debug)]
pub struct Program {
    pub binary: PathBuf,
    pub version: String,
    /// HAProxy's arguments as the operator gave them, without those that we manage.
    pub arguments: Vec<OsString>,
    pub configuration: Vec<PathBuf>,
    pub run_directory: PathBuf,
    /// Where server state is kept for the next generation, if the configuration loads it.
    pub state_file: Option<StateFile>,
    /// `stats maxconn` of the configuration.
    pub questions: Option<u64>,
    /// HAProxy gets no other rights than those that it has a use for.
    pub needs: Needs,
    /// What the last HAProxy that was ready had of them; nought before.
    pub threads: usize,
    pub lua: Lua,
}

/// What this HAProxy does with `lua-load`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lua {
    /// It was built without.
    Missing,
    Loads,
    /// It warns where `tune.lua.bool-sample-conversion` was not set before (3.1 and newer).
    Asks,
}

impl Lua {
    #[must_use]
    pub fn of(build: &Build) -> Self {
        match build.has("LUA") {
            false => Self::Missing,
            true if build.version.at_least(3, 1) => Self::Asks,
            true => Self::Loads,
        }
    }
}

/// What a generation is to know from its first moment on.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub servers: &'a Servers,
    /// The files of its configuration.
    pub texts: &'a [String],
}

/// Descriptors that a reload takes beside those of the listeners: runtime sockets, the output, the
/// pipes of a guard's programs.
const FOR_A_RELOAD: usize = 32;
/// Threads and programs of hapilot's that may run while HAProxy starts: a look at the host, a guard.
const BESIDE: usize = 8;
/// What hapilot may ask at once: as much as it allows where the configuration says nothing.
pub const OWN_QUESTIONS: u64 = 100;

/// HAProxy's process, and the thread of ours that starts it.
const WITH_ITS_STARTER: usize = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateFile {
    /// Ours, named in our fragment.
    Ours(PathBuf),
    /// The configuration names one itself.
    Theirs(PathBuf),
}

impl StateFile {
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Ours(path) | Self::Theirs(path) => path,
        }
    }
}

#[derive(Debug)]
pub struct Launched {
    pub handle: Handle,
    pub runtime_socket: PathBuf,
    /// HAProxy's stdout and stderr.
    pub output: OwnedFd,
}

/// Why there is no process, as the exit that a shell would report for it.
#[derive(Debug)]
pub struct NotLaunched {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Program {
    #[must_use]
    pub fn runtime_socket(&self, id: GenerationId) -> PathBuf {
        self.run_directory.join(format!("generation-{id}.sock"))
    }

    fn fragment(&self, id: GenerationId) -> PathBuf {
        self.run_directory.join(format!("generation-{id}.cfg"))
    }

    /// Where a generation's configuration is kept as it was.
    #[must_use]
    pub fn copies(&self, id: GenerationId) -> PathBuf {
        self.run_directory.join(format!("generation-{id}.d"))
    }

    /// Behind the configuration, and what it loads: only where there is something to be known.
    fn last(&self, id: GenerationId) -> [PathBuf; 2] {
        ["last.cfg", "lua"].map(|end| self.run_directory.join(format!("generation-{id}.{end}")))
    }

    /// Removes the files of a generation that is gone.
    pub fn forget(&self, id: GenerationId) {
        let [last, lua] = self.last(id);
        for path in [self.runtime_socket(id), self.fragment(id), last, lua] {
            if let Err(error) = fault::at(Point::Forget).and_then(|()| fs::remove_file(&path))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "could not remove the file");
            }
        }
    }

    /// Writes the servers' state where the generation looks for it. What an earlier hapilot saved may be
    /// long out of date: a generation of which nothing is known starts as the configuration says. A
    /// file of the operator's stays then.
    fn write_server_state(&self, known: Known<'_>) -> Result<()> {
        let Some(place) = &self.state_file else { return Ok(()) };
        if known.servers.all.is_empty() {
            return match place {
                StateFile::Ours(path) => gone(fs::remove_file(path), path),
                StateFile::Theirs(_) => Ok(()),
            };
        }
        let mut written = Written::default();
        known.texts.iter().for_each(|text| written.add(text));
        let (path, state) = (place.path(), state_file(known.servers, &written));
        file::replace(path, state.as_bytes(), Readers::All)
            .with_context(|| format!("save the state of the servers to {}", path.display()))
    }

    /// The part of the configuration that comes last, if there is one.
    fn write_last(&self, id: GenerationId, known: Known<'_>) -> Result<Option<PathBuf>> {
        let [last, lua] = self.last(id);
        let write = |path: &Path, text: String| {
            let written = file::replace(path, text.as_bytes(), Readers::Owner);
            written.with_context(|| format!("write {}", path.display()))
        };
        let mut lines = self.questions.map(own_questions).unwrap_or_default();
        if let Some(script) = script(known.servers).filter(|_| self.lua != Lua::Missing) {
            write(&lua, script)?;
            lines.push_str(&load(&lua, self.lua, known.texts));
        }
        if lines.is_empty() {
            return Ok(None);
        }
        write(&last, format!("# hapilot's last part of generation {id}\nglobal\n{lines}"))?;
        Ok(Some(last))
    }

    /// Whether a reload finds room: threads beside what hapilot itself may run meanwhile, and a place for
    /// each listener a second time. Without that they would not be shared, which costs what a refusal
    /// does not. Where nobody serves, HAProxy is started all the same.
    pub fn ensure_room_for(&self, listeners: usize) -> std::result::Result<(), NotLaunched> {
        descriptors::ensure_room(listeners + FOR_A_RELOAD)
            .and_then(|()| ensure_room(self.threads + BESIDE))
            .context("make room for the HAProxy of a reload")
            .map_err(|error| NotLaunched { exit: Exit::Code(70), error: explained(error) })
    }

    pub fn launch(
        &self,
        id: GenerationId,
        from: Option<&Path>,
        configuration: &[PathBuf],
        known: Known<'_>,
    ) -> std::result::Result<Launched, NotLaunched> {
        let ours = |error| NotLaunched { exit: Exit::Code(70), error: explained(error) };
        // Without it the generation serves as well.
        if let Err(error) = self.write_server_state(known) {
            tracing::warn!(generation = id.number(), "the servers' state: {error:#}");
        }
        let last = self.write_last(id, known).unwrap_or_else(|error| {
            tracing::warn!(generation = id.number(), "what is known of the servers: {error:#}");
            None
        });
        let runtime_socket = self.runtime_socket(id);
        let listener = bind(&runtime_socket).map_err(ours)?;
        let fragment = self.fragment(id);
        let text = fragment_text(id, listener.as_raw_fd(), self.state_file.as_ref());
        fault::at(Point::Fragment)
            .and_then(|()| file::replace(&fragment, text.as_bytes(), Readers::Owner))
            .with_context(|| format!("write {}", fragment.display()))
            .map_err(ours)?;
        let (output, child_side) = pipe_with(PipeFlags::CLOEXEC)
            .context("make a pipe for HAProxy's output")
            .map_err(ours)?;
        let files = Files { fragment: &fragment, configuration, last: last.as_deref() };
        let argv = command_line::command(&self.binary, files, &self.arguments, from);
        let mut command = self.command(&argv, id, child_side).map_err(ours)?;
        birth::of_haproxy(&mut command, vec![listener.as_raw_fd()]);
        let child = fault::at(Point::Spawn)
            .and_then(|()| self.ensure_room())
            .and_then(|()| as_haproxy(self.needs, || command.spawn()));
        let mut child = child.map_err(|error| not_launched(&self.binary, error))?;
        let handle = Handle::open(&child).map_err(|error| {
            // Nobody could drain or stop it (no descriptor left, or a kernel without pidfd).
            let _ = child.kill().and_then(|()| child.wait());
            ours(error)
        })?;
        Ok(Launched { handle, runtime_socket, output })
    }

    /// One is not started that could not have as many threads as the last: see `starved`.
    fn ensure_room(&self) -> io::Result<()> {
        ensure_room(self.threads.max(WITH_ITS_STARTER))
    }

    fn command(&self, argv: &[OsString], id: GenerationId, output: OwnedFd) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command
            .args(&argv[1..])
            // The embedded page shows them.
            .env("HAPILOT_GENERATION", id.to_string())
            .env("HAPILOT_VERSION", env!("CARGO_PKG_VERSION"))
            .env("HAPILOT_HAPROXY_VERSION", &self.version)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share HAProxy's output")?)
            .stderr(output);
        Ok(command)
    }
}

fn fragment_text(id: GenerationId, runtime_fd: i32, state_file: Option<&StateFile>) -> String {
    let mut text = format!(
        "# hapilot's part of generation {id}: the runtime socket, inherited as descriptor\n\
         # {runtime_fd}. Everything else is in your own configuration.\n\
         global\n    stats socket fd@{runtime_fd} level admin expose-fd listeners\n\
         \x20   # All stats sockets share it; the default of 10 may be taken by somebody's idle ones.\n\
         \x20   stats maxconn {OWN_QUESTIONS}\n"
    );
    // The first generation has none, and HAProxy warns of a file that is not there.
    if let Some(StateFile::Ours(path)) = state_file
        && path.exists()
    {
        let _ = writeln!(text, "    server-state-file {}", path.display());
    }
    text
}

/// All runtime sockets share `stats maxconn`: clients that stay connected leave room for hapilot.
fn own_questions(configured: u64) -> String {
    /// HAProxy has 31 bits for it.
    const MOST: u64 = 1 << 30;
    format!("    stats maxconn {}\n", configured.min(MOST) + OWN_QUESTIONS)
}

/// What the servers are known to be before HAProxy accepts its first connection.
fn load(lua: &Path, does: Lua, texts: &[String]) -> String {
    let mut lines = String::new();
    if does == Lua::Asks && !texts.iter().any(|text| text.contains("lua-load")) {
        lines.push_str("    tune.lua.bool-sample-conversion normal\n");
    }
    // Into a `String` it cannot fail.
    let _ = writeln!(lines, "    lua-load {}", lua.display());
    lines
}

/// Not to be there is as good.
fn gone(removed: io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    // Left over from a hapilot that was killed in the same container.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove {}", path.display()));
    }
    let listener = fault::at(Point::RuntimeSocket).and_then(|()| private::listen(path));
    listener.with_context(|| format!("open runtime socket {}", path.display()))
}

fn not_launched(binary: &Path, error: io::Error) -> NotLaunched {
    let exit = Exit::Code(match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    });
    let error = anyhow::Error::new(error).context(format!("execute {}", binary.display()));
    NotLaunched { exit, error: explained(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_known_only_our_own_server_state_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state");
        let program = |state_file| Program {
            binary: PathBuf::from("haproxy"),
            version: String::new(),
            arguments: Vec::new(),
            configuration: Vec::new(),
            run_directory: directory.path().to_owned(),
            state_file: Some(state_file),
            questions: None,
            needs: Needs::default(),
            threads: 0,
            lua: Lua::Missing,
        };
        let nothing = Known { servers: &Servers::default(), texts: &[] };
        fs::write(&file, "1\n").unwrap();
        program(StateFile::Theirs(file.clone())).write_server_state(nothing).unwrap();
        assert!(file.exists());
        let ours = StateFile::Ours(file.clone());
        program(ours.clone()).write_server_state(nothing).unwrap();
        assert!(!file.exists());
        assert!(!fragment_text(GenerationId::FIRST, 3, Some(&ours)).contains("server-state-file"));
    }

    #[test]
    fn haproxy_is_told_how_to_convert_only_where_it_asks_and_nothing_else_is_loaded() {
        let lua = Path::new("/run/x.lua");
        let told = |does, text: &str| {
            load(lua, does, &[text.to_owned()]).contains("bool-sample-conversion")
        };
        assert!(told(Lua::Asks, "global\n"));
        assert!(!told(Lua::Asks, "global\n lua-load-per-thread x\n") && !told(Lua::Loads, ""));
    }
}
