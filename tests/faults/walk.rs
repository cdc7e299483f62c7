//! Every step of a life, with every fault.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hapilot::fault::Point;
use nix::sys::signal::Signal;

use super::life::{Came, CleanUp, Life, STOP_DEADLINE, Scene, Way};
use super::seats::Seats;
use super::verdict::{assert_harmless, assert_same};
use crate::lab::{HostState, LONG, SHORT};

/// Two cores that others use too.
const SLACK: Duration = Duration::from_secs(1);

/// As many live at the same time, and so many of them do something.
const LIVES: usize = 64;
const SEATS: usize = 4;

/// Points whose fault may end with status 0 and without a word, and why.
const MENDED: &[(Point, &str)] = &[
    (Point::Apply, "what did not work in one transaction works one by one"),
    (Point::Undo, "what did not work in one transaction works one by one, or once more at the end"),
    (Point::OpenBarrier, "a guard that cannot be opened is lowered"),
    (Point::Wait, "it is waited no more, and the limit of the guard comes"),
    (Point::CloseKeeper, "a file of a socket that is gone misleads nobody"),
    (Point::Farewell, "the end of the connection says the same"),
    (Point::Look, "the next rung is taken"),
    (Point::Duplicate, "the next rung is taken"),
    (Point::Ask, "it is asked again later"),
    (Point::Thread, "what runs in parallel for speed runs one after the other"),
    (
        Point::Program,
        "what did not work in one transaction works one by one; or there is another firewall",
    ),
];

/// They change nothing.
const ASKING: &[Point] = &[
    Point::Survey,
    Point::Routing,
    Point::Watch,
    Point::Pidfd,
    Point::Ask,
    Point::Listeners,
    Point::Wait,
    Point::Meet,
    Point::Look,
    Point::Visit,
    Point::Thread,
    Point::Program,
    Point::Descriptors,
];
/// Where one hangs, hapilot's one thread does not.
const AWAITED: &[Point] = &[
    Point::SetupLock,
    Point::Routing,
    Point::KeeperGives,
    Point::Wait,
    Point::Release,
    Point::Program,
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Fail,
    Hang,
    Kill,
    /// Of the loop, or of a task or thread beside it.
    Panic,
}

impl Fault {
    /// Whether it is another thing each time that this step is come to.
    fn is_new_at(self, step: &str, way: Way) -> bool {
        match self {
            // Both iptables are told the same, one step after the other.
            Self::Kill if way == LEGACY && is_one_of(CHANGES, step) => false,
            Self::Fail => true,
            // Which it is depends on where a step is taken, not on how often.
            Self::Panic => false,
            // What a thread that hangs leaves is what one leaves that is killed there. While a
            // step hangs that is waited for, everything else goes on.
            Self::Hang => is_one_of(AWAITED, step),
            // What asks changes nothing: what is left is what the last change left.
            Self::Kill => !is_one_of(ASKING, step),
        }
    }

    /// As hapilot is told of it.
    fn order(self, step: &str) -> String {
        format!("{step}={}", self.told().to_lowercase())
    }

    /// As hapilot tells of it.
    fn told(self) -> &'static str {
        match self {
            Self::Fail => "Fail",
            Self::Hang => "Hang",
            Self::Kill => "Halt",
            Self::Panic => "Panic",
        }
    }
}

/// The steps of a life in which nothing goes wrong (`apply@3`), and its host before.
fn steps(life: Life, way: Way) -> (Vec<String>, HostState) {
    let host = way.host();
    let before = host.state();
    let mut scene = Scene::begin(&host, life, way, "none");
    assert_eq!(scene.go_on(), Came::Through, "{}", scene.instance.log.text());
    scene.instance.wait(LONG);
    scene.end_others();
    assert_same(&host, &before, "nothing was wrong");
    scene.instance.log.wait_closed();
    let text = scene.instance.log.text();
    let steps = text.lines().filter_map(|line| line.strip_prefix("fault: step "));
    (steps.map(str::to_owned).collect(), before)
}

