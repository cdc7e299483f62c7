//! Decides: whether the deadlines around a stop fit together, and why sessions were cut. Values
//! only.
//!
//! The time that Docker grants cannot be seen from inside: it is told to whoever reads the log.

use std::fmt;
use std::time::Duration;

use super::lifecycle::Limits;
use crate::haproxy::configuration::{Configuration, Found, Timeout};
use crate::problem::Problem;

/// What `docker stop` and Compose wait for before they kill.
const DOCKER_GRANTS: Duration = Duration::from_secs(10);
/// For Docker's own way to us and back.
const MARGIN: Duration = Duration::from_secs(5);
/// What a tear-down may take where the host is busy.
const TEAR_DOWN: Duration = Duration::from_secs(1);
/// The shortest deadline that leaves it.
const FAIR: Duration = Duration::from_secs(3);

/// A duration in seconds, as the settings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{:.1}s", self.0.as_secs_f64()),
        }
    }
}

/// What whoever stops the container has to be told, if its default is not enough.
#[must_use]
pub fn docker_must_grant(limits: &Limits) -> Option<String> {
    if limits.stop + MARGIN <= DOCKER_GRANTS {
        return None;
    }
    let grant = (limits.stop + MARGIN).as_secs_f64().ceil();
    let (stop, usual) = (Seconds(limits.stop), Seconds(DOCKER_GRANTS));
    Some(format!(
        "a stop may take {stop} (HAPROXY_STOP_DEADLINE), docker kills after {usual} unless told \
         otherwise: docker stop --time={grant:.0}, or stop_grace_period: {grant:.0}s"
    ))
}

/// Where HAProxy and hapilot would not wait equally long for a session.
#[must_use]
pub fn plan(configuration: &Configuration, limits: &Limits) -> Vec<Problem> {
    let hard = configuration.hard_stop_after.as_ref().and_then(|hard| hard_stop(hard, limits));
    [hard, silence(configuration, limits)].into_iter().flatten().collect()
}

/// Where there is something to tear down, and hardly time for it.
#[must_use]
pub fn haste(limits: &Limits) -> Option<Problem> {
    if limits.tear_down() >= TEAR_DOWN {
        return None;
    }
    let (stop, left) = (Seconds(limits.stop), Seconds(limits.tear_down()));
    Some(Problem::new(
        format!(
            "HAPROXY_STOP_DEADLINE={stop} leaves the tear-down {left} if HAProxy does not end \
             before: on a busy host it may not be done by then, and something stays behind"
        ),
        format!("give it {} or more", Seconds(FAIR)),
    ))
}

fn hard_stop(hard: &Found<Duration>, limits: &Limits) -> Option<Problem> {
    let (sessions, drain) = (limits.sessions(), limits.drain);
    let both = format!(
        "a stop gives them {} of HAPROXY_STOP_DEADLINE, a reload HAPROXY_DRAIN_DEADLINE={}",
        Seconds(sessions),
        Seconds(drain)
    );
    let ours = format!("{}: hard-stop-after {}", hard.place, Seconds(hard.value));
    if hard.value < sessions.max(drain) {
        let what = format!("{ours}: HAProxy itself cuts sessions then, though {both}");
        return Some(Problem::new(what, "leave it out, or lower the deadline to it"));
    }
    (hard.value > sessions.max(drain)).then(|| {
        let what = format!("{ours} is never reached: {both}");
        Problem::new(what, "leave it out, or raise the deadline")
    })
}

