//! Who works has a seat; who only waits for a deadline leaves it to another. So many may wait at
//! the same time, and none of them is late because too many work.

use std::sync::{Condvar, Mutex};

#[derive(Debug)]
pub(super) struct Seats {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Dropped, it is free again.
#[derive(Debug)]
#[must_use]
pub(super) struct Seat<'s>(&'s Seats);

impl Seats {
    pub(super) fn new(number: usize) -> Self {
        Self { free: Mutex::new(number), freed: Condvar::new() }
    }

    pub(super) fn take(&self) -> Seat<'_> {
        let free = self.free.lock().unwrap();
        *self.freed.wait_while(free, |free| *free == 0).unwrap() -= 1;
        Seat(self)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap() += 1;
        self.0.freed.notify_one();
    }
}