fn point(step: &str) -> &str {
    step.split_once('@').unwrap().0
}

fn is_one_of(points: &[Point], step: &str) -> bool {
    points.iter().any(|other| other.name() == point(step))
}

/// One life with a fault.
struct Trial {
    life: Life,
    way: Way,
    step: String,
    fault: Fault,
    clean_up: CleanUp,
    before: Arc<HostState>,
}

/// Whether the step was come to.
fn live(trial: Trial, seats: &Seats) -> bool {
    let Trial { life, way, step, fault, clean_up, before } = trial;
    let what = format!("{life:?} {} {} {step} {fault:?}", way.firewall, way.guard);
    let seat = seats.take();
    let host = way.host();
    let mut scene = Scene::begin(&host, life, way, &fault.order(&step));
    let came = scene.go_on();
    match (fault, came) {
        // Before there are handlers no signal reaches PID 1.
        (Fault::Kill | Fault::Hang, Came::ToTheFault)
            if fault == Fault::Kill || point(&step) == "signals" =>
        {
            scene.instance.signal(Signal::SIGKILL);
            scene.instance.wait(SHORT);
            assert_harmless(&scene, way, &what);
            scene.end_others();
            drop(scene);
            clean_up.run(&host, life, way);
            assert_same(&host, &before, &format!("{what}, {clean_up:?}"));
        }
        (Fault::Hang, Came::ToTheFault) => {
            drop(seat);
            let begun = Instant::now();
            scene.instance.signal(Signal::SIGTERM);
            scene.instance.wait(LONG);
            let took = begun.elapsed();
            let _seat = seats.take();
            assert!(took < STOP_DEADLINE + SLACK, "{what}: it took {took:?}");
            scene.end_others();
            assert_same(&host, &before, &what);
        }
        (_, came) => {
            if came == Came::Nowhere {
                scene.instance.signal(Signal::SIGTERM);
            }
            let status = scene.instance.wait(LONG);
            scene.instance.log.wait_closed();
            let text = scene.instance.log.text();
            if status.success() && !text.contains(&format!("fault: {} {step}\n", fault.told())) {
                // How often something is asked depends on when others are done.
                eprintln!("{what}: this time it did not come to that");
                scene.end_others();
                assert_same(&host, &before, &what);
                return false;
            }
            let named = text.contains(&format!("fault at {step}"));
            let mended = status.code() == Some(0)
                && MENDED.iter().any(|(mended, _)| mended.name() == point(&step));
            assert!(named || mended, "{what}: {came:?} {status}: {text}");
            scene.end_others();
            assert_same(&host, &before, &what);
        }
    }
    true
}

/// Some at a time; fails with all that failed.
pub(super) fn side_by_side<T: Send>(at_a_time: usize, todo: Vec<T>, work: impl Fn(T) + Sync) {
    let (count, todo) = (todo.len(), Mutex::new(todo.into_iter()));
    let failures: Mutex<Vec<String>> = Mutex::default();
    let one_after_another = || {
        loop {
            let Some(next) = todo.lock().unwrap().next() else { return };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(next))) {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                failures.lock().unwrap().push(text);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(one_after_another);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n\n"));
}

/// A life, and those of its points that are walked there.
#[derive(Clone, Copy)]
struct Walk {
    life: Life,
    way: Way,
    points: &'static [&'static [Point]],
}

const START: &[Point] = &[
    Point::Signals,
    Point::Metrics,
    Point::Rights,
    Point::RunDirectory,
    Point::ControlSocket,
    Point::Unmark,
    Point::Leftovers,
    Point::KeeperSocket,
    Point::Lease,
    Point::SuccessorsDoor,
    Point::RuntimeDoor,
    Point::Syslog,
];
const HOST: &[Point] = &[
    Point::SetupLock,
    Point::Survey,
    Point::Apply,
    Point::Undo,
    Point::Routing,
    Point::Sysctl,
    Point::Watch,
];
const GENERATION: &[Point] = &[
    Point::Copies,
    Point::RuntimeSocket,
    Point::Fragment,
    Point::Spawn,
    Point::Pidfd,
    Point::Output,
    Point::Ask,
    Point::Listeners,
    Point::Signal,
    Point::Forget,
    Point::KeeperGives,
    Point::CloseKeeper,
];
const GUARD: &[Point] =
    &[Point::RaiseBarrier, Point::OpenBarrier, Point::LowerBarrier, Point::Wait];
