//! Decides: where HAProxy sees words in a line (configuration manual, 2.2 "Quoting and escaping").

use std::iter::Peekable;
use std::str::Chars;

/// The words of one line, quotes and escapes resolved, without the comment. An environment
/// variable stays as it is written, dollar sign and all.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = line.chars().peekable();
    while let Some(next) = chars.next() {
        match (next, quote) {
            ('#', None) => break,
            ('"' | '\'', None) => {
                quote = Some(next);
                word.get_or_insert_default();
            }
            (end, Some(begin)) if end == begin => quote = None,
            ('\\', None | Some('"')) => escape(&mut chars, quote, word.get_or_insert_default()),
            (blank, None) if blank.is_ascii_whitespace() => words.extend(word.take()),
            (other, _) => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}

/// A backslash that escapes nothing stands for itself.
fn escape(chars: &mut Peekable<Chars<'_>>, quote: Option<char>, word: &mut String) {
    let meant = match chars.peek() {
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some(same @ (' ' | '\\' | '#' | '\'' | '"')) => *same,
        Some('$') if quote.is_some() => '$',
        Some('x') => return hexadecimal(chars, word),
        _ => return word.push('\\'),
    };
    chars.next();
    word.push(meant);
}

fn hexadecimal(chars: &mut Peekable<Chars<'_>>, word: &mut String) {
    let digits: String = chars.clone().skip(1).take(2).collect();
    match u8::from_str_radix(&digits, 16) {
        Ok(byte) if digits.len() == 2 => {
            word.push(byte.into());
            chars.nth(2);
        }
        // HAProxy refuses the line; we need not understand it.
        _ => word.push('\\'),
    }
}

/// The environment variables whose values HAProxy puts into a line and for which it has no other:
/// within double quotes, and in braces also without, for addresses.
pub(super) fn variables(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut quote: Option<char> = None;
    let mut chars = line.char_indices();
    while let Some((at, next)) = chars.next() {
        match (next, quote) {
            ('#', None) => break,
            ('"' | '\'', None) => quote = Some(next),
            (end, Some(begin)) if end == begin => quote = None,
            ('\\', None | Some('"')) => drop(chars.next()),
            ('$', None | Some('"')) => match variable(&line[at + 1..]) {
                Some((Variable { name, instead: None }, _))
                    if quote.is_some() || line[at + 1..].starts_with('{') =>
                {
                    names.push(name.to_owned());
                }
                _ => {}
            },
            _ => {}
        }
    }
    names
}

/// A word with its variables' values.
pub(super) fn expanded(word: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::new();
    let mut left = word;
    while let Some((before, after)) = left.split_once('$') {
        text.push_str(before);
        if let Some((Variable { name, instead }, rest)) = variable(after) {
            text.push_str(&value(name).unwrap_or_else(|| instead.unwrap_or_default().to_owned()));
            left = rest;
        } else {
            text.push('$');
            left = after;
        }
    }
    text + left
}

/// `NAME`, `{NAME}`, `{NAME[*]}` or `{NAME-instead}`.
struct Variable<'a> {
    name: &'a str,
    instead: Option<&'a str>,
}

/// The variable after a dollar sign, and what follows it.
fn variable(text: &str) -> Option<(Variable<'_>, &str)> {
    let (inside, rest) = match text.strip_prefix('{') {
        Some(braced) => {
            let (inside, rest) = braced.split_once('}')?;
            (inside, Some(rest))
        }
        None => (text, None),
    };
    let end = inside.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let (name, after) = inside.split_at(end.unwrap_or(inside.len()));
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let instead = if rest.is_some() { after.strip_prefix('-') } else { None };
    is_name.then_some((Variable { name, instead }, rest.unwrap_or(after)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (r"\x41\x2f \xZ", &["A/", r"\xZ"]),
            (r#"peer "${NAME}" "\$x" \$y"#, &["peer", "${NAME}", "$x", r"\$y"]),
            ("listen\r", &["listen"]),
            (r"open\", &[r"open\"]),
            ("\"open", &["open"]),
        ];
        for (line, expected) in table {
            assert_eq!(words(line), *expected, "{line:?}");
        }
    }

    #[test]
    fn variables_without_another_value_are_found_where_haproxy_puts_them_in() {
        let found = |line: &str| variables(line).join(" ");
        for (line, expected) in [
            (r#"bind ":$PORT" name "${NAME[*]}x$B""#, "PORT NAME B"),
            (r#"maxconn "${MAX-100}" "${M-}""#, ""),
            ("server s ${ADDRESS}:80 # ${NO}", "ADDRESS"),
            (r"http-request deny if { path_reg ^/a$ } x$Y", ""),
            (r#"log-format '"${NO}"' "\${NO}" "$" "${1}""#, ""),
        ] {
            assert_eq!(found(line), expected, "{line}");
        }
    }

    #[test]
    fn a_word_gets_the_values_of_its_variables() {
        let value = |name: &str| (name == "A").then(|| "a".to_owned());
        let read = |word: &str| expanded(word, value);
        assert_eq!(read("/x/$A.pem/${A}b/${B-c}/${B}$/$é"), "/x/a.pem/ab/c/$/$é");
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
