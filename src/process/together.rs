//! Waits for several programs at once, where each is asked by a call that waits for it.
//!
//! A start asks a dozen of them; one after the other they cost more than HAProxy's own start.

use std::iter;
use std::panic::resume_unwind;
use std::thread::{ScopedJoinHandle, scope};

/// The second on a thread of its own, which ends with this call.
pub fn both<A, B: Send>(one: impl FnOnce() -> A, other: impl FnOnce() -> B + Send) -> (A, B) {
    scope(|scope| {
        let other = scope.spawn(other);
        (one(), joined(other))
    })
}

/// Answers in the order of `items`; each but the first on a thread of its own, which ends with this
/// call.
pub fn each<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let call = &call;
    let Some((first, rest)) = items.split_first() else { return Vec::new() };
    scope(|scope| {
        let threads: Vec<_> = rest.iter().map(|item| scope.spawn(move || call(item))).collect();
        let first = call(first);
        iter::once(first).chain(threads.into_iter().map(joined)).collect()
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn both_run_at_the_same_time() {
        let meeting = Barrier::new(2);
        let (one, other) = both(|| meeting.wait().is_leader(), || meeting.wait().is_leader());
        assert_ne!(one, other);
    }

    #[test]
    fn all_run_at_the_same_time_and_answer_in_order() {
        let meeting = Barrier::new(3);
        let answers = each(&[1, 2, 3], |number| {
            meeting.wait();
            number * 10
        });
        assert_eq!(answers, [10, 20, 30]);
        assert!(each(&[], |number: &u8| *number).is_empty());
    }
}