const HELD: &[Point] = &[Point::Queue, Point::Release];
/// What each backend does in its own way.
const CHANGES: &[Point] = &[Point::Apply, Point::Undo];

const NFT: Way = Way { firewall: "iptables-nft", guard: "drop" };
const LEGACY: Way = Way { firewall: "iptables-legacy", guard: "hold" };
const NFTABLES: Way = Way { firewall: "nftables", guard: "drop" };
const MIGRATING: Way = Way { firewall: "nftables", guard: "auto" };

const LIMITS: &[Walk] = &[Walk {
    life: Life::Alone,
    way: NFT,
    points: &[&[Point::Thread, Point::Program, Point::Descriptors, Point::Disk]],
}];
const STARTING: &[Walk] = &[Walk { life: Life::Alone, way: NFT, points: &[START, HOST] }];
const RELOADING: &[Walk] = &[Walk { life: Life::Alone, way: NFT, points: &[GENERATION, GUARD] }];
const ON_LEGACY: &[Walk] =
    &[Walk { life: Life::Alone, way: LEGACY, points: &[CHANGES, GUARD, HELD] }];
const ON_NFTABLES: &[Walk] = &[
    Walk { life: Life::Alone, way: NFTABLES, points: &[CHANGES, GUARD] },
    Walk { life: Life::Alone, way: MIGRATING, points: &[&[Point::Sysctl, Point::RaiseBarrier]] },
];
const TAKING_OVER: &[Walk] = &[
    Walk { life: Life::Bare, way: NFTABLES, points: &[&[Point::Orphans, Point::EmbeddedPage]] },
    Walk {
        life: Life::Successor,
        way: NFT,
        points: &[&[Point::Meet, Point::Reserve, Point::Borrow, Point::Retire]],
    },
    Walk {
        life: Life::Predecessor,
        way: LEGACY,
        points: &[&[Point::Visit, Point::Mark, Point::Farewell]],
    },
    Walk {
        life: Life::SuccessorOfPlain,
        way: NFTABLES,
        points: &[&[Point::Look, Point::Duplicate, Point::LetGo]],
    },
];

fn is_first_or_last(step: &str, steps: &[String]) -> bool {
    let mut alike = steps.iter().filter(|other| point(other) == point(step));
    alike.next().is_some_and(|first| first == step) || alike.next_back().is_some_and(|l| l == step)
}

/// `HAPILOT_FAULTS=all`: each time that a step is come to, with every backend.
fn leaves_nothing_out() -> bool {
    match std::env::var("HAPILOT_FAULTS").as_deref() {
        Ok("all") => true,
        Ok(other) => panic!("HAPILOT_FAULTS={other}: all, or not set"),
        Err(_) => false,
    }
}

impl Walk {
    /// With nothing left out.
    fn widened(self) -> Vec<Self> {
        match (self.life, self.way) {
            // The other walk of this life, or of this backend, has the rest.
            (Life::Alone, NFT | MIGRATING) => vec![self],
            (Life::Alone, _) => vec![Self { points: &[Point::ALL], ..self }],
            _ => [NFT, LEGACY, NFTABLES].map(|way| Self { way, ..self }).into(),
        }
    }

