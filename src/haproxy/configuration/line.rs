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
