//! Decides: what a syslog datagram says, in each of the forms that HAProxy writes (`format` of its
//! `log` line: local, rfc3164, rfc5424, priority, short, raw …). Values only, and nothing fails:
//! what makes no sense is the message.

use crate::printable::printable;

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "auth2",
    "ftp", "ntp", "audit", "alert", "cron2", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] =
    ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// `Nov 21 01:02:03 `
const STAMP: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub facility: &'static str,
    /// 0 is the worst; 6, `info`, where it says none.
    pub severity: u8,
    /// Who says it; with `format raw` nobody.
    pub process: Option<String>,
    pub text: String,
}

impl Message {
    #[must_use]
    pub fn read(datagram: &[u8]) -> Self {
        let whole = String::from_utf8_lossy(datagram);
        let whole = whole.trim_end_matches(['\n', '\0', '\r']);
        let (priority, rest) = priority(whole).unwrap_or((8 + 6, whole));
        let (process, text) = rfc5424(rest).or_else(|| rfc3164(rest)).unwrap_or((None, rest));
        Self {
            facility: FACILITIES[usize::from(priority >> 3).min(FACILITIES.len() - 1)],
            severity: priority & 7,
            process: process.map(|process| printable(process).into_owned()),
            text: printable(text).into_owned(),
        }
    }

    #[must_use]
    pub fn severity_name(&self) -> &'static str {
        SEVERITIES[usize::from(self.severity & 7)]
    }
}

fn priority(text: &str) -> Option<(u8, &str)> {
    let (number, rest) = text.strip_prefix('<')?.split_once('>')?;
    let priority = number.parse().ok().filter(|priority| *priority < 192)?;
    Some((priority, rest))
}

type Parts<'a> = (Option<&'a str>, &'a str);

/// `1 STAMP HOST APP PID ID DATA text`
fn rfc5424(text: &str) -> Option<Parts<'_>> {
    let mut words = text.strip_prefix("1 ")?.splitn(6, ' ');
    let (_stamp, _host, app) = (words.next()?, words.next()?, words.next()?);
    let (_pid, _id, rest) = (words.next()?, words.next()?, words.next()?);
    Some((Some(app).filter(|app| *app != "-"), after_data(rest)?.trim_start()))
}

/// `-`, or groups in brackets in whose quoted values brackets mean nothing.
fn after_data(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix('-') {
        return Some(rest);
    }
    let (mut inside, mut quoted, mut escaped) = (false, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if inside => quoted = !quoted,
            '[' if !quoted => inside = true,
            ']' if !quoted => inside = false,
            _ if !inside => return Some(&text[at..]),
            _ => {}
        }
    }
    (!inside && !text.is_empty()).then_some("")
}

/// `STAMP [HOST] TAG[PID]: text`
fn rfc3164(text: &str) -> Option<Parts<'_>> {
    let (stamp, rest) = text.split_at_checked(STAMP)?;
    if !(MONTHS.contains(&stamp.get(..3)?) && stamp.ends_with(' ')) {
        return None;
    }
    let (first, after) = rest.split_once(' ').unwrap_or((rest, ""));
    if let Some(tag) = first.strip_suffix(':') {
        return Some((Some(name(tag)), after));
    }
    let (second, after) = after.split_once(' ')?;
    Some((Some(name(second.strip_suffix(':')?)), after))
}

fn name(tag: &str) -> &str {
    tag.split('[').next().unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (&'static str, &'static str, Option<String>, String) {
        let message = Message::read(text.as_bytes());
        (message.facility, message.severity_name(), message.process, message.text)
    }

    #[test]
    fn every_form_that_haproxy_writes_is_read() {
        let said = "10.0.0.1:5 [21/Nov/2026:01:02:03.123] fe be/s1 0/0/1 \"GET / HTTP/1.1\"";
        let named = |prefix: &str| read(&format!("{prefix}{said}\n"));
        let whole = ("local0", "info", Some("haproxy".to_owned()), said.to_owned());
        for prefix in [
            "<134>Nov 21 01:02:03 haproxy[12]: ",
            "<134>Nov  1 01:02:03 my-host haproxy[12]: ",
            "<134>1 2026-11-21T01:02:03.123456+00:00 host haproxy 12 - - ",
            "<134>1 2026-11-21T01:02:03Z host haproxy 12 - [a@1 b=\"x\\\"] y\"][c d=\"\"] ",
        ] {
            assert_eq!(named(prefix), whole, "{prefix}");
        }
        assert_eq!(named("<131>"), ("local0", "err", None, said.to_owned()));
        assert_eq!(named(""), ("user", "info", None, said.to_owned()));
    }

    #[test]
    fn garbage_is_a_message_that_harms_nobody() {
        assert_eq!(read("<999>x").3, "<999>x");
        assert_eq!(read("<134>Nov").3, "Nov");
        assert_eq!(read("<134>1 a b").3, "1 a b");
        assert_eq!(read("a\nINFO forged\x1b[2J").3, "a\\nINFO forged\\u{1b}[2J");
        let garbage: Vec<u8> =
            (0..65_536_u32).map(|n| u8::try_from(n * 7919 % 256).unwrap()).collect();
        let text = Message::read(&garbage).text;
        assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\t'));
        for cut in 0..200 {
            assert!(Message::read(&garbage[cut * 3..cut * 5]).severity < 8);
        }
        assert_eq!(read("<134>Nov 2é 01:02:03 haproxy: x").3, "Nov 2é 01:02:03 haproxy: x");
    }
}
