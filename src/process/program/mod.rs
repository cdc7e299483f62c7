//! Acts: runs a program to its end, and no longer than it may take. Each program that hapilot runs is
//! run here, but for HAProxy when it is to serve (`haproxy::launch`), so nothing here can end that.
//!
//! A call blocks its thread. The program is a child of that thread, in a process group of its own, and
//! held by its pidfd. When the time is up, the pidfd and the group are killed: the group's number is
//! the leader's PID, and cannot be another's as long as nobody has waited for the leader. The reaper
//! waits for children of its own thread only (`__WNOTHREAD`), so it cannot take one from here.

mod pipes;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use self::pipes::Pipes;
use super::{birth, limits};
use crate::fault::{self, Point};

/// A program that gets less could not finish: starting it would only cost the others their time.
const SHORTEST: Duration = Duration::from_millis(5);
/// How long a child of the program may hold the output open after the program has ended.
const LINGER: Duration = Duration::from_secs(1);
/// A killed program that the kernel does not end is left to the reaper.
const DEATH: Duration = Duration::from_secs(1);
/// What a program may say, unless it is asked for more.
const MOST_OUTPUT: usize = 1024 * 1024;

/// What is to be run, and for how long at most.
#[derive(Debug)]
pub struct Run {
    program: OsString,
    arguments: Vec<OsString>,
    input: Vec<u8>,
    limit: Duration,
    most_output: usize,
}

/// It ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub output: Vec<u8>,
    /// What it said on stderr.
    pub words: Vec<u8>,
    /// It said more than it may: what is here is the beginning.
    pub cut: bool,
}

/// It did not end by itself.
#[derive(Debug)]
pub enum NotEnded {
    /// Nothing was run, because its time was up already.
    NoTime { program: String },
    /// Nothing was run.
    NotStarted { program: String, error: io::Error },
    /// It may or may not have done what it was told.
    Killed { program: String, how: String },
}

impl Run {
    #[must_use]
    pub fn new(program: impl Into<OsString>, limit: Duration) -> Self {
        let (program, arguments, input) = (program.into(), Vec::new(), Vec::new());
        Self { program, arguments, input, limit, most_output: MOST_OUTPUT }
    }

    #[must_use]
    pub fn arguments(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(words.into_iter().map(Into::into));
        self
    }

    /// What it reads from its standard input.
    #[must_use]
    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = text.into();
        self
    }

    /// Of each of its two outputs.
    #[must_use]
    pub fn most_output(mut self, bytes: usize) -> Self {
        self.most_output = bytes;
        self
    }

    pub fn to_end(self) -> Result<Ended, NotEnded> {
        let program = self.program.to_string_lossy().into_owned();
        if self.limit < SHORTEST {
            return Err(NotEnded::NoTime { program });
        }
        let until = Instant::now() + self.limit;
        let mut running = match self.start() {
            Ok(running) => running,
            Err(error) => return Err(NotEnded::NotStarted { program, error }),
        };
        let how = match running.follow(until) {
            Ok(Some(status)) if status.signal().is_some() => format!("was killed ({status})"),
            Ok(Some(status)) => {
                let Pipes { output, words, .. } = running.pipes;
                let cut = output.cut || words.cut;
                return Ok(Ended { status, output: output.taken, words: words.taken, cut });
            }
            Ok(None) => format!("was still running after {:?} and was killed", self.limit),
            Err(error) => format!("could not be watched ({error}) and was killed"),
        };
        Err(NotEnded::Killed { program, how })
    }

    fn start(&self) -> io::Result<Running> {
        let mut command = match fault::instead(Point::Program)? {
            None => command(&self.program, &self.arguments),
            Some([program, argument]) => command(program.as_ref(), &[argument.into()]),
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() });
        birth::of_program(&mut command);
        let mut child = command.spawn()?;
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // Nobody has waited for it, so this PID is still its own.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(errno.into());
            }
        };
        let pipes = Pipes::of(&mut child, &self.input, self.most_output);
        Ok(Running { child, pidfd, pipes })
    }
}