/// The longest that a session may be silent, if that is longer than it is waited for.
fn silence(configuration: &Configuration, limits: &Limits) -> Option<Problem> {
    let hard = configuration.hard_stop_after.as_ref().map_or(Duration::MAX, |hard| hard.value);
    let (stop, reload) = (limits.sessions().min(hard), limits.drain.min(hard));
    let value = |found: &Found<Timeout>| match found.value.value {
        Duration::ZERO => Duration::MAX,
        value => value,
    };
    // Of equals the first: it stands where a person looks first.
    let longest = configuration.timeouts.iter().rev().max_by_key(|found| value(found))?;
    if value(longest) <= stop.min(reload) {
        return None;
    }
    let lives = match longest.value.value {
        Duration::ZERO => "for ever".to_owned(),
        value => format!("for {}", Seconds(value)),
    };
    Some(Problem::new(
        format!(
            "{}: timeout {} lets a silent session live {lives}; a stop waits for {}, a reload \
             for {}, then it is cut",
            longest.place,
            longest.value.of,
            Seconds(stop),
            Seconds(reload)
        ),
        "nothing to do if that may be; else shorten it, or raise HAPROXY_STOP_DEADLINE and \
         HAPROXY_DRAIN_DEADLINE",
    ))
}

/// What is known when sessions are about to be cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Since the stop began, if one did.
    pub stopping_for: Option<Duration>,
    /// Since this generation was told to drain, if it was.
    pub draining_for: Option<Duration>,
}

#[must_use]
pub fn why_cut(cut: Cut, limits: &Limits) -> String {
    if cut.stopping_for.is_some_and(|since| since >= limits.sessions()) {
        let (stop, sessions) = (Seconds(limits.stop), Seconds(limits.sessions()));
        return format!("HAPROXY_STOP_DEADLINE={stop} leaves {sessions} for them");
    }
    if cut.draining_for.is_some_and(|since| since >= limits.drain) {
        return format!("HAPROXY_DRAIN_DEADLINE={} is over", Seconds(limits.drain));
    }
    if cut.stopping_for.is_some() {
        return "the end is to be at once".to_owned();
    }
    format!("HAPROXY_MAX_GENERATIONS={} are draining", limits.max_generations)
}

/// Sessions of clients, and how long the one that is silent longest has been so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub sessions: usize,
    pub silent: Duration,
}

impl Tally {
    pub fn add(&mut self, silent: Duration) {
        self.sessions += 1;
        self.silent = self.silent.max(silent);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sessions {
            0 => return f.write_str("no session"),
            1 => f.write_str("1 session")?,
            many => write!(f, "{many} sessions")?,
        }
        // In whole seconds: nobody waits for the rest.
        write!(f, ", none without data for more than {}s", self.silent.as_secs())
    }
}

