//! Decides: what is counted, and under which name Prometheus finds it. Values only.
//!
//! What happens (reloads, crashes) is counted when it happens; what is (generations, sessions) is
//! taken from a `status` when somebody asks.

mod takeover;

use anyhow::{Context, Result};
use prometheus::{
    Counter, CounterVec, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, Opts,
    Registry, TextEncoder,
};

use crate::control::protocol::Status;
use crate::handover::receipt::{Receipt, Verdict};
use crate::listeners::compare::Changes;

/// The states that a scrape shows, each with 1 or 0.
pub const STATES: [&str; 7] =
    ["starting", "taking-over", "serving", "reloading", "recovering", "relieved", "stopping"];
pub const PHASES: [&str; 3] = ["starting", "serving", "draining"];
/// From a small configuration on an idle machine to a large one with names to resolve.
const READY: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];
/// Guards are up for milliseconds, and two and a half seconds at most.
const WINDOW: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 2.5];

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    state: GaugeVec,
    paused: Gauge,
    since: Gauge,
    generations: GaugeVec,
    sessions: GaugeVec,
    listeners: Gauge,
    host_items: Gauge,
    crashes: Counter,
    host_put_back: Counter,
    log_dropped: Counter,
    reloads: CounterVec,
    doubtful: Counter,
    succeeded: Gauge,
    at: Gauge,
    ready: Histogram,
    window: HistogramVec,
    syns: CounterVec,
    changes: CounterVec,
    kernel: CounterVec,
    carried_over: Counter,
    warnings: Counter,
    takeover: takeover::Families,
}

/// What a status does not know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    pub since: f64,
    pub log_dropped: u64,
}

impl Metrics {
    /// Fails only where two families have one name.
    pub fn new(version: &str, haproxy_version: &str, instance: &str) -> Result<Self> {
        let make = Maker(Registry::new());
        let build = make.gauges(
            "hapilot_build_info",
            "Always 1; the versions and the name of the instance are its labels.",
            &["version", "haproxy_version", "id"],
        )?;
        build.with_label_values(&[version, haproxy_version, instance]).set(1.0);
        Ok(Self {
            state: make.gauges(
                "hapilot_state",
                "1 for the state that hapilot is in, 0 for the others.",
                &["state"],
            )?,
            paused: make.gauge("hapilot_paused", "1 while accepting is paused (SIGTTOU).")?,
            since: make.gauge(
                "hapilot_start_time_seconds",
                "When hapilot started, in seconds since the epoch.",
            )?,
            generations: make.gauges(
                "hapilot_generations",
                "HAProxy processes by what they are doing.",
                &["state"],
            )?,
            sessions: make.gauges(
                "hapilot_sessions",
                "Connections of clients, by the state of the generation that holds them; absent \
                 where the kernel does not let us look (CAP_SYS_PTRACE).",
                &["state"],
            )?,
            listeners: make
                .gauge("hapilot_listeners", "Sockets that the serving HAProxy listens on.")?,
            host_items: make.gauge(
                "hapilot_host_items",
                "Rules, routes and sysctls that are on the host because of this instance.",
            )?,
            crashes: make.counter("hapilot_crashes_total", "HAProxys that ended unasked.")?,
            host_put_back: make.counter(
                "hapilot_host_put_back_total",
                "Rules, chains and routes of ours that somebody had removed, and that were put back.",
            )?,
            log_dropped: make.counter(
                "hapilot_log_lines_dropped_total",
                "Log lines that were dropped because nobody read them, or read them fast enough.",
            )?,
            reloads: make.counters(
                "hapilot_reloads_total",
                "Reloads by outcome, by how listeners came over and by what guarded them.",
                &["verdict", "strategy", "guard"],
            )?,
            doubtful: make.counter(
                "hapilot_reloads_doubtful_total",
                "Reloads taken of which it is not shown that no new connection was lost.",
            )?,
            succeeded: make.gauge(
                "hapilot_last_reload_successful",
                "1 if the last reload was taken, 0 if it was refused; absent before the first.",
            )?,
            at: make.gauge(
                "hapilot_last_reload_timestamp_seconds",
                "When the last reload was answered, in seconds since the epoch; 0 before it.",
            )?,
            ready: make.histogram(
                "hapilot_reload_ready_seconds",
                "From a reload's launch of HAProxy until it was ready.",
                &READY,
            )?,
            window: make.histograms(
                "hapilot_reload_guard_seconds",
                "How long a reload's guard was up.",
                &WINDOW,
                &["guard"],
            )?,
            syns: make.counters(
                "hapilot_reload_syns_total",
                "Connection attempts that a reload's guard held or dropped.",
                &["fate"],
            )?,
            changes: make.counters(
                "hapilot_reload_listeners_total",
                "Listeners by what reloads made of them.",
                &["change"],
            )?,
            kernel: make.counters(
                "hapilot_reload_kernel_events_total",
                "What the kernel's counters rose by during reloads, whoever's listener it was.",
                &["counter"],
            )?,
            carried_over: make.counter(
                "hapilot_reload_carried_over_total",
                "Drains, maintenance and weights set by hand that reloads set again.",
            )?,
            warnings: make
                .counter("hapilot_reload_warnings_total", "Warnings in receipts of reloads.")?,
            takeover: takeover::Families::new(&make)?,
            registry: make.0,
        }
        .with_zeros())
    }

