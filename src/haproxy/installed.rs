//! Acts: finds the `haproxy` that is installed and asks it what it is. Once, before anything is
//! changed on the host, so it may block.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};

use super::version::Build;
use crate::problem::Problem;
use crate::process::limits;
use crate::process::program::{NotEnded, Run};

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const UNSUITABLE: u8 = 69;

/// The first start in a container reads the program from a slow disk, perhaps.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub path: PathBuf,
    pub build: Build,
}

/// Why there is no `haproxy` to supervise, with the status to exit with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub status: u8,
    pub problem: Problem,
}

impl Unusable {
    fn new(status: u8, what: String, mend: &str) -> Self {
        Self { status, problem: Problem { what, mend: mend.to_owned() } }
    }
}

/// Looks for `haproxy` in the directories of `search_path`, the value of `PATH`.
pub fn find(search_path: &OsStr) -> Result<Installed, Unusable> {
    let mut refused = None;
    for directory in std::env::split_paths(search_path) {
        let path = directory.join("haproxy");
        if !path.is_file() {
            continue;
        }
        if access(&path, Access::EXEC_OK).is_ok() {
            return ask(&path);
        }
        refused.get_or_insert(path);
    }
    Err(match refused {
        Some(path) => not_executable(&path),
        None => Unusable::new(
            NOT_FOUND,
            format!("there is no haproxy in {}", search_path.display()),
            "use an image that has HAProxy, or put its directory into PATH",
        ),
    })
}

/// Runs `haproxy -vv`.
pub fn ask(path: &Path) -> Result<Installed, Unusable> {
    let shown = path.display();
    let output =
        Run::new(path, LIMIT).arguments(["-vv"]).to_end().map_err(|error| silent(path, &error))?;
    let build = Build::parse(&String::from_utf8_lossy(&output.output)).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.words);
        let said = said.lines().next().unwrap_or("nothing");
        Unusable::new(
            NOT_EXECUTABLE,
            format!("{shown} -vv does not answer as HAProxy does ({}, {said})", output.status),
            "see what that program is",
        )
    })?;
    if !build.version.supported() {
        return Err(Unusable::new(
            UNSUITABLE,
            format!("{shown} is HAProxy {}", build.version),
            "use HAProxy 2.6 or newer",
        ));
    }
    Ok(Installed { path: path.to_owned(), build })
}

/// Why there is no answer.
fn silent(path: &Path, why: &NotEnded) -> Unusable {
    let shown = path.display();
    let NotEnded::NotStarted { error, .. } = why else {
        return Unusable::new(
            NOT_EXECUTABLE,
            format!("{shown} -vv does not answer: {why}"),
            "see what that program is, and whether its disk is there",
        );
    };
    match error.kind() {
        // The file is there, so it is the loader or the interpreter that is not.
        io::ErrorKind::NotFound => Unusable::new(
            NOT_FOUND,
            format!("{shown} cannot be loaded: {error}"),
            "use an haproxy that was built for this image (its C library is missing here)",
        ),
        io::ErrorKind::PermissionDenied => not_executable(path),
        _ => Unusable::new(
            NOT_EXECUTABLE,
            format!("{shown} cannot be executed: {error}"),
            limits::advice(error).unwrap_or("use an haproxy that was built for this machine"),
        ),
    }
}

fn not_executable(path: &Path) -> Unusable {
    Unusable::new(
        NOT_EXECUTABLE,
        format!("{} is not executable", path.display()),
        "chmod a+x it, and see that its file system is not mounted noexec",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// A directory with a `haproxy` of this text and mode. Another process writes it: a descriptor
    /// of ours, copied by a fork in a parallel test, would make executing it fail (ETXTBSY).
    fn pretend(text: &str, mode: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (draft, path) = (dir.path().join("draft"), dir.path().join("haproxy"));
        fs::write(&draft, text).unwrap();
        let mut install = Command::new("install");
        let status = install.arg("--mode").arg(mode).args([&draft, &path]).status().unwrap();
        assert!(status.success());
        dir
    }

    fn refusal(dir: &tempfile::TempDir) -> Unusable {
        find(dir.path().as_os_str()).unwrap_err()
    }

    #[test]
    fn the_real_haproxy_is_found_and_says_what_it_is() {
        let installed = find(&std::env::var_os("PATH").unwrap()).unwrap();
        assert!(installed.path.is_absolute());
        assert!(installed.build.version.supported());
        assert!(installed.build.has("TPROXY"));
    }

    #[test]
    fn no_haproxy_is_127() {
        let empty = tempfile::tempdir().unwrap();
        let unusable = refusal(&empty);
        assert_eq!(unusable.status, 127);
        assert!(unusable.problem.what.starts_with("there is no haproxy in "));
    }

    #[test]
    fn one_that_may_not_be_executed_is_126() {
        let unusable = refusal(&pretend("#!/bin/sh\n", "644"));
        assert_eq!(unusable.status, 126);
        assert!(unusable.problem.what.ends_with("is not executable"));
    }

    #[test]
    fn one_that_is_not_executable_is_passed_over_for_one_that_is() {
        let (wrong, right) = (
            pretend("", "644"),
            pretend("#!/bin/sh\necho 'HAProxy version 3.2.1 2026/01/01'\n", "755"),
        );
        let path = std::env::join_paths([wrong.path(), right.path()]).unwrap();
        assert_eq!(find(&path).unwrap().path, right.path().join("haproxy"));
    }

    #[test]
    fn one_whose_loader_is_missing_is_127_and_garbage_is_126() {
        let unusable = refusal(&pretend("#!/no/such/loader\n", "755"));
        assert_eq!(unusable.status, 127);
        assert!(unusable.problem.what.contains("cannot be loaded"), "{}", unusable.problem);
        let unusable = refusal(&pretend("\u{1}garbage", "755"));
        assert_eq!(unusable.status, 126);
    }

    #[test]
    fn another_program_of_that_name_is_126_and_an_old_haproxy_is_69() {
        let unusable = refusal(&pretend("#!/bin/sh\necho hello\n", "755"));
        assert_eq!(unusable.status, 126);
        assert!(unusable.problem.what.contains("does not answer as HAProxy"));
        let old = pretend("#!/bin/sh\necho 'HA-Proxy version 2.2.9 2021/01/01'\n", "755");
        assert_eq!(refusal(&old).status, 69);
    }
}