/// Whose sessions, and how many.
#[must_use]
pub fn told(tallies: &[(Vec<u32>, Tally)]) -> String {
    let of = |(generations, tally): &(Vec<u32>, Tally)| {
        let numbers: Vec<_> = generations.iter().map(ToString::to_string).collect();
        let plural = if numbers.len() == 1 { "" } else { "s" };
        format!("generation{plural} {}: {tally}", numbers.join(", "))
    };
    tallies.iter().map(of).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::configuration::reader::read_text;
    use crate::supervisor::lifecycle::CrashPolicy;

    fn limits(stop: u64, drain: u64) -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            ready: seconds(300),
            hand_over: seconds(10),
            guard: seconds(6),
            room: seconds(1),
            stop: seconds(stop),
            drain: seconds(drain),
            grace: seconds(5),
            max_generations: 8,
            on_crash: CrashPolicy::Exit,
        }
    }

    fn planned(text: &str) -> Vec<String> {
        plan(&read_text(text), &limits(295, 295)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn docker_is_to_be_told_unless_its_default_is_enough() {
        let told = docker_must_grant(&limits(295, 295)).unwrap();
        assert!(told.contains("docker stop --time=300, or stop_grace_period: 300s"), "{told}");
        assert!(docker_must_grant(&limits(6, 295)).is_some());
        assert_eq!(docker_must_grant(&limits(5, 295)), None);
    }

    #[test]
    fn deadlines_that_fit_are_not_spoken_of() {
        assert_eq!(planned(""), [""; 0]);
        assert_eq!(planned("defaults\n timeout client 280s\n timeout connect 1d\n"), [""; 0]);
        let fits = "global\n hard-stop-after 295s\ndefaults\n timeout tunnel 4m\n";
        assert_eq!(planned(fits), [""; 0]);
    }

    #[test]
    fn a_deadline_too_short_for_the_tear_down_is_named() {
        assert_eq!(haste(&limits(FAIR.as_secs(), 295)), None);
        let told = haste(&limits(2, 295)).unwrap().to_string();
        assert!(told.contains("HAPROXY_STOP_DEADLINE=2s leaves the tear-down 0.6s"), "{told}");
    }

    #[test]
    fn whoever_stops_in_haste_keeps_a_fair_share_for_the_tear_down() {
        for stop in 1..600 {
            let limits = limits(stop, 295);
            let parts = limits.sessions() + limits.stop_grace() + limits.reserve();
            assert_eq!(parts, limits.stop, "{stop}s");
            assert!(limits.sessions() >= limits.stop / 3, "{stop}s");
            assert!(limits.tear_down() >= TEAR_DOWN.min(limits.stop / 10), "{stop}s");
        }
    }

    #[test]
    fn a_hard_stop_that_is_not_ours_is_named() {
        let early = planned("global\n hard-stop-after 30s\n");
        assert_eq!(early.len(), 1);
        assert!(early[0].starts_with("h.cfg:2: hard-stop-after 30s: HAProxy itself"), "{early:?}");
        assert!(early[0].contains("280s of HAPROXY_STOP_DEADLINE"), "{early:?}");
        let late = planned("global\n hard-stop-after 1h\n");
        assert!(late[0].contains("hard-stop-after 3600s is never reached"), "{late:?}");
    }

    #[test]
    fn the_longest_silence_is_named_with_its_place() {
        let text = "defaults\n timeout client 30s\n timeout tunnel 1h\n timeout server 1h\n";
        let long = planned(text);
        assert_eq!(long.len(), 1);
        assert!(long[0].starts_with("h.cfg:3: timeout tunnel lets"), "{long:?}");
        assert!(long[0].contains("live for 3600s; a stop waits for 280s, a reload for 295s"));
        let ever = planned(&format!("{text}frontend f\n timeout client 0\n"));
        assert!(ever[0].starts_with("h.cfg:6: timeout client lets a silent session live for ever"));
        let hard = planned("global\n hard-stop-after 30s\ndefaults\n timeout client 1m\n");
        assert!(hard[1].contains("a stop waits for 30s, a reload for 30s"), "{hard:?}");
    }

    #[test]
    fn the_deadline_that_came_is_the_reason() {
        let why = |stopping_for: Option<u64>, draining_for: Option<u64>| {
            let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
            let cut =
                Cut { stopping_for: seconds(stopping_for), draining_for: seconds(draining_for) };
            why_cut(cut, &limits(295, 100))
        };
        assert!(why(Some(280), Some(280)).contains("HAPROXY_STOP_DEADLINE=295s leaves 280s"));
        assert!(why(Some(20), Some(100)).contains("HAPROXY_DRAIN_DEADLINE=100s"));
        assert!(why(None, Some(100)).contains("HAPROXY_DRAIN_DEADLINE"));
        assert!(why(Some(20), Some(20)).contains("at once"));
        assert!(why(Some(0), None).contains("at once"));
        assert!(why(None, Some(20)).contains("HAPROXY_MAX_GENERATIONS=8"));
    }

    #[test]
    fn sessions_are_told_by_generation() {
        let mut tally = Tally::default();
        tally.add(Duration::from_millis(61_900));
        tally.add(Duration::from_secs(3));
        let all = [(vec![1], tally), (vec![2, 3], Tally::default())];
        assert_eq!(
            told(&all),
            "generation 1: 2 sessions, none without data for more than 61s; generations 2, 3: no session"
        );
    }
}
