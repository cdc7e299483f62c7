//! Acts: what a container knows when it is started again, of having been relieved.

use std::path::Path;

use super::boot::Survey;
use crate::handover::takeover::marks;
use crate::handover::takeover::protocol::{Caller, Name, PROTOCOL};
use crate::host::preflight::RUN_DIRECTORY;
use crate::problem::Problem;
use crate::settings::Predecessors;

/// By whom the one that ran in this container before was relieved, if that one lives.
pub(super) async fn relieved(container: Option<&String>, relieves_all: bool) -> Option<String> {
    let run_directory = Path::new(RUN_DIRECTORY);
    let mark = marks::read(run_directory);
    if mark.is_none() && container.is_none() {
        return None;
    }
    // An instance of our own is not drawn yet; no one is asked to remember this name.
    let own = Name { instance: "-".to_owned(), container: container.cloned() };
    let living = marks::living(&caller(&own)).await;
    if let Some(by) = marks::relieved_by(&own, mark.as_ref(), &living) {
        return Some(format!("this container was relieved by hapilot {by}, which lives"));
    }
    if mark.is_some() || !marks::forgets(run_directory) {
        return None;
    }
    let by = marks::made_later(&own, marks::created(), relieves_all, &living)?;
    Some(format!(
        "hapilot {by} serves, in a container that was made after this one, which is taken for \
         relieved: /run is a tmpfs, where no mark of that could have stayed"
    ))
}

pub(super) fn caller(name: &Name) -> Caller {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Caller { protocol: PROTOCOL, name: name.clone(), version }
}

/// Started again, neither we nor whom we relieve would know of it.
pub(super) fn forgetful(survey: &Survey, container: Option<&String>) -> Option<Problem> {
    let relieves = survey.asked.settings.pids != Predecessors::None;
    let in_container = survey.findings.facts.pid_1 && container.is_none();
    (relieves && in_container && marks::forgets(Path::new(RUN_DIRECTORY))).then(|| {
        Problem::new(
            "/run is a tmpfs, and nothing else tells this container from others: once relieved and \
             started again, it would take the service back",
            "use restart: on-failure, or mount a volume on /run",
        )
    })
}
