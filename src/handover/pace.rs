//! Decides: how often the state of a HAProxy is saved, in case that it dies. Values only.
//!
//! A wake-up costs HAProxy and us something, and a state that nobody changes needs none.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_mins(1);
/// Saving takes at most one part in so many of the time.
const SHARE: u32 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Some,
    None,
}

#[derive(Clone, Copy, Debug)]
pub struct Pace(Duration);

impl Pace {
    pub const START: Self = Self(FIRST);

    /// How long to wait before the first time.
    #[must_use]
    pub fn first(self) -> Duration {
        self.0
    }

    /// How long to wait at least after one that took so long.
    #[must_use]
    pub fn least(took: Duration) -> Duration {
        took * SHARE
    }

    /// How long to wait after one that took so long.
    pub fn next(&mut self, change: Change, took: Duration) -> Duration {
        self.0 = match change {
            Change::Some => FIRST,
            Change::None => (self.0 * 2).min(MOST),
        };
        self.0.max(Self::least(took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_the_same_is_looked_at_ever_more_seldom_until_it_changes() {
        let mut pace = Pace::START;
        let took = Duration::from_millis(1);
        let waits: Vec<u64> = (0..8).map(|_| pace.next(Change::None, took).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pace.next(Change::Some, took), FIRST);
        assert_eq!(pace.next(Change::None, took), FIRST * 2);
    }

    #[test]
    fn one_that_takes_long_comes_seldom() {
        let mut pace = Pace::START;
        assert_eq!(pace.next(Change::Some, Duration::from_millis(100)), Duration::from_secs(5));
    }
}