    fn trials(self, fault: Fault, all: bool) -> Vec<Trial> {
        let Self { life, way, points } = self;
        let (steps, before) = steps(life, way);
        let before = Arc::new(before);
        let wanted: BTreeSet<&str> = points.concat().iter().map(|point| point.name()).collect();
        let come_to: BTreeSet<&str> = steps.iter().map(|step| point(step)).collect();
        let missed: Vec<_> = wanted.difference(&come_to).collect();
        assert!(all || missed.is_empty(), "{life:?} {way:?} did not come to {missed:?}");
        let wanted = steps.iter().filter(|step| wanted.contains(point(step)));
        let worth = wanted
            .filter(|step| all || fault.is_new_at(step, way) || is_first_or_last(step, &steps))
            .enumerate();
        let both = all && fault == Fault::Kill;
        let trials = worth.flat_map(|(turn, step)| {
            let one = [CleanUp::at(turn)];
            let clean_ups = if both { CleanUp::BOTH.to_vec() } else { one.to_vec() };
            let (step, before) = (step.clone(), Arc::clone(&before));
            clean_ups.into_iter().map(move |clean_up| Trial {
                life,
                way,
                step: step.clone(),
                fault,
                clean_up,
                before: Arc::clone(&before),
            })
        });
        trials.collect()
    }
}

fn walk(walks: &[Walk], fault: Fault) {
    let all = leaves_nothing_out();
    let walks: Vec<Walk> =
        if all { walks.iter().flat_map(|walk| walk.widened()).collect() } else { walks.to_vec() };
    let trials: Vec<Trial> = walks.into_iter().flat_map(|walk| walk.trials(fault, all)).collect();
    let (lives, missed) = (trials.len(), AtomicUsize::new(0));
    let seats = Seats::new(SEATS);
    side_by_side(LIVES, trials, |trial| {
        if !live(trial, &seats) {
            missed.fetch_add(1, Ordering::Relaxed);
        }
    });
    let missed = missed.into_inner();
    eprintln!("{fault:?}: {lives} lives, {missed} of them without");
    assert!(missed * 10 <= lives, "{missed} of {lives} did not come to their fault");
}

macro_rules! walks {
    ($($name:ident: $walks:expr, $fault:ident;)*) => {
        $(
            #[test]
            fn $name() {
                walk($walks, Fault::$fault);
            }
        )*
    };
}

walks! {
    every_step_of_the_host_fails: STARTING, Fail;
    every_step_of_a_generation_fails: RELOADING, Fail;
    every_step_fails_with_iptables_legacy: ON_LEGACY, Fail;
    every_step_fails_with_nftables: ON_NFTABLES, Fail;
    every_step_fails_when_taking_over: TAKING_OVER, Fail;
    everything_that_a_limit_may_refuse_is_refused: LIMITS, Fail;
    every_program_hangs: LIMITS, Hang;
    every_step_at_a_limit_is_the_last: LIMITS, Kill;
    every_step_of_the_host_panics: STARTING, Panic;
    every_step_of_a_generation_panics: RELOADING, Panic;
    every_step_panics_with_nftables: ON_NFTABLES, Panic;
    every_step_panics_when_taking_over: TAKING_OVER, Panic;
    every_step_of_the_host_hangs: STARTING, Hang;
    every_step_of_a_generation_hangs: RELOADING, Hang;
    every_step_hangs_with_iptables_legacy: ON_LEGACY, Hang;
    every_step_hangs_with_nftables: ON_NFTABLES, Hang;
    every_step_hangs_when_taking_over: TAKING_OVER, Hang;
    every_step_of_the_host_is_the_last: STARTING, Kill;
    every_step_of_a_generation_is_the_last: RELOADING, Kill;
    every_step_is_the_last_with_iptables_legacy: ON_LEGACY, Kill;
    every_step_is_the_last_with_nftables: ON_NFTABLES, Kill;
    every_step_is_the_last_when_taking_over: TAKING_OVER, Kill;
}

#[test]
fn no_point_is_left_out() {
    let walks = [LIMITS, STARTING, RELOADING, ON_LEGACY, ON_NFTABLES, TAKING_OVER];
    let walked: BTreeSet<Point> =
        walks.into_iter().flatten().flat_map(|walk| walk.points.concat()).collect();
    let left_out: Vec<_> = Point::ALL.iter().filter(|point| !walked.contains(point)).collect();
    assert!(left_out.is_empty(), "{left_out:?}");
}
