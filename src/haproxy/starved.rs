//! Acts: sees that a HAProxy which starts waits for threads that it cannot have.
//!
//! Where HAProxy (2.6 to 3.2) gets fewer threads than it wants, it says nothing and waits for the others
//! for ever; 2.6 spins. As long as it waits there is no room for a single one more.

use std::time::Duration;

use tokio::time::sleep;

use crate::process::threads::ensure_room;

pub const WHY: &str = "HAProxy waits for threads that it cannot have: raise docker run --pids-limit (docker \
                       update --pids-limit), or lower nbthread in the global section";

const FIRST_LOOK: Duration = Duration::from_secs(2);
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// Pending while there is room: a configuration with many names to resolve takes its time.
pub async fn starved() {
    loop {
        sleep(FIRST_LOOK).await;
        if ensure_room(1).is_ok() {
            continue;
        }
        sleep(SECOND_LOOK).await;
        if ensure_room(1).is_err() {
            return;
        }
    }
}
