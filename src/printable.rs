//! Decides: how text of others is shown, so that it cannot forge a line of ours, or send a terminal
//! sequences. Values only.

use std::borrow::Cow;

/// Every control character but the tab is escaped.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |character| character != '\t')
}

/// The same for several lines.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |character| !matches!(character, '\t' | '\n'))
}

fn escape(text: &str, which: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_escaped = |character: char| character.is_control() && which(character);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if is_escaped(character) {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_everything_else_stays() {
        for (text, shown) in [
            ("a name of any kind: \u{e4}\u{20ac}\t", "a name of any kind: \u{e4}\u{20ac}\t"),
            ("\u{1b}[2J\r\0", "\\u{1b}[2J\\r\\u{0}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable_lines(text), shown);
        }
        assert_eq!(printable("a\nb"), "a\\nb");
        assert_eq!(printable_lines("a\nb"), "a\nb");
    }
}
