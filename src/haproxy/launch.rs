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
use super::generation::GenerationId;
use crate::fault::{self, Point};
use crate::process::birth;
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
    /// HAProxy gets no other rights than those that it has a use for.
    pub needs: Needs,
    /// What the last HAProxy that was ready had of them; nought before.
    pub threads: usize,
}

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

    /// Removes the files of a generation that is gone.
    pub fn forget(&self, id: GenerationId) {
        for path in [self.runtime_socket(id), self.fragment(id)] {
            if let Err(error) = fault::at(Point::Forget).and_then(|()| fs::remove_file(&path))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "could not remove the file");
            }
        }
    }

    /// What an earlier hapilot saved may be long out of date: the first generation starts as the
    /// configuration says. A file of the operator's stays.
    pub fn forget_server_state(&self) {
        if let Some(StateFile::Ours(path)) = &self.state_file
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "could not remove the file");
        }
    }

    pub fn launch(
        &self,
        id: GenerationId,
        from: Option<&Path>,
        configuration: &[PathBuf],
    ) -> std::result::Result<Launched, NotLaunched> {
        let ours = |error| NotLaunched { exit: Exit::Code(70), error: explained(error) };
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
        let argv =
            command_line::command(&self.binary, &fragment, configuration, &self.arguments, from);
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

    /// HAProxy waits for its other threads for ever where it gets fewer than it wants (2.6 to 3.2), so
    /// one is not started that could not have as many as the last.
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
         \x20   stats maxconn 100\n"
    );
    // The first generation has none, and HAProxy warns of a file that is not there.
    if let Some(StateFile::Ours(path)) = state_file
        && path.exists()
    {
        let _ = writeln!(text, "    server-state-file {}", path.display());
    }
    text
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
    fn only_our_own_server_state_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state");
        let program = |state_file| Program {
            binary: PathBuf::from("haproxy"),
            version: String::new(),
            arguments: Vec::new(),
            configuration: Vec::new(),
            run_directory: directory.path().to_owned(),
            state_file: Some(state_file),
            needs: Needs::default(),
            threads: 0,
        };
        fs::write(&file, "1\n").unwrap();
        program(StateFile::Theirs(file.clone())).forget_server_state();
        assert!(file.exists());
        let ours = StateFile::Ours(file.clone());
        program(ours.clone()).forget_server_state();
        assert!(!file.exists());
        assert!(!fragment_text(GenerationId::FIRST, 3, Some(&ours)).contains("server-state-file"));
    }
}
