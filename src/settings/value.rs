//! Decides: what one value means, or why it means nothing. Each function gets the trimmed text of
//! one variable, never an empty one, and answers with a value or a reason without the name.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::Predecessors;
use crate::host::mark::{FwMark, Intercept, Port, TableId};

/// A shorter stop leaves no time for the tear-down itself.
const SHORTEST_DEADLINE: Duration = Duration::from_secs(1);
/// Far beyond any session, and far from overflowing a clock.
const LONGEST_DEADLINE: Duration = Duration::from_hours(7 * 24);
/// One serving and one draining are what a reload needs.
const FEWEST_GENERATIONS: usize = 2;
const MOST_GENERATIONS: usize = 64;

pub(super) fn ports(text: &str) -> Result<Vec<Port>, String> {
    let mut ports = Vec::new();
    for entry in entries(text)? {
        let port: Port = entry.parse()?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

pub(super) fn intercept(text: &str) -> Result<Vec<Intercept>, String> {
    let mut all: Vec<Intercept> = Vec::new();
    for entry in entries(text)? {
        let (from, to) =
            entry.split_once(':').ok_or_else(|| format!("{entry:?} is not a pair FROM:TO"))?;
        let pair = Intercept { from: from.trim().parse()?, to: to.trim().parse()? };
        if pair.from == pair.to {
            return Err(format!(
                "{pair} diverts a port to itself (a bind on that port serves it without)"
            ));
        }
        if all.iter().any(|other| other.from == pair.from) {
            return Err(format!("port {} is diverted twice", pair.from));
        }
        all.push(pair);
    }
    Ok(all)
}

pub(super) fn pids(text: &str) -> Result<Predecessors, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(Predecessors::Auto);
    }
    let mut pids = Vec::new();
    for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()) {
        let pid = digits(word)
            .and_then(|number| i32::try_from(number).ok())
            .filter(|pid| *pid > 0)
            .ok_or_else(|| format!("{word:?} is not a PID"))?;
        if !pids.contains(&pid) {
            pids.push(pid);
        }
    }
    if pids.is_empty() { Err("there is no PID in it".into()) } else { Ok(Predecessors::Pids(pids)) }
}

pub(super) fn mark(text: &str) -> Result<FwMark, String> {
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (bits(value)?, bits(mask)?),
        None => (bits(text)?, bits(text)?),
    };
    FwMark::new(value, mask).ok_or_else(|| {
        if value == 0 {
            "the mark has no bits, so marked packets could not be told from others".into()
        } else {
            format!("{value:#x} has bits outside the mask {mask:#x}")
        }
    })
}

pub(super) fn table(text: &str) -> Result<TableId, String> {
    let number = digits(text)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| format!("{text:?} is not a table's number"))?;
    TableId::new(number).ok_or_else(|| format!("table {number} is the kernel's own"))
}

pub(super) fn deadline(text: &str) -> Result<Duration, String> {
    let duration = match digits(text) {
        Some(seconds) => Duration::from_secs(seconds),
        None => humantime::parse_duration(text)
            .map_err(|error| format!("{text:?} is not a length of time ({error})"))?,
    };
    if duration < SHORTEST_DEADLINE {
        return Err(format!("{text:?} is too short, at least 1s is needed to end in order"));
    }
    if duration > LONGEST_DEADLINE {
        return Err(format!("{text:?} is longer than 7 days"));
    }
    Ok(duration)
}

pub(super) fn generations(text: &str) -> Result<usize, String> {
    digits(text)
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| (FEWEST_GENERATIONS..=MOST_GENERATIONS).contains(number))
        .ok_or_else(|| {
            format!("{text:?} is not a number from {FEWEST_GENERATIONS} to {MOST_GENERATIONS}")
        })
}

pub(super) fn log_level(text: &str) -> Result<LevelFilter, String> {
    choice(
        text,
        &[
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ],
    )
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is not an IP address and a port (IPv6 in brackets)"))?;
    if address.port() == 0 {
        return Err("with port 0 nobody would know where to ask".into());
    }
    Ok(address)
}

/// Whoever may send us something writes our log.
pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address = address(text)?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!("{} is not of the loopback", address.ip()))
    }
}

/// One of a few words, in any case.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    choices
        .iter()
        .find(|(word, _)| text.eq_ignore_ascii_case(word))
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("{text:?} is not one of the choices"))
}

fn entries(text: &str) -> Result<Vec<&str>, String> {
    let entries: Vec<&str> = text.split(',').map(str::trim).collect();
    if entries.iter().any(|entry| entry.is_empty()) {
        return Err("there is an empty entry in the list".into());
    }
    Ok(entries)
}

