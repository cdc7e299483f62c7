//! Waits for several programs at once, where each is asked by a call that waits for it.
//!
//! A start asks a dozen of them; one after the other they cost more than HAProxy's own start. Where
//! there is no thread to be had, they are asked one after the other.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread::scope;

use super::threads::start_in;

/// The second on a thread of its own, which ends with this call.
pub fn both<A, B: Send>(one: impl FnOnce() -> A, other: impl FnOnce() -> B + Send) -> (A, B) {
    let other = Once::new(other);
    scope(|scope| {
        let thread = start_in(scope, "together", || other.call());
        let one = one();
        (one, thread.map_or_else(|_| other.call(), joined))
    })
}

/// Answers in the order of `items`; each but the first on a thread of its own, which ends with this
/// call.
pub fn each<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let call = &call;
    let Some((first, rest)) = items.split_first() else { return Vec::new() };
    scope(|scope| {
        let start = |item| (item, start_in(scope, "together", move || call(item)));
        let threads: Vec<_> = rest.iter().map(start).collect();
        let mut answers = vec![call(first)];
        for (item, thread) in threads {
            answers.push(thread.map_or_else(|_| call(item), joined));
        }
        answers
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// A call that is still there where no thread could be started for it.
struct Once<F>(Mutex<Option<F>>);

impl<R, F: FnOnce() -> R> Once<F> {
    fn new(call: F) -> Self {
        Self(Mutex::new(Some(call)))
    }

    fn call(&self) -> R {
        let call = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        call.expect("it is called by the thread, or, without one, by the caller")()
    }
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
