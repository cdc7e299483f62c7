//! Decides: what a time in a configuration means (configuration manual, 2.5 "Time format").

use std::time::Duration;

/// Milliseconds where no unit stands. `None`: not a time; HAProxy will say so.
pub(super) fn time(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    let seconds = |each: u64| Some(Duration::from_secs(number.checked_mul(each)?));
    match unit {
        "us" => Some(Duration::from_micros(number)),
        "" | "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_haproxy_reads_them() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let table = [
            ("5000", seconds(5)),
            ("5s", seconds(5)),
            ("2m", seconds(120)),
            ("1h", seconds(3600)),
            ("1d", seconds(86_400)),
            ("3ms", Some(Duration::from_millis(3))),
            ("3us", Some(Duration::from_micros(3))),
            ("0", seconds(0)),
            ("", None),
            ("s", None),
            ("1.5s", None),
            ("1h30m", None),
            ("-1", None),
            ("${T}", None),
            ("99999999999999999999", None),
            ("18446744073709551615d", None),
        ];
        for (text, expected) in table {
            assert_eq!(time(text), expected, "{text:?}");
        }
    }
}