    /// What has not happened yet is 0, not absent: else the first time would be no increase.
    fn with_zeros(self) -> Self {
        for fate in ["held", "dropped"] {
            self.syns.with_label_values(&[fate]);
        }
        for (change, _) in Changes::default().by_change() {
            self.changes.with_label_values(&[change]);
        }
        for (counter, _) in counters(&Receipt::taken(String::new())) {
            self.kernel.with_label_values(&[counter]);
        }
        self.reloads.with_label_values(&["taken", "shared", "none"]);
        self.reloads.with_label_values(&["refused", "none", "none"]);
        self
    }

    /// `at` is when it was answered, in seconds since the epoch.
    pub fn reload(&self, receipt: &Receipt, at: f64) {
        let taken = receipt.verdict == Verdict::Taken;
        self.succeeded.set(f64::from(u8::from(taken)));
        self.at.set(at);
        if let Some(ready) = receipt.ready_ms {
            self.ready.observe(float(ready) / 1000.0);
        }
        self.warnings.inc_by(float(receipt.warnings.len()));
        if !taken {
            self.reloads.with_label_values(&["refused", "none", "none"]).inc();
            return;
        }
        let strategy = Some(&*receipt.strategy).filter(|s| !s.is_empty()).unwrap_or("none");
        self.reloads.with_label_values(&["taken", strategy, &receipt.guard]).inc();
        self.doubtful.inc_by(f64::from(u8::from(!receipt.doubts.is_empty())));
        if let Some(window) = receipt.window_ms {
            self.window.with_label_values(&[&receipt.guard]).observe(window / 1000.0);
        }
        for (fate, count) in [("held", receipt.held), ("dropped", receipt.dropped)] {
            self.syns.with_label_values(&[fate]).inc_by(float(count));
        }
        for (change, addresses) in receipt.listeners.by_change() {
            self.changes.with_label_values(&[change]).inc_by(float(addresses.len()));
        }
        for (counter, rise) in counters(receipt) {
            self.kernel.with_label_values(&[counter]).inc_by(float(rise));
        }
        self.carried_over.inc_by(float(receipt.carried_over.len()));
    }

    pub fn put_back(&self, items: usize) {
        self.host_put_back.inc_by(float(items));
    }

    /// Everything as Prometheus reads it (text format 0.0.4).
    pub fn text(&self, status: &Status, beside: Beside) -> Result<String> {
        self.take(status, beside);
        let mut families = self.registry.gather();
        families.retain(|family| match family.name() {
            "hapilot_last_reload_successful" => status.last_reload.is_some(),
            name => !takeover::is_absent(name, status),
        });
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).context("write the metrics")?;
        String::from_utf8(text).context("write the metrics")
    }

    fn take(&self, status: &Status, beside: Beside) {
        for state in STATES {
            let is = f64::from(u8::from(state == status.state));
            self.state.with_label_values(&[state]).set(is);
        }
        self.paused.set(f64::from(u8::from(status.paused)));
        self.since.set(beside.since);
        for phase in PHASES {
            let in_it: Vec<_> = status.generations.iter().filter(|g| g.state == phase).collect();
            self.generations.with_label_values(&[phase]).set(float(in_it.len()));
            match in_it.iter().map(|generation| generation.connections).sum::<Option<u64>>() {
                Some(count) => self.sessions.with_label_values(&[phase]).set(float(count)),
                // Absent already is as good.
                None => drop(self.sessions.remove_label_values(&[phase])),
            }
        }
        self.listeners.set(float(status.listeners.len()));
        self.host_items.set(float(status.host.len()));
        rise_to(&self.crashes, f64::from(status.crashes));
        rise_to(&self.log_dropped, float(beside.log_dropped));
        self.takeover.take(status.last_takeover.as_ref());
    }
}

fn rise_to(counter: &Counter, value: f64) {
    counter.inc_by((value - counter.get()).max(0.0));
}

