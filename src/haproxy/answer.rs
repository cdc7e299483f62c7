//! Decides: what an answer of the runtime API means. Values only.
//!
//! The protocol knows no status. With `set severity-output number` (management guide) HAProxy
//! writes `[N]: ` before what is a message and not a dump, N as syslog counts: 3 is an error.

/// To be put before a command, so that `Answer::read` can tell.
pub const PREFIX: &str = "set severity-output number;";
const ERROR: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As an operator would see it without our prefix.
    pub text: String,
    /// It is a refusal.
    pub refused: bool,
}

impl Answer {
    #[must_use]
    pub fn read(raw: &str) -> Self {
        let mut lines = Lines::default();
        let mut text = String::new();
        for line in raw.lines() {
            lines.read(line, |line| {
                text.push_str(line);
                text.push('\n');
            });
        }
        text.truncate(text.trim_end_matches('\n').len());
        Self { text, refused: lines.refused }
    }
}

/// The same line by line, for answers that may be long.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    /// So far.
    pub refused: bool,
    begun: bool,
    /// Lines that are shown only if another one follows.
    blank: usize,
}

impl Lines {
    /// `show` is told of what an operator would see.
    pub fn read(&mut self, line: &str, mut show: impl FnMut(&str)) {
        // The first blank line is the answer to our prefix.
        if !std::mem::replace(&mut self.begun, true) && line.is_empty() {
            return;
        }
        let (severity, words) = message(line).unwrap_or((u8::MAX, line));
        // Told as a mere help text.
        self.refused |= severity <= ERROR || (severity != u8::MAX && is_unknown(words));
        if words.is_empty() {
            self.blank += 1;
            return;
        }
        (0..std::mem::take(&mut self.blank)).for_each(|_| show(""));
        show(words);
    }
}

fn is_unknown(words: &str) -> bool {
    words.starts_with("Unknown command")
}

fn message(line: &str) -> Option<(u8, &str)> {
    let (number, words) = line.strip_prefix('[')?.split_once("]: ")?;
    let severity = number.parse().ok().filter(|severity| *severity < 8)?;
    Some((severity, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As HAProxy 2.6 and 3.0 answer.
    #[test]
    fn a_refusal_is_told_from_an_answer() {
        for (raw, text, refused) in [
            ("\n\n", "", false),
            ("\n[3]: No such server.\n\n", "No such server.", true),
            (
                "\n[6]: Unknown command: 'x', but maybe one of\n  y\n\n",
                "Unknown command: 'x', but maybe one of\n  y",
                true,
            ),
            (
                "\n[6]: The following commands are valid at this level:\n",
                "The following commands are valid at this level:",
                false,
            ),
            ("\n5 (initial 1)\n\n", "5 (initial 1)", false),
            ("\nName: HAProxy\nPid: 42\n\n", "Name: HAProxy\nPid: 42", false),
            ("", "", false),
        ] {
            let expected = Answer { text: text.to_owned(), refused };
            assert_eq!(Answer::read(raw), expected, "{raw:?}");
        }
    }
}
