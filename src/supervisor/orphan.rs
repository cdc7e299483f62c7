//! A HAProxy whose hapilot was killed and was not PID 1: on a host it lives on, and may be serving.
//!
//! To whoever starts next in the same place it is a HAProxy without hapilot like any other, with a
//! runtime socket that hands its listeners over.

use std::path::Path;

use crate::handover::takeover::plain::identity::is_haproxy;
use crate::problem::Problem;
use crate::process::procfs;
use crate::settings::Predecessors;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pid: i32,
    pub(super) generation: u32,
}

impl Orphan {
    pub(super) fn problem(self, wanted: &Predecessors) -> Problem {
        let pid = self.pid;
        let is_wanted = match wanted {
            Predecessors::None => false,
            Predecessors::Auto => true,
            Predecessors::Pids(pids) => pids.contains(&pid),
        };
        let mend = if is_wanted {
            "nothing: it is to be relieved".to_owned()
        } else {
            format!(
                "start this one again with HAPROXY_PIDS=auto, which relieves it without losing a \
                 connection; or end it with kill -USR1 {pid} once this one serves"
            )
        };
        let what = "of a hapilot that was killed is still there and may be serving";
        Problem::new(format!("HAProxy {pid} {what}"), mend)
    }
}

/// Those that were started with a generation's file of this run directory, before any of ours.
pub(super) fn orphans(run_directory: &Path) -> Vec<Orphan> {
    let generation = |word: &[u8]| {
        let file = Path::new(std::str::from_utf8(word).ok()?).strip_prefix(run_directory).ok()?;
        generation_in(file.to_str()?)
    };
    procfs::with_argument(generation)
        .into_iter()
        // An operator may be talking to its runtime socket.
        .filter(|(pid, _)| procfs::name(*pid).is_ok_and(|name| is_haproxy(&name)))
        .map(|(pid, generation)| Orphan { pid, generation })
        .collect()
}

/// Which generation's file that is.
pub(super) fn generation_in(file: &str) -> Option<u32> {
    file.strip_prefix("generation-")?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_its_generation() {
        for (file, generation) in [
            ("generation-1.sock", Some(1)),
            ("generation-12.d/1/haproxy.cfg", Some(12)),
            ("generation-x.cfg", None),
            ("generation-1", None),
            ("keeper.sock", None),
        ] {
            assert_eq!(generation_in(file), generation, "{file}");
        }
    }

    #[test]
    fn who_is_not_asked_to_relieve_it_is_told_how() {
        let orphan = Orphan { pid: 7, generation: 1 };
        for (wanted, told) in [
            (Predecessors::None, "HAPROXY_PIDS=auto"),
            (Predecessors::Pids(vec![8]), "kill -USR1 7"),
            (Predecessors::Pids(vec![8, 7]), "it is to be relieved"),
            (Predecessors::Auto, "it is to be relieved"),
        ] {
            let said = orphan.problem(&wanted).to_string();
            assert!(said.contains("HAProxy 7 ") && said.contains(told), "{said}");
        }
    }
}
