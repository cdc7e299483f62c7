//! Decides: where HAProxy sees words in a line (configuration manual, 2.2 "Quoting and escaping",
//! 2.3 "Environment variables"; its source, `parse_line` and `env_expand`), with the values of
//! variables. Versions differ where a variable is not set; then the line is warned of anyway.

use std::iter::Peekable;
use std::str::Chars;

use super::environment::{Environment, UNKNOWN, Value};

/// What one line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) words: Vec<String>,
    /// Variables that are not set and for which the line has no other value.
    pub(super) unset: Vec<String>,
}

/// The words of one line, quotes and escapes resolved, without the comment. `None` where HAProxy
/// refuses the line.
pub(super) fn read(line: &str, environment: &Environment) -> Option<Read> {
    let mut reading = Reading { environment, read: Read::default(), word: None, quote: None };
    reading.all(&mut line.chars().peekable())?;
    (reading.quote.is_none()).then_some(())?;
    reading.end_word();
    Some(reading.read)
}

/// As `read`, where variables mean nothing.
pub(super) fn words(line: &str) -> Vec<String> {
    read(line, &Environment::default()).unwrap_or_default().words
}

struct Reading<'a> {
    environment: &'a Environment,
    read: Read,
    word: Option<String>,
    quote: Option<char>,
}

impl Reading<'_> {
    fn all(&mut self, chars: &mut Peekable<Chars<'_>>) -> Option<()> {
        while let Some(next) = chars.next() {
            match (next, self.quote) {
                (UNKNOWN, _) => return None,
                ('\n' | '\r', _) | ('#', None) => return Some(()),
                ('"' | '\'', None) => {
                    self.quote = Some(next);
                    // An empty word is one, unless a variable that is not set left it empty.
                    if chars.peek() != Some(&'$') || next == '\'' {
                        self.push("");
                    }
                }
                (end, Some(begin)) if end == begin => self.quote = None,
                ('\\', None | Some('"')) => {
                    let meant = escape(chars, self.quote)?;
                    self.push(meant.encode_utf8(&mut [0; 4]));
                }
                (' ' | '\t' | '\x0b' | '\x0c', None) => self.end_word(),
                ('$', Some('"')) => self.variable(chars)?,
                (other, _) => self.push(other.encode_utf8(&mut [0; 4])),
            }
        }
        Some(())
    }

    fn push(&mut self, text: &str) {
        self.word.get_or_insert_default().push_str(text);
    }

    fn end_word(&mut self) {
        self.read.words.extend(self.word.take());
    }

    /// `$NAME`, `${NAME}`, `${NAME[*]}` or `${NAME-instead}`.
    fn variable(&mut self, chars: &mut Peekable<Chars<'_>>) -> Option<()> {
        let braced = chars.next_if_eq(&'{').is_some();
        let mut name: String = chars.next_if_eq(&'.').into_iter().collect();
        let mut first = true;
        while let Some(letter) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            if first && name.is_empty() && letter.is_ascii_digit() {
                return None;
            }
            first = false;
            name.push(letter);
        }
        if first {
            return None;
        }
        let mut expands = false;
        let mut instead = None;
        if braced {
            if chars.next_if_eq(&'[').is_some() {
                expands = (chars.next()? == '*' && chars.next()? == ']').then_some(true)?;
            }
            match chars.next()? {
                '}' => {}
                '-' => {
                    let mut text = String::new();
                    loop {
                        match chars.next()? {
                            '}' => break,
                            other => text.push(other),
                        }
                    }
                    instead = Some(text);
                }
                _ => return None,
            }
        }
        self.put(&name, instead, expands);
        Some(())
    }

    fn put(&mut self, name: &str, instead: Option<String>, expands: bool) {
        let value = match self.environment.value(name) {
            // `.LINE`, `.FILE` and `.SECTION`.
            _ if name.starts_with('.') => UNKNOWN.to_string(),
            Value::Is(value) => value.clone(),
            Value::Something | Value::Perhaps => UNKNOWN.to_string(),
            Value::Unset => match instead {
                Some(instead) => instead,
                None if expands => return,
                None => return self.read.unset.push(name.to_owned()),
            },
        };
        if !expands {
            return self.push(&value);
        }
        for letter in value.chars() {
            if letter.is_ascii_whitespace() {
                self.end_word();
            } else {
                self.push(letter.encode_utf8(&mut [0; 4]));
            }
        }
    }
}

