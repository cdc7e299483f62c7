//! Decides: how the receipt of a take-over looks to Prometheus. Values only.
//!
//! There is one in a life at most, and it is written while the predecessor still answers scrapes: so
//! it is shown as what is, and not counted. A counter that begins at 1 would show no increase.

use std::time::SystemTime;

use anyhow::Result;
use prometheus::{Gauge, GaugeVec};

use super::{Maker, counters, float};
use crate::control::protocol::Status;
use crate::handover::takeover::predecessor::Rung;
use crate::handover::takeover::receipt::{STATES, Takeover};

const LOSSLESS: &str = "hapilot_last_takeover_lossless";
const READY: &str = "hapilot_last_takeover_ready_seconds";
const SESSIONS: &str = "hapilot_takeover_sessions";

#[derive(Debug)]
pub(super) struct Families {
    at: Gauge,
    lossless: Gauge,
    ready: Gauge,
    window: GaugeVec,
    syns: GaugeVec,
    changes: GaugeVec,
    kernel: GaugeVec,
    carried_over: Gauge,
    predecessors: GaugeVec,
    sessions: Gauge,
}

impl Families {
    pub(super) fn new(make: &Maker) -> Result<Self> {
        Ok(Self {
            at: make.gauge(
                "hapilot_last_takeover_timestamp_seconds",
                "When this one relieved others, in seconds since the epoch; 0 if it did not.",
            )?,
            lossless: make.gauge(
                LOSSLESS,
                "1 if it is shown that the take-over lost no new connection, 0 if that is in doubt; \
                 absent if there was none.",
            )?,
            ready: make.gauge(
                READY,
                "From the launch of HAProxy until it was ready to take over; absent if it did not.",
            )?,
            window: make.gauges(
                "hapilot_last_takeover_guard_seconds",
                "How long the take-over's guard was up; absent if there was none.",
                &["guard"],
            )?,
            syns: make.gauges(
                "hapilot_last_takeover_syns",
                "Connection attempts that the take-over's guard held or dropped.",
                &["fate"],
            )?,
            changes: make.gauges(
                "hapilot_last_takeover_listeners",
                "Listeners by what the take-over made of them.",
                &["change"],
            )?,
            kernel: make.gauges(
                "hapilot_last_takeover_kernel_events",
                "What the kernel's counters rose by during the take-over, whoever's listener it was.",
                &["counter"],
            )?,
            carried_over: make.gauge(
                "hapilot_last_takeover_carried_over",
                "Drains, maintenance and weights set by hand that the take-over set again.",
            )?,
            predecessors: make.gauges(
                "hapilot_takeover_predecessors",
                "Whom this one relieved, by how their listeners came over and by what they are \
                 doing; a deaf one may serve on.",
                &["rung", "state"],
            )?,
            sessions: make.gauge(
                SESSIONS,
                "Connections of clients that predecessors have yet to finish, as they said last; \
                 absent where one does not say.",
            )?,
        })
    }

    pub(super) fn take(&self, takeover: Option<&Takeover>) {
        for (rung, state) in Rung::ALL.iter().flat_map(|rung| STATES.map(|state| (rung, state))) {
            let all = takeover.iter().flat_map(|takeover| &takeover.predecessors);
            let count = all.filter(|one| one.rung == *rung && one.state == state).count();
            self.predecessors.with_label_values(&[rung.as_str(), state]).set(float(count));
        }
        let Some(Takeover { receipt, .. }) = takeover else { return };
        let at = humantime::parse_rfc3339(&receipt.at).ok();
        let at = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.at.set(at.unwrap_or_default().as_secs_f64());
        self.lossless.set(f64::from(u8::from(receipt.doubts.is_empty())));
        self.ready.set(receipt.ready_ms.map_or(0.0, |ms| float(ms) / 1000.0));
        self.window.reset();
        if let Some(window) = receipt.window_ms {
            self.window.with_label_values(&[&receipt.guard]).set(window / 1000.0);
        }
        for (fate, count) in [("held", receipt.held), ("dropped", receipt.dropped)] {
            self.syns.with_label_values(&[fate]).set(float(count));
        }
        for (change, addresses) in receipt.listeners.by_change() {
            self.changes.with_label_values(&[change]).set(float(addresses.len()));
        }
        for (counter, rise) in counters(receipt) {
            self.kernel.with_label_values(&[counter]).set(float(rise));
        }
        self.carried_over.set(float(receipt.carried_over.len()));
        self.sessions.set(sessions(takeover).map_or(0.0, float));
    }
}

/// Families of which there is nothing to say.
pub(super) fn is_absent(name: &str, status: &Status) -> bool {
    let takeover = status.last_takeover.as_ref();
    match name {
        LOSSLESS => takeover.is_none(),
        READY => takeover.is_none_or(|takeover| takeover.receipt.ready_ms.is_none()),
        SESSIONS => takeover.is_some() && sessions(takeover).is_none(),
        _ => false,
    }
}

fn sessions(takeover: Option<&Takeover>) -> Option<u64> {
    takeover?.predecessors.iter().map(|one| one.sessions).sum()
}
