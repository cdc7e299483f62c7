//! Acts: makes directories that a configuration takes for granted and a fresh container lacks, such
//! as `/run/haproxy` of Debian's stock configuration.
//!
//! Nothing but an empty directory is made, and only where no user but root and ours could have put
//! a link on the way.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tracing::{info, warn};

use super::configuration::{Directory, Found};
use crate::problem::Problem;

const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Those that are not there.
#[must_use]
pub fn missing(wanted: &[Found<Directory>]) -> Vec<Found<Directory>> {
    let lacks = |found: &&Found<Directory>| {
        let path = &found.value.path;
        path.is_absolute() && fs::metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound)
    };
    wanted.iter().filter(lacks).cloned().collect()
}

/// Those that `make` will not make.
#[must_use]
pub fn problems(missing: &[Found<Directory>]) -> Vec<Problem> {
    let told = |found: &Found<Directory>| Some(problem(found, &unsafe_way(&found.value.path)?));
    missing.iter().filter_map(told).collect()
}

pub fn make(missing: &[Found<Directory>]) {
    for found in missing {
        let Directory { path, of } = &found.value;
        if unsafe_way(path).is_some() {
            // Told by `problems`.
            continue;
        }
        match fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
            Ok(()) => info!("made the directory {}, for {of} at {}", path.display(), found.place),
            Err(error) => warn!("{}", problem(found, &error.to_string())),
        }
    }
}

fn problem(found: &Found<Directory>, why: &str) -> Problem {
    let Found { value: Directory { path, of }, place } = found;
    let shown = path.display();
    Problem::new(
        format!(
            "{place}: the directory {shown} of {of} is missing, and hapilot does not make it: {why}"
        ),
        format!("docker run --tmpfs {shown}, or mount a directory there with -v"),
    )
}

/// Why something else than a directory of ours could come about there.
fn unsafe_way(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|above| fs::symlink_metadata(above).is_ok())?;
    let real = match fs::canonicalize(there) {
        Ok(real) => real,
        Err(error) => return Some(format!("{}: {error}", there.display())),
    };
    if !real.is_dir() {
        return Some(format!("{} is not a directory", there.display()));
    }
    let mut way: Vec<PathBuf> = there.ancestors().map(Path::to_owned).collect();
    way.extend(real.ancestors().map(Path::to_owned));
    way.iter().find_map(|at| {
        let metadata = fs::symlink_metadata(at).ok()?;
        let trusted = metadata.uid() == 0 || metadata.uid() == geteuid().as_raw();
        // In a sticky directory another user cannot replace what is there.
        let kept = metadata.mode() & STICKY != 0 && *at != real && at != there;
        let open = !metadata.is_symlink() && metadata.mode() & WRITABLE_BY_OTHERS != 0 && !kept;
        (!trusted || open).then(|| format!("other users may write to {}", at.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_is_not_made_where_another_user_could_have_put_a_link() {
        let open = tempfile::tempdir().unwrap();
        fs::set_permissions(open.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(unsafe_way(&open.path().join("a/b")).unwrap().starts_with("other users may write"));
        let link = open.path().join("link");
        symlink("/none", &link).unwrap();
        assert!(unsafe_way(&link.join("a")).is_some());
        assert_eq!(unsafe_way(Path::new("/none/such")), None);
        let own = tempfile::tempdir_in(&open).unwrap();
        assert_eq!(unsafe_way(&own.path().join("a")), None);
        assert!(unsafe_way(Path::new("/dev/null/such")).unwrap().contains("not a directory"));
    }
}
