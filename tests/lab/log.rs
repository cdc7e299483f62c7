//! What a process says, line by line, as it says it.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

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
}

impl Log {
    pub fn follow(&self, stream: impl Read + Send + 'static) {
        let lines = Arc::clone(&self.lines);
        lines.0.lock().unwrap().open += 1;
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.0.lock().unwrap().lines.push(line);
                lines.1.notify_all();
            }
            lines.0.lock().unwrap().open -= 1;
            lines.1.notify_all();
        });
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
        find(&said).unwrap_or_else(|| panic!("no line with {words:?} came"))
    }

    pub fn wait_closed(&self) {
        let said = self.lines.0.lock().unwrap();
        let wait = self.lines.1.wait_timeout_while(said, SHORT, |said| said.open > 0).unwrap();
        drop(wait);
    }
}
