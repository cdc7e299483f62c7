//! Decides: how the listening sockets of a plain HAProxy come over, and why not better. Values only.

use super::super::predecessor::Rung;

/// What came of trying the rungs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// All its descriptors can be seen.
    pub sees: bool,
    /// A stats socket that handed sockets over.
    pub handed_over: Option<String>,
    /// Stats sockets that answered, but hand nothing over.
    pub keep_theirs: Vec<String>,
    /// Why a stats socket that seems to be there did not answer.
    pub silent: Vec<String>,
    /// How many sockets were taken out of its table of descriptors.
    pub taken: usize,
    /// Why one could not be taken.
    pub refused: Option<String>,
}

#[must_use]
pub fn rung(tried: &Tried) -> Rung {
    if tried.refused.is_some() || (tried.handed_over.is_none() && tried.taken == 0) {
        Rung::Separate
    } else if tried.taken > 0 {
        Rung::PidfdGetfd
    } else {
        Rung::StatsSocket
    }
}

/// For each rung above that one: why not, and what to do.
#[must_use]
pub fn why_not_better(tried: &Tried) -> Vec<String> {
    let rung = rung(tried);
    let mut reasons = Vec::new();
    if matches!(rung, Rung::PidfdGetfd | Rung::Separate) {
        reasons.push(about_stats_socket(tried));
    }
    if rung == Rung::Separate {
        reasons.push(match &tried.refused {
            Some(why) => {
                format!("pidfd_getfd: {why}: run this container with --cap-add=SYS_PTRACE")
            }
            None => "its descriptors cannot be seen (another user's, or with more rights than \
                     ours): run this container with --cap-add=SYS_PTRACE"
                .to_owned(),
        });
    }
    reasons
}

fn about_stats_socket(tried: &Tried) -> String {
    const ADD: &str = "add \"expose-fd listeners\" to it and reload it";
    if let Some(name) = &tried.handed_over {
        return format!("its stats socket {name} did not hand over everything");
    }
    if !tried.keep_theirs.is_empty() {
        let names = tried.keep_theirs.join(", ");
        return format!("its stats socket {names} does not hand sockets over: {ADD}");
    }
    if !tried.silent.is_empty() {
        return format!("no stats socket answered: {}", tried.silent.join("; "));
    }
    if tried.sees {
        "it has no stats socket: add \"stats socket PATH expose-fd listeners\" to its global \
         section and reload it"
            .to_owned()
    } else {
        "no stats socket of it can be reached: mount its directory at the same place here, or run \
         this container with --cap-add=SYS_PTRACE"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried() -> Tried {
        Tried { sees: true, ..Tried::default() }
    }

    #[test]
    fn each_rung_is_taken_when_those_above_are_not_to_be_had() {
        let socket = Some("/run/a.sock".to_owned());
        let refused = Some("Operation not permitted".to_owned());
        for (tried, expected, reasons) in [
            (Tried { handed_over: socket.clone(), ..tried() }, Rung::StatsSocket, 0),
            (Tried { handed_over: socket.clone(), sees: false, ..tried() }, Rung::StatsSocket, 0),
            (Tried { taken: 3, ..tried() }, Rung::PidfdGetfd, 1),
            (Tried { handed_over: socket.clone(), taken: 1, ..tried() }, Rung::PidfdGetfd, 1),
            (Tried { refused: refused.clone(), ..tried() }, Rung::Separate, 2),
            (Tried { handed_over: socket, refused, ..tried() }, Rung::Separate, 2),
            (Tried { sees: false, ..tried() }, Rung::Separate, 2),
        ] {
            assert_eq!(rung(&tried), expected, "{tried:?}");
            assert_eq!(why_not_better(&tried).len(), reasons, "{tried:?}");
        }
    }

    #[test]
    fn a_reason_says_what_to_do() {
        let lacks = Tried { keep_theirs: vec!["/run/a.sock".to_owned()], ..tried() };
        let said = why_not_better(&lacks).concat();
        assert!(said.contains("/run/a.sock") && said.contains("expose-fd listeners"), "{said}");
        assert!(said.contains("SYS_PTRACE"), "{said}");
    }
}