/// A backslash that escapes nothing stands for itself.
fn escape(chars: &mut Peekable<Chars<'_>>, quote: Option<char>) -> Option<char> {
    let meant = match chars.peek() {
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some(same @ (' ' | '\\' | '#' | '\'' | '"')) => *same,
        Some('$') if quote.is_some() => '$',
        Some('x') => return hexadecimal(chars),
        _ => return Some('\\'),
    };
    chars.next();
    Some(meant)
}

/// `None` where HAProxy refuses the line.
fn hexadecimal(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    chars.next();
    let (high, low) = (chars.next()?.to_digit(16)?, chars.next()?.to_digit(16)?);
    char::from_u32(high * 16 + low)
}

/// An address, in which HAProxy puts in values of variables without quotes as well; and the
/// variables that are not set.
pub(super) fn address(text: &str, environment: &Environment) -> Read {
    let mut whole = String::new();
    let mut unset = Vec::new();
    let mut left = text;
    while let Some((before, after)) = left.split_once('$') {
        whole.push_str(before);
        let (braced, after) = match after.strip_prefix('{') {
            Some(inside) => (true, inside),
            None => (false, after),
        };
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (name, rest) = after.split_at(end.unwrap_or(after.len()));
        match environment.value(name) {
            Value::Is(value) => whole.push_str(value),
            Value::Something | Value::Perhaps => whole.push(UNKNOWN),
            Value::Unset => unset.push(name.to_owned()),
        }
        left = if braced { rest.strip_prefix('}').unwrap_or(rest) } else { rest };
    }
    whole.push_str(left);
    Read { words: vec![whole], unset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::version::Version;

    #[test]
    fn words_are_told_apart_as_haproxy_does() {
        let table: &[(&str, &[&str])] = &[
            ("", &[]),
            ("   # only a comment", &[]),
            ("  bind  :80\ttransparent # why", &["bind", ":80", "transparent"]),
            ("a#b", &["a"]),
            (r"a\#b c", &["a#b", "c"]),
            (r"log-format a\ b", &["log-format", "a b"]),
            (r#"x "a # b" 'c "d"' "e'f""#, &["x", "a # b", "c \"d\"", "e'f"]),
            (r#"a"b c"d"#, &["ab cd"]),
            (r#"x "" y"#, &["x", "", "y"]),
            (r"'a\ b'", &[r"a\ b"]),
            (r#""\"" \" \'"#, &["\"", "\"", "'"]),
            (r"a\.b \1", &[r"a\.b", r"\1"]),
            (r"\x41\x2f", &["A/"]),
            (r#"peer "${NAME}" "\$x" \$y '$z'"#, &["peer", "$x", r"\$y", "$z"]),
            ("listen\r", &["listen"]),
            ("listen\rand this not", &["listen"]),
            ("a\u{b}b\u{c}c", &["a", "b", "c"]),
            (r"open\", &[r"open\"]),
        ];
        for (line, expected) in table {
            assert_eq!(words(line), *expected, "{line:?}");
        }
    }

    #[test]
    fn what_haproxy_refuses_says_nothing() {
        for line in
            [r"\xZ", "\"open", "'open", r#""${A"}"#, r#""$1""#, r#""$""#, r#""${A[1]}""#, "a\0"]
        {
            assert_eq!(read(line, &Environment::default()), None, "{line:?}");
        }
    }

    fn environment() -> Environment {
        let version = Version { major: 3, minor: 0, full: "3.0.1".into() };
        Environment::new([("A", "a a"), ("B", "/dev/log"), ("E", "")], &version, "me")
    }

    #[test]
    fn variables_get_their_values_where_haproxy_puts_them_in() {
        for (line, expected, unset) in [
            (r#"log "$B" '$B' $B ${B}"#, "log|/dev/log|$B|$B|${B}", ""),
            (r#"x "${A}" "${A[*]}" "p${A[*]}s""#, "x|a a|a|a|pa|as", ""),
            (r#"x "${NO-b c}" "${A-b}" "${NO[*]-b c}" "$E""#, "x|b c|a a|b|c|", ""),
            (r#"x "$NO" y "${NO[*]}" z "1${OTHER}2""#, "x|y|z|12", "NO OTHER"),
            (r#"x "\${A}" "${A}b$A-c""#, "x|${A}|a aba a-c", ""),
            (r#"peer "$HAPROXY_LOCALPEER" "${.LINE}" "$HAPROXY_TCP_LOG_FMT""#, "peer|me|\0|\0", ""),
        ] {
            let read = read(line, &environment()).unwrap();
            assert_eq!(
                (&*read.words.join("|"), &*read.unset.join(" ")),
                (expected, unset),
                "{line}"
            );
        }
    }

    #[test]
    fn an_address_needs_no_quotes_for_a_variable() {
        for (text, expected, unset) in [
            ("${B}", "/dev/log", ""),
            ("$B:80", "/dev/log:80", ""),
            ("10.0.0.1:${NO}", "10.0.0.1:", "NO"),
            ("${B", "/dev/log", ""),
            ("a", "a", ""),
        ] {
            let read = address(text, &environment());
            assert_eq!((&*read.words[0], &*read.unset.join(" ")), (expected, unset), "{text}");
        }
    }

    /// HAProxy names the facility that it does not know, in each of its versions.
    #[test]
    fn the_real_haproxy_sees_the_same_words() {
        let table = [
            r#""$B""#,
            "'$B'",
            r#""p${A}s""#,
            r#""${NO-b c}""#,
            r"a\ b\tc\x41",
            "f\\#g#h",
            r#"a"b"'c'"\$A"\$A$B${B}"#,
            "'a\"b'",
            "c'd\\'e\"'f'\\\"\"",
            r"\e\\x\1",
            "é",
        ];
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("h.cfg");
        let line = |word: &str| format!(" log 127.0.0.1 {word}\n");
        let text: String = table.iter().map(|word| line(word)).collect();
        std::fs::write(&file, format!("global\n{text}")).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let mut command = std::process::Command::new("haproxy");
        command.env_clear().envs([("A", "a a"), ("B", "/dev/log")]).env("PATH", path);
        let output = command.args(["-c", "-f"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        for (index, word) in table.iter().enumerate() {
            let place = format!("h.cfg:{}]", index + 2);
            let theirs = said.lines().find(|line| line.contains(&place));
            let theirs = theirs.unwrap_or_else(|| panic!("{word} is not in {said}"));
            let read = read(&line(word), &environment()).unwrap();
            let expected = format!("unknown log facility '{}'", read.words[2]);
            assert!(theirs.ends_with(&expected), "{word}: {expected}: {theirs}");
        }
    }

    /// Any word, written so that HAProxy would read it back.
    fn escaped(word: &str) -> String {
        let escape = |c: char| match c {
            ' ' | '\\' | '#' | '\'' | '"' => format!("\\{c}"),
            '\t' => "\\t".to_owned(),
            other => other.to_string(),
        };
        word.chars().map(escape).collect()
    }

    #[test]
    fn any_word_that_is_escaped_is_read_back() {
        let alphabet = [' ', '\\', '#', '\'', '"', '\t', '$', '{', 'x', 'n', '4', 'é'];
        for seed in 0..10_000_usize {
            let letters = |from: usize| {
                let mut left = seed * 31 + from;
                std::iter::from_fn(move || {
                    let letter = alphabet[left % alphabet.len()];
                    left /= alphabet.len();
                    (left > 0).then_some(letter)
                })
                .collect::<String>()
            };
            let expected = [format!("a{}", letters(7)), format!("b{}", letters(1_000_003))];
            let line = format!("{}\t {}", escaped(&expected[0]), escaped(&expected[1]));
            assert_eq!(words(&line), expected, "{line:?}");
            // Unescaped it may mean anything, but it must mean something.
            let _ = words(&expected[1]);
        }
    }
}
