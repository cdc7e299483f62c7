//! What a process says, line by line, as it says it.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::{LONG, SHORT};

/// Everything the instance said so far, as it says it.
#[derive(Clone, Debug, Default)]
pub struct Log {
    lines: Arc<(Mutex<Said>, Condvar)>,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    open: usize,
    /// Nobody reads on.
    held: bool,
}

impl Log {
    pub fn follow(&self, stream: impl Read + Send + 'static) {
        let lines = Arc::clone(&self.lines);
        lines.0.lock().unwrap().open += 1;
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let said = lines.0.lock().unwrap();
                lines.1.wait_while(said, |said| said.held).unwrap().lines.push(line);
                lines.1.notify_all();
            }
            lines.0.lock().unwrap().open -= 1;
            lines.1.notify_all();
        });
    }

    /// As a log driver that is stuck.
    pub fn hold(&self) {
        self.lines.0.lock().unwrap().held = true;
    }

    pub fn read_on(&self) {
        self.lines.0.lock().unwrap().held = false;
        self.lines.1.notify_all();
    }

    pub fn text(&self) -> String {
        let said = self.lines.0.lock().unwrap();
        said.lines.join("\n")
    }

    pub fn count(&self, words: &str) -> usize {
        self.text().lines().filter(|line| line.contains(words)).count()
    }

    /// Waits for a line with those words.
    pub fn await_line(&self, words: &str) -> String {
        let find = |said: &Said| said.lines.iter().find(|line| line.contains(words)).cloned();
        let said = self.lines.0.lock().unwrap();
        let wait = self.lines.1.wait_timeout_while(said, LONG, |said| find(said).is_none());
        let (said, _) = wait.unwrap();
        let found = find(&said);
        // a panic that holds the lock would take the log away from those who show it
        drop(said);
        found.unwrap_or_else(|| panic!("no line with {words:?} came"))
    }

    /// Waits for a line with one of those, or the end of all that it says.
    pub fn await_one_of(&self, words: &[&str], limit: Duration) -> Option<String> {
        let is_one = |line: &&String| words.iter().any(|words| line.contains(words));
        let find = |said: &Said| said.lines.iter().find(is_one).cloned();
        let said = self.lines.0.lock().unwrap();
        let goes_on = |said: &mut Said| said.open > 0 && find(said).is_none();
        let (said, _) = self.lines.1.wait_timeout_while(said, limit, goes_on).unwrap();
        find(&said)
    }

    pub fn is_closed(&self) -> bool {
        self.lines.0.lock().unwrap().open == 0
    }

    pub fn wait_closed(&self) {
        let said = self.lines.0.lock().unwrap();
        let wait = self.lines.1.wait_timeout_while(said, SHORT, |said| said.open > 0).unwrap();
        drop(wait);
    }
}
