//! Decides: when to look for what somebody removed on the host, and to put it back. Values only.
//!
//! A look waits for a quiet moment, but not for long. Looks that find nothing become rarer, since
//! others may change the firewall all the time; and so do those that do find something, since
//! somebody may remove it as often as we put it back.

use std::time::{Duration, Instant};

use super::vocabulary::{Action, Condition, Turn};
use super::{Lifecycle, Reload, ReloadStep, State};

/// Scripts change one thing after the other.
const QUIET: Duration = Duration::from_millis(10);
/// From the first change to the look, whatever still happens.
const AT_MOST: Duration = Duration::from_millis(50);
/// Between looks that find nothing: at first as long as one takes, then twice as long each time.
const REST_MOST: Duration = Duration::from_secs(1);
/// Changes further apart than this are no storm.
const STORM: Duration = Duration::from_secs(3);
/// A firewall that is restarted may take several steps.
const AT_ONCE: u32 = 5;
const PAUSE_MOST: Duration = Duration::from_mins(1);
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// What stayed for this long beyond a pause was not removed "again".
const CALM: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drift {
    /// Of changes that nobody has looked at.
    first: Option<Instant>,
    due: Option<Instant>,
    not_before: Option<Instant>,
    looked_at: Option<Instant>,
    /// One look is under way.
    looking: bool,
    in_vain: u32,
    failed: u32,
    /// How often in a row something had to be put back, and when last.
    removed: u32,
    removed_at: Option<Instant>,
    pause: Duration,
}

impl Drift {
    fn noticed(&mut self, now: Instant) {
        let first = *self.first.get_or_insert(now);
        self.due = Some((now + QUIET).min(first + AT_MOST));
    }

    /// At once, whatever was before.
    fn look_now(&mut self, now: Instant) {
        self.due = Some(now);
        self.not_before = None;
    }

    fn due(&self) -> Option<Instant> {
        let due = self.due.filter(|_| !self.looking)?;
        Some(self.not_before.map_or(due, |at| at.max(due)))
    }

    /// `Some`: somebody removes it again and again, as often as this, and now it has to wait.
    fn looked(&mut self, now: Instant, found: Condition, took: Duration) -> Option<u32> {
        self.looking = false;
        let storm = self.looked_at.is_some_and(|at| now.duration_since(at) < STORM);
        self.looked_at = Some(now);
        if !storm || found != Condition::Whole {
            self.in_vain = 0;
        }
        match found {
            Condition::Whole => {
                self.failed = 0;
                self.not_before = Some(now + doubled(took, self.in_vain).min(REST_MOST));
                self.in_vain += 1;
                None
            }
            Condition::Unknown => {
                let wait = doubled(RETRY_FIRST, self.failed);
                self.failed += 1;
                (self.due, self.not_before) = (Some(now + wait), Some(now + wait));
                None
            }
            Condition::Restored => {
                self.failed = 0;
                self.removed_again(now)
            }
        }
    }

    fn removed_again(&mut self, now: Instant) -> Option<u32> {
        let lasted = self.removed_at.map(|at| now.duration_since(at));
        if lasted.is_none_or(|lasted| lasted > self.pause + CALM) {
            self.removed = 0;
        }
        self.removed += 1;
        self.removed_at = Some(now);
        let beyond = self.removed.checked_sub(AT_ONCE + 1);
        self.pause = beyond.map_or(Duration::ZERO, |times| doubled(Duration::from_secs(1), times));
        self.not_before = Some(now + self.pause);
        (beyond == Some(0)).then_some(self.removed)
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(PAUSE_MOST)
}

impl Lifecycle {
    pub(super) fn host_changed(&mut self, turn: &Turn) {
        self.drift.noticed(turn.now);
    }

    pub(super) fn look_wanted(&mut self, turn: &Turn) {
        self.drift.look_now(turn.now);
    }

    pub(super) fn looked(&mut self, turn: &mut Turn, found: Condition, took: Duration) {
        if let Some(times) = self.drift.looked(turn.now, found, took) {
            turn.act(Action::Contested { times });
        }
    }

    /// When to look next; `None` as well while it has to wait for something else.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.drift.due().filter(|_| self.may_put_back())
    }

    pub(super) fn put_back_if_due(&mut self, turn: &mut Turn) {
        if self.look_at().is_some_and(|at| at <= turn.now) {
            (self.drift.due, self.drift.first) = (None, None);
            self.drift.looking = true;
            turn.act(Action::PutBack);
        }
    }