/// Decimal digits only: Rust's own parsers take a plus sign, which no operator means.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn bits(text: &str) -> Result<u32, String> {
    let text = text.trim();
    let wrong = || format!("{text:?} is not a 32-bit number (hexadecimal with 0x, or decimal)");
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let valid = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        return valid.then(|| u32::from_str_radix(hex, 16).ok()).flatten().ok_or_else(wrong);
    }
    if text.len() > 1 && text.starts_with('0') {
        // iptables reads 010 as eight, people as ten.
        return Err(format!("{text:?} begins with 0, which could mean octal"));
    }
    digits(text).and_then(|number| u32::try_from(number).ok()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(parse: fn(&str) -> Result<T, String>, table: &[(&str, &str)]) {
        for (text, reason) in table {
            let answer = parse(text).unwrap_err();
            assert!(answer.contains(reason), "{text:?} gave {answer:?}, expected {reason:?}");
        }
    }

    #[test]
    fn ports_are_numbers_from_1_to_65535_between_commas() {
        let numbers = |text| ports(text).unwrap().iter().map(|p| p.number()).collect::<Vec<_>>();
        assert_eq!(numbers("80,443"), [80, 443]);
        assert_eq!(numbers(" 80 , 443 "), [80, 443]);
        assert_eq!(numbers("1,65535,1"), [1, 65535]);
        refused(
            ports,
            &[
                ("0", "\"0\" is not a port"),
                ("70000", "\"70000\" is not a port"),
                ("80,,443", "empty entry"),
                ("80,", "empty entry"),
                ("eighty", "\"eighty\" is not a port"),
                ("+80", "\"+80\" is not a port"),
                ("80 443", "\"80 443\" is not a port"),
                ("-1", "\"-1\" is not a port"),
            ],
        );
    }

    #[test]
    fn an_intercept_goes_from_one_port_to_another_and_each_from_is_there_once() {
        let shown = |text| intercept(text).unwrap().iter().map(ToString::to_string).collect();
        let pairs: Vec<String> = shown("80:8080, 443 : 8443");
        assert_eq!(pairs, ["80:8080", "443:8443"]);
        refused(
            intercept,
            &[
                ("80:80", "80:80 diverts a port to itself"),
                ("80:8080,80:9090", "port 80 is diverted twice"),
                ("80", "not a pair FROM:TO"),
                ("80:0", "\"0\" is not a port"),
                ("80:8080:9090", "\"8080:9090\" is not a port"),
                ("http:8080", "\"http\" is not a port"),
                (":8080", "\"\" is not a port"),
                ("80:8080,", "empty entry"),
            ],
        );
    }

    #[test]
    fn pids_are_positive_numbers_between_blanks_or_commas_or_auto() {
        assert_eq!(pids("auto"), Ok(Predecessors::Auto));
        assert_eq!(pids("12"), Ok(Predecessors::Pids(vec![12])));
        assert_eq!(pids("12 13\n14,, 15 12"), Ok(Predecessors::Pids(vec![12, 13, 14, 15])));
        refused(
            pids,
            &[
                ("12,a", "\"a\" is not a PID"),
                ("12 1x3", "\"1x3\" is not a PID"),
                ("0", "\"0\" is not a PID"),
                ("-1", "\"-1\" is not a PID"),
                ("2147483648", "is not a PID"),
                ("auto 12", "\"auto\" is not a PID"),
                (",", "no PID"),
            ],
        );
    }

    #[test]
    fn a_mark_has_bits_and_all_of_them_under_its_mask() {
        assert_eq!(mark("0x100/0xff00"), Ok(FwMark::new(0x100, 0xff00).unwrap()));
        assert_eq!(mark("256/65280"), Ok(FwMark::new(0x100, 0xff00).unwrap()));
        assert_eq!(mark("0x100"), Ok(FwMark::new(0x100, 0x100).unwrap()));
        assert_eq!(mark("1"), Ok(FwMark::new(1, 1).unwrap()));
        assert_eq!(mark("0xffffffff"), Ok(FwMark::new(u32::MAX, u32::MAX).unwrap()));
        refused(
            mark,
            &[
                ("0", "no bits"),
                ("0x0/0xff", "no bits"),
                ("0x100/0xff", "0x100 has bits outside the mask 0xff"),
                ("0x1/0", "outside the mask"),
                ("0x", "not a 32-bit number"),
                ("0x+1", "not a 32-bit number"),
                ("0x1ffffffff", "not a 32-bit number"),
                ("one", "not a 32-bit number"),
                ("1/", "not a 32-bit number"),
                ("1/2/4", "not a 32-bit number"),
                ("010", "octal"),
            ],
        );
    }

    #[test]
    fn a_table_is_a_number_that_the_kernel_does_not_use_itself() {
        assert_eq!(table("100").unwrap().number(), 100);
        assert_eq!(table("4294967295").unwrap().number(), u32::MAX);
        refused(
            table,
            &[
                ("0", "the kernel's own"),
                ("253", "the kernel's own"),
                ("255", "the kernel's own"),
                ("4294967296", "not a table's number"),
                ("main", "not a table's number"),
                ("-5", "not a table's number"),
            ],
        );
    }

    #[test]
    fn a_deadline_is_a_length_of_time_from_a_second_to_a_week() {
        for (text, seconds) in
            [("295", 295), ("295s", 295), ("5m", 300), ("1h 30m", 5400), ("1s", 1), ("7d", 604_800)]
        {
            assert_eq!(deadline(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        refused(
            deadline,
            &[
                ("-1s", "not a length of time"),
                ("5 parsecs", "not a length of time"),
                ("0s", "too short"),
                ("0", "too short"),
                ("999ms", "too short"),
                ("1000000years", "longer than 7 days"),
                ("99999999999999999999", "not a length of time"),
                ("soon", "not a length of time"),
            ],
        );
    }

    #[test]
    fn there_are_2_to_64_generations() {
        assert_eq!(generations("2"), Ok(2));
        assert_eq!(generations("64"), Ok(64));
        refused(generations, &[("1", "2 to 64"), ("65", "2 to 64"), ("many", "2 to 64")]);
    }

    #[test]
    fn a_log_level_is_one_of_five_words_in_any_case() {
        assert_eq!(log_level("debug"), Ok(LevelFilter::DEBUG));
        assert_eq!(log_level("WARN"), Ok(LevelFilter::WARN));
        refused(log_level, &[("loud", "not one of the choices"), ("5", "not one")]);
    }
}
