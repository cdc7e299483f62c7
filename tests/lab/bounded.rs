//! Waiting that always ends: every wait in the tests has a limit and says what it waited for.

use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// For what ought to happen at once: only a loaded machine makes it last.
pub const SHORT: Duration = Duration::from_secs(5);
/// For what includes the start of a process or several.
pub const LONG: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer; for what can only be asked, not awaited.
pub fn until<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        thread::sleep(PAUSE);
    }
}

/// Runs a program to its end, which it must reach within the limit.
pub fn output(command: &mut Command, limit: Duration) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel();
    let waiter = thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = done.send(());
        output
    });
    if finished.recv_timeout(limit).is_err() {
        super::process::kill(pid, nix::sys::signal::Signal::SIGKILL);
        panic!("{command:?} did not end within {limit:?}");
    }
    waiter.join().unwrap().unwrap()
}
