//! The steps of start, reload, take-over and stop, and a switch by which a test makes one of them
//! fail, hang, panic, or stand still to be killed there: `HAPILOT_FAULT=lease@1=fail`, for the first time
//! that the step is come to, `lease@*=fail` for each time. Each step that is come to is told on stderr: so a test learns them all.
//!
//! Builds without `debug_assertions`, which every release is, have no such switch.

macro_rules! points {
    ($($(#[$explained:meta])* $point:ident = $name:literal,)*) => {
        /// A step that may fail, hang, or be our last.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[$explained])* $point,)*
        }

        impl Point {
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }
        }
    };
}

points! {
    // Start.
    Signals = "signals",
    Metrics = "metrics",
    Orphans = "orphans",
    Rights = "rights",
    RunDirectory = "run-directory",
    ControlSocket = "control-socket",
    /// The mark of one that was relieved.
    Unmark = "unmark",
    /// Files that a killed hapilot left.
    Leftovers = "leftovers",
    EmbeddedPage = "embedded-page",
    KeeperSocket = "keeper-socket",
    Lease = "lease",
    SuccessorsDoor = "successors-door",
    RuntimeDoor = "runtime-door",
    Syslog = "syslog",
    // What the kernel may refuse anywhere.
    Thread = "thread",
    /// A program of ours. Where it hangs, the program does, and not the thread that waits for it.
    Program = "program",
    /// Room for the descriptors of a reload.
    Descriptors = "descriptors",
    /// A file that takes another's place.
    Disk = "disk",
    // The host, in every chapter of a life.
    SetupLock = "setup-lock",
    /// A look at the rules that are there.
    Survey = "survey",
    Apply = "apply",
    Undo = "undo",
    /// A question to the kernel about rules and routes, or a change to them.
    Routing = "routing",
    Sysctl = "sysctl",
    /// What others change is listened for.
    Watch = "watch",
    // A generation.
    Copies = "copies",
    RuntimeSocket = "runtime-socket",
    Fragment = "fragment",
    Spawn = "spawn",
    Pidfd = "pidfd",
    Output = "output",
    /// A question to a HAProxy.
    Ask = "ask",
    Listeners = "listeners",
    Signal = "signal",
    Forget = "forget",
    // Reload.
    KeeperGives = "keeper-gives",
    Queue = "queue",
    RaiseBarrier = "raise-barrier",
    OpenBarrier = "open-barrier",
    LowerBarrier = "lower-barrier",
    /// For old listeners to be empty, to go, or to come back.
    Wait = "wait",
    Release = "release",
    // Take-over: the successor's side.
    Meet = "meet",
    Reserve = "reserve",
    Borrow = "borrow",
    Retire = "retire",
    /// A HAProxy without hapilot is looked at, gives a socket away, is told to go.
    Look = "look",
    Duplicate = "duplicate",
    LetGo = "let-go",
    // Take-over: the predecessor's side.
    Visit = "visit",
    Mark = "mark",
    // Stop.
    CloseKeeper = "close-keeper",
    Farewell = "farewell",
}

pub use self::switch::{at, instead, within};

#[cfg(debug_assertions)]
mod switch {
    use std::collections::BTreeMap;
    use std::io;
    use std::os::fd::AsFd;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::Point;
    use crate::haproxy::command_line::LAST_RESORT;

    const SWITCH: &str = "HAPILOT_FAULT";

    #[derive(Clone, Debug)]
    enum Fault {
        Fail,
        Hang,
        /// As a hang for everybody, not only for whoever waits for this step.
        Halt,
        /// As a bug of hapilot's would end it.
        Panic,
    }

    /// Who is to have which fault: `None` lets everything pass and only tells.
    type Order = Option<(String, Fault)>;