fn counters(receipt: &Receipt) -> [(&'static str, u64); 4] {
    let (before, after) = (receipt.counters_before, receipt.counters_after);
    [
        ("ListenDrops", after.listen_drops.saturating_sub(before.listen_drops)),
        ("ListenOverflows", after.listen_overflows.saturating_sub(before.listen_overflows)),
        ("TCPMigrateReqSuccess", after.migrated.saturating_sub(before.migrated)),
        ("TCPMigrateReqFailure", after.not_migrated.saturating_sub(before.not_migrated)),
    ]
}

/// A count beyond 2^53 may be rounded.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floating numbers only")]
fn float(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::MAX, |count| count as f64)
}

/// Makes families that are in the registry.
struct Maker(Registry);

impl Maker {
    fn enter<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        name: &str,
        made: prometheus::Result<C>,
    ) -> Result<C> {
        let family = made.with_context(|| format!("make the metric {name}"))?;
        self.0
            .register(Box::new(family.clone()))
            .with_context(|| format!("register the metric {name}"))?;
        Ok(family)
    }

    fn counter(&self, name: &str, help: &str) -> Result<Counter> {
        self.enter(name, Counter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<CounterVec> {
        self.enter(name, CounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        self.enter(name, Gauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.enter(name, GaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.enter(name, Histogram::with_opts(options))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.enter(name, HistogramVec::new(options, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::GenerationStatus;
    use crate::handover::takeover::predecessor::{Rung, Told};
    use crate::handover::takeover::receipt::{Relieved, Takeover};
    use crate::listeners::counters::Counters;

    fn status() -> Status {
        let generation = |id, state: &str, connections| GenerationStatus {
            id,
            pid: Some(7),
            state: state.to_owned(),
            since: String::new(),
            connections,
            connections_age_s: None,
            deadline: None,
        };
        Status {
            warnings: vec![],
            instance: "00000001".to_owned(),
            version: "0.1.0".to_owned(),
            haproxy_version: "3.0.11".to_owned(),
            state: "serving".to_owned(),
            paused: false,
            since: String::new(),
            generations: vec![
                generation(1, "draining", None),
                generation(2, "draining", Some(2)),
                generation(3, "serving", Some(5)),
            ],
            listeners: Vec::new(),
            others_listening: Vec::new(),
            last_reload: None,
            reloads: Vec::new(),
            last_takeover: None,
            crashes: 3,
            saved: None,
            host: Vec::new(),
            inherited: Vec::new(),
        }
    }

    fn metrics() -> Metrics {
        Metrics::new("0.1.0", "3.0.11", "00000001").unwrap()
    }

    #[test]
    fn what_is_comes_from_the_status() {
        let metrics = metrics();
        let beside = Beside { since: 1000.5, log_dropped: 4 };
        metrics.text(&status(), beside).unwrap();
        let text = metrics.text(&status(), beside).unwrap();
        for line in [
            "hapilot_build_info{haproxy_version=\"3.0.11\",id=\"00000001\",version=\"0.1.0\"} 1",
            "hapilot_state{state=\"serving\"} 1",
            "hapilot_state{state=\"reloading\"} 0",
            "hapilot_generations{state=\"draining\"} 2",
            "hapilot_sessions{state=\"serving\"} 5",
            "hapilot_sessions{state=\"starting\"} 0",
            "hapilot_crashes_total 3",
            "hapilot_log_lines_dropped_total 4",
            "hapilot_start_time_seconds 1000.5",
            "hapilot_reloads_total{guard=\"none\",strategy=\"shared\",verdict=\"taken\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        // One of the two that drain may not be looked at, so their sum is not known.
        assert!(!text.contains("hapilot_sessions{state=\"draining\"}"), "{text}");
        assert!(!text.contains("last_reload_successful"), "{text}");
    }

    #[test]
    fn the_dashboard_asks_for_metrics_that_there_are() {
        let dashboard = include_str!("../../../docker/grafana.json");
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
        let metrics = metrics();
        metrics.window.with_label_values(&["hold"]).observe(0.001);
        metrics.reload(&Receipt::taken(String::new()), 1.0);
        let receipt = Receipt::taken(String::new());
        let under_guard = Receipt { window_ms: Some(1.0), ..receipt.clone() };
        let takeover = Takeover { receipt: under_guard, predecessors: Vec::new() };
        let status =
            Status { last_reload: Some(receipt), last_takeover: Some(takeover), ..status() };
        let text = metrics.text(&status, Beside::default()).unwrap();
        let names = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<_> = names.filter(|word| word.starts_with("hapilot_")).collect();
        assert!(names.len() > 16, "{names:?}");
        for name in names {
            assert!(
                text.contains(&format!("\n{name}{{")) || text.contains(&format!("\n{name} ")),
                "{name}"
            );
        }
    }

    #[test]
    fn everything_in_a_receipt_is_counted() {
        let metrics = metrics();
        let receipt = Receipt {
            ready_ms: Some(30),
            strategy: "separate".to_owned(),
            guard: "hold".to_owned(),
            window_ms: Some(4.0),
            held: 12,
            listeners: Changes {
                shared: vec!["a".to_owned(), "b".to_owned()],
                opened: vec!["c".to_owned()],
                ..Changes::default()
            },
            counters_before: Counters { listen_drops: 5, ..Counters::default() },
            counters_after: Counters { listen_drops: 7, ..Counters::default() },
            doubts: vec!["ListenDrops rose from 5 to 7".to_owned()],
            carried_over: vec!["set server a/b weight 5".to_owned()],
            ..Receipt::taken(String::new())
        };
        metrics.reload(&receipt, 2000.0);
        metrics.reload(&Receipt::refused(String::new(), "no"), 2001.0);
        let status = Status { last_reload: Some(receipt), ..status() };
        let text = metrics.text(&status, Beside::default()).unwrap();
        for line in [
            "hapilot_reloads_total{guard=\"hold\",strategy=\"separate\",verdict=\"taken\"} 1",
            "hapilot_reloads_total{guard=\"none\",strategy=\"none\",verdict=\"refused\"} 1",
            "hapilot_reloads_doubtful_total 1",
            "hapilot_last_reload_successful 0",
            "hapilot_last_reload_timestamp_seconds 2001",
            "hapilot_reload_ready_seconds_count 1",
            "hapilot_reload_guard_seconds_bucket{guard=\"hold\",le=\"0.005\"} 1",
            "hapilot_reload_guard_seconds_bucket{guard=\"hold\",le=\"0.0025\"} 0",
            "hapilot_reload_syns_total{fate=\"held\"} 12",
            "hapilot_reload_listeners_total{change=\"shared\"} 2",
            "hapilot_reload_kernel_events_total{counter=\"ListenDrops\"} 2",
            "hapilot_reload_carried_over_total 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn a_take_over_is_shown_as_it_stands() {
        let metrics = metrics();
        let mut one = Relieved::new("hapilot 0a".to_owned(), Rung::Hapilot, &[]);
        one.note(&Told::Draining { sessions: Some(3) });
        let mut other = Relieved::new("HAProxy 7".to_owned(), Rung::Separate, &[]);
        other.note(&Told::Draining { sessions: None });
        let receipt = Receipt {
            ready_ms: Some(30),
            guard: "hold".to_owned(),
            window_ms: Some(4.0),
            held: 12,
            ..Receipt::taken("1970-01-01T00:33:20.5Z".to_owned())
        };
        let takeover = Takeover { receipt, predecessors: vec![one, other] };
        let text = |takeover: Option<&Takeover>| {
            let status = Status { last_takeover: takeover.cloned(), ..status() };
            metrics.text(&status, Beside::default()).unwrap()
        };
        let before = text(None);
        for (name, is_there) in [
            ("hapilot_last_takeover_timestamp_seconds 0", true),
            ("hapilot_takeover_sessions 0", true),
            ("hapilot_takeover_predecessors{rung=\"hapilot\",state=\"draining\"} 0", true),
            ("hapilot_last_takeover_lossless", false),
            ("hapilot_last_takeover_ready_seconds", false),
        ] {
            assert_eq!(before.contains(name), is_there, "{name}: {before}");
        }
        let during = text(Some(&takeover));
        for line in [
            "hapilot_last_takeover_timestamp_seconds 2000.5",
            "hapilot_last_takeover_lossless 1",
            "hapilot_last_takeover_ready_seconds 0.03",
            "hapilot_last_takeover_guard_seconds{guard=\"hold\"} 0.004",
            "hapilot_last_takeover_syns{fate=\"held\"} 12",
            "hapilot_takeover_predecessors{rung=\"hapilot\",state=\"draining\"} 1",
            "hapilot_takeover_predecessors{rung=\"separate\",state=\"draining\"} 1",
        ] {
            assert!(during.lines().any(|l| l == line), "{line} is missing in\n{during}");
        }
        // One of the two does not say.
        assert!(!during.contains("hapilot_takeover_sessions"), "{during}");
        let mut over = takeover.clone();
        over.predecessors[0].note(&Told::Died);
        over.predecessors[1].note(&Told::Gone { status: None });
        over.receipt.doubts.push("it died".to_owned());
        let after = text(Some(&over));
        for line in [
            "hapilot_last_takeover_lossless 0",
            "hapilot_takeover_sessions 0",
            "hapilot_takeover_predecessors{rung=\"hapilot\",state=\"draining\"} 0",
            "hapilot_takeover_predecessors{rung=\"hapilot\",state=\"gone\"} 1",
        ] {
            assert!(after.lines().any(|l| l == line), "{line} is missing in\n{after}");
        }
    }
}