fn command(program: &OsStr, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

struct Running {
    child: Child,
    pidfd: OwnedFd,
    pipes: Pipes,
}

impl Running {
    /// Its status, or `None` if it had to be killed. Afterwards it is no more, unless the kernel
    /// keeps it.
    fn follow(&mut self, until: Instant) -> io::Result<Option<ExitStatus>> {
        let ended = self.await_end(until);
        if !matches!(ended, Ok(true)) || self.pipes.are_open() {
            self.kill();
        }
        let _ = wait_for(&self.pidfd, DEATH);
        let status = self.child.try_wait();
        if ended? { status } else { Ok(None) }
    }

    /// Whether it has ended by itself. Nobody has waited for it yet.
    fn await_end(&mut self, mut until: Instant) -> io::Result<bool> {
        let mut ended = false;
        loop {
            self.pipes.flow();
            if ended && !self.pipes.are_open() {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(ended);
            }
            let watched = Some(&self.pidfd).filter(|_| !ended);
            if self.pipes.wait(watched, left)? {
                ended = true;
                until = until.min(Instant::now() + LINGER);
            }
        }
    }

    /// With all that it started and that did not leave its group.
    fn kill(&self) {
        // Its end may have come first.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }
}

fn wait_for(pidfd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit))? > 0)
}

impl fmt::Display for NotEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTime { program } => write!(f, "no time is left to run {program}"),
            Self::NotStarted { program, error } => match limits::advice(error) {
                Some(advice) => write!(f, "run {program}: {error}; {advice}"),
                None => write!(f, "run {program}: {error}"),
            },
            Self::Killed { program, how } => write!(f, "{program} {how}"),
        }
    }
}

impl std::error::Error for NotEnded {}

/// Whether this came of a program that was killed: what it was to do may be done or not.
#[must_use]
pub fn was_killed(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(NotEnded::Killed { .. }))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::process::procfs::is_dead_in_stat;

    const SOON: Duration = Duration::from_secs(10);

    fn sh(script: &str) -> Run {
        Run::new("sh", SOON).arguments(["-c", script])
    }

    #[test]
    fn what_a_program_says_and_its_status_come_back() {
        let ended = sh("cat; echo oops >&2; exit 3").input("hello").to_end().unwrap();
        assert_eq!((ended.status.code(), ended.cut), (Some(3), false));
        assert_eq!((&*ended.output, &*ended.words), (&b"hello"[..], &b"oops\n"[..]));
    }

    #[test]
    fn more_than_a_pipe_holds_goes_in_and_out() {
        let much = vec![b'x'; 300_000];
        assert_eq!(Run::new("cat", SOON).input(much.clone()).to_end().unwrap().output, much);
        // It reads nothing of it.
        assert!(Run::new("true", SOON).input(much).to_end().unwrap().status.success());
    }

    #[test]
    fn what_is_beyond_the_bound_is_cut_and_said_to_be() {
        let ended = sh("yes | head -c 400000").most_output(100_000).to_end().unwrap();
        assert!(ended.status.success() && ended.cut);
        assert_eq!(ended.output.len(), 100_000);
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children_and_its_words_do_not_hold_us() {
        let begun = Instant::now();
        for script in ["sleep 987 & wait", "trap '' TERM; yes"] {
            let run = Run::new("sh", Duration::from_millis(300)).arguments(["-c", script]);
            let error = run.to_end().unwrap_err();
            assert!(matches!(error, NotEnded::Killed { .. }), "{error}");
            assert!(error.to_string().contains("still running after 300ms"), "{error}");
            assert!(was_killed(&error.into()));
        }
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_child_that_keeps_the_output_is_ended_and_the_answer_is_kept() {
        let ended = sh("echo done; sleep 987 & echo $! >&2").to_end().unwrap();
        assert_eq!(ended.output, b"done\n");
        let pid: u32 = String::from_utf8(ended.words).unwrap().trim().parse().unwrap();
        let until = Instant::now() + SOON;
        while fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !is_dead_in_stat(&stat))
        {
            assert!(Instant::now() < until, "it is still there");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_cannot_be_run_is_told() {
        let error = Run::new("no-such-program", SOON).to_end().unwrap_err();
        assert!(error.to_string().starts_with("run no-such-program: No such file"), "{error}");
        let error = Run::new("true", Duration::ZERO).to_end().unwrap_err();
        assert_eq!(error.to_string(), "no time is left to run true");
        let error = sh("kill -9 $$").to_end().unwrap_err();
        assert!(error.to_string().starts_with("sh was killed (signal: 9"), "{error}");
    }

    #[test]
    fn a_program_inherits_nothing_by_accident() {
        let open = File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
        let ended = sh("ls /proc/self/fd").to_end().unwrap();
        let shown = String::from_utf8(ended.output).unwrap();
        // The last one is of the look itself.
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    }
}