    /// `None`: nobody asked for anything.
    fn order() -> Option<&'static Order> {
        static ORDER: OnceLock<Option<Order>> = OnceLock::new();
        let read = || {
            // What hung once hangs for ever; that is not what is looked at.
            if std::env::args().nth(1).as_deref() == Some(LAST_RESORT) {
                return None;
            }
            let text = std::env::var(SWITCH).ok()?;
            let (step, fault) = text.rsplit_once('=').unwrap_or((&text, ""));
            let fault = match fault {
                "fail" => Some(Fault::Fail),
                "hang" => Some(Fault::Hang),
                "halt" => Some(Fault::Halt),
                "panic" => Some(Fault::Panic),
                _ => None,
            };
            Some(fault.map(|fault| (step.to_owned(), fault)))
        };
        ORDER.get_or_init(read).as_ref()
    }

    fn come_to(point: Point) -> Option<(String, Fault)> {
        static COUNTS: Mutex<BTreeMap<Point, u32>> = Mutex::new(BTreeMap::new());
        let order = order()?;
        let step = {
            let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(point).or_default();
            *count += 1;
            format!("{}@{count}", point.name())
        };
        let always = format!("{}@*", point.name());
        let is_meant = |at: &str| at == step || at == always;
        let fault = order.as_ref().filter(|(at, _)| is_meant(at)).map(|(_, fault)| fault.clone());
        let what = fault.as_ref().map_or_else(|| "step".to_owned(), |fault| format!("{fault:?}"));
        let line = format!("fault: {what} {step}\n");
        // Past the log, which may be what stands still.
        let _ = rustix::io::write(io::stderr().as_fd(), line.as_bytes());
        fault.map(|fault| (step, fault))
    }

    fn failed(step: &str) -> io::Error {
        io::Error::other(format!("fault at {step}"))
    }

    #[expect(clippy::panic, reason = "that is the fault that was asked for")]
    fn fail_badly(step: &str) -> ! {
        panic!("{}", failed(step))
    }

    fn stand_still() -> ! {
        loop {
            std::thread::park();
        }
    }

    /// A step that this thread does itself: where it hangs, so does the thread, as in a system call
    /// that does not come back.
    pub fn at(point: Point) -> io::Result<()> {
        match come_to(point) {
            None => Ok(()),
            Some((step, Fault::Fail)) => Err(failed(&step)),
            Some((_, Fault::Hang | Fault::Halt)) => stand_still(),
            Some((step, Fault::Panic)) => fail_badly(&step),
        }
    }

    /// What is to be run instead of a program: one that hangs.
    pub fn instead(point: Point) -> io::Result<Option<[&'static str; 2]>> {
        match come_to(point) {
            None => Ok(None),
            Some((step, Fault::Fail)) => Err(failed(&step)),
            Some((_, Fault::Hang)) => Ok(Some(["sleep", "infinity"])),
            Some((_, Fault::Halt)) => stand_still(),
            Some((step, Fault::Panic)) => fail_badly(&step),
        }
    }

    /// A step that is waited for: others go on meanwhile.
    pub async fn within(point: Point) -> io::Result<()> {
        match come_to(point) {
            None => Ok(()),
            Some((step, Fault::Fail)) => Err(failed(&step)),
            Some((_, Fault::Hang)) => std::future::pending().await,
            Some((_, Fault::Halt)) => stand_still(),
            Some((step, Fault::Panic)) => fail_badly(&step),
        }
    }
}

#[cfg(not(debug_assertions))]
mod switch {
    use std::io;

    use super::Point;

    #[expect(clippy::unnecessary_wraps, reason = "the other one fails")]
    #[inline]
    pub fn at(_: Point) -> io::Result<()> {
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the other one fails")]
    #[inline]
    pub fn instead(_: Point) -> io::Result<Option<[&'static str; 2]>> {
        Ok(None)
    }

    #[expect(clippy::unused_async, reason = "the other one waits")]
    #[inline]
    pub async fn within(_: Point) -> io::Result<()> {
        Ok(())
    }
}
