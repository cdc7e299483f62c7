//! Decides: when to look, after something stirred. Values only.

use std::time::{Duration, Instant};

/// Whoever changes a configuration changes several files, each in several steps.
const QUIET: Duration = Duration::from_millis(500);
/// For someone who never stops.
const LATEST: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quiet {
    /// The first and the last time that something stirred since we looked.
    stirred: Option<(Instant, Instant)>,
}

impl Quiet {
    pub(super) fn stir(&mut self, now: Instant) {
        let first = self.stirred.map_or(now, |(first, _)| first);
        self.stirred = Some((first, now));
    }

    pub(super) fn look_at(&self) -> Option<Instant> {
        self.stirred.map(|(first, last)| (last + QUIET).min(first + LATEST))
    }

    pub(super) fn looked(&mut self) {
        self.stirred = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_at_once_it_is_quiet_and_not_too_late() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut quiet = Quiet::default();
        assert_eq!(quiet.look_at(), None);
        quiet.stir(at(0));
        quiet.stir(at(100));
        assert_eq!(quiet.look_at(), Some(at(600)));
        (2..100).for_each(|tenth| quiet.stir(at(tenth * 100)));
        assert_eq!(quiet.look_at(), Some(at(5000)));
        quiet.looked();
        assert_eq!(quiet.look_at(), None);
    }
}