    /// Not while a guard is up, which clients wait for, nor when all of it is to go anyway.
    fn may_put_back(&self) -> bool {
        match self.state {
            State::MakingRoom(_) | State::Stopping(_) | State::Stopped => false,
            State::Reloading(Reload { step, room, .. }) => {
                let releasing = matches!(step, ReloadStep::Releasing { .. });
                room.is_none() && !step.is_guarded() && !releasing
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// When it looks next; it is as if that were done.
    fn looks(drift: &mut Drift) -> Instant {
        let at = drift.due().expect("a look is due");
        (drift.due, drift.first) = (None, None);
        at
    }

    #[test]
    fn a_look_waits_for_a_quiet_moment_but_not_for_long() {
        let (mut drift, begin) = (Drift::default(), Instant::now());
        assert_eq!(drift.due(), None);
        drift.noticed(begin);
        drift.noticed(begin + 6 * MS);
        assert_eq!(drift.due(), Some(begin + 16 * MS));
        for ms in 7..1000 {
            drift.noticed(begin + ms * MS);
        }
        assert_eq!(looks(&mut drift), begin + AT_MOST);
    }

    #[test]
    fn a_storm_that_is_none_of_our_business_costs_little_and_delays_little() {
        let (mut drift, begin) = (Drift::default(), Instant::now());
        let (mut now, mut looked, took) = (begin, 0, 20 * MS);
        while now < begin + Duration::from_mins(1) {
            drift.noticed(now);
            let at = looks(&mut drift).max(now);
            assert!(at <= now + REST_MOST + AT_MOST, "{:?}", at - now);
            looked += 1;
            now = at + took;
            drift.looked(now, Condition::Whole, took);
        }
        assert!(took * looked < Duration::from_mins(1) / 40, "{looked}");
        // When it is over, the next change is looked at as soon as the first was.
        now += STORM;
        drift.noticed(now);
        assert_eq!(looks(&mut drift), now + QUIET);
    }

    /// How often, and with which last pause, if all that is put back is removed at once for so long.
    fn fight(drift: &mut Drift, begin: Instant, length: Duration) -> (u32, u32, Duration) {
        let (mut now, mut times, mut told, mut last) = (begin, 0, 0, Duration::ZERO);
        while now < begin + length {
            drift.noticed(now);
            let at = looks(drift);
            last = at - now;
            now = at + 20 * MS;
            times += 1;
            told += u32::from(drift.looked(now, Condition::Restored, 20 * MS).is_some());
        }
        (times, told, last)
    }

    #[test]
    fn who_removes_it_again_and_again_is_told_of_once_and_waited_for_longer_and_longer() {
        let (mut drift, begin) = (Drift::default(), Instant::now());
        let (times, told, _) = fight(&mut drift, begin, Duration::from_secs(1));
        assert!(times > AT_ONCE && told == 1, "{times} {told}");
        let more = begin + Duration::from_secs(2);
        let (times, told, last) = fight(&mut drift, more, Duration::from_mins(10));
        assert!(times < 20 && told == 0 && last <= PAUSE_MOST, "{times} {told} {last:?}");
        // Who has given up for a while is a new one.
        let calm = more + Duration::from_mins(20);
        drift.noticed(calm);
        assert_eq!(looks(&mut drift), calm + QUIET);
        assert_eq!(fight(&mut drift, calm, Duration::from_secs(1)).1, 1);
    }

    #[test]
    fn what_could_not_be_put_back_is_tried_again_without_a_new_reason() {
        let (mut drift, mut now) = (Drift::default(), Instant::now());
        drift.noticed(now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            now = looks(&mut drift);
            drift.looked(now, Condition::Unknown, MS);
            waits.push(drift.due().unwrap() - now);
        }
        assert_eq!(waits[..3], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(waits[11], PAUSE_MOST);
        let at = looks(&mut drift);
        drift.looked(at, Condition::Restored, MS);
        assert_eq!(drift.due(), None);
    }

    #[test]
    fn a_reload_waits_for_no_pause() {
        let (mut drift, begin) = (Drift::default(), Instant::now());
        fight(&mut drift, begin, Duration::from_mins(1));
        let now = begin + Duration::from_mins(1);
        drift.look_now(now);
        assert_eq!(looks(&mut drift), now);
    }
}
