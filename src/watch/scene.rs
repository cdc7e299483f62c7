//! Acts: looks at the files of a configuration, and at every name on the way to them.
//!
//! A path is followed name by name through symbolic links: a file may come to differ because a link
//! in the middle of its path is swapped (`..data` of Kubernetes and Docker), or because a directory
//! is put in another's place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::haproxy::configuration_files;
use crate::haproxy::judge::Judge;

/// As the kernel has it (`path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// Where something would stir.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// Names that matter in a directory.
    pub(super) names: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// Directories in which each name matters that does not begin with a dot.
    pub(super) whole: BTreeSet<PathBuf>,
    /// A file that is mounted by itself is written to through another directory than ours.
    pub(super) files: BTreeSet<PathBuf>,
}

/// What tells a file from the one that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Every file, whether it is there or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(BTreeMap<PathBuf, Option<Print>>);

#[derive(Debug, Default)]
pub(super) struct Scene {
    pub(super) places: Places,
    pub(super) seen: Seen,
}

impl Seen {
    pub(super) fn count(&self) -> usize {
        self.0.values().flatten().count()
    }

    /// A file that is not there is as good as one that nobody names.
    pub(super) fn differs_from(&self, before: &Self) -> Vec<PathBuf> {
        let print = |seen: &Self, path: &PathBuf| seen.0.get(path).cloned().flatten();
        let all: BTreeSet<&PathBuf> = self.0.keys().chain(before.0.keys()).collect();
        let differs = all.into_iter().filter(|path| print(self, path) != print(before, path));
        differs.cloned().collect()
    }
}

impl Scene {
    pub(super) fn survey(judge: &Judge) -> Self {
        let mut scene = Self::default();
        let current = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let begin = current.join(judge.directory.as_deref().unwrap_or(Path::new("")));
        let mut directories = vec![begin.clone()];
        for path in &judge.paths {
            let path = begin.join(path);
            scene.path(&path, configuration_files::is_part);
            // `default-path config` and `parent`.
            let own = if path.is_dir() { Some(&*path) } else { path.parent() };
            directories.extend(
                own.into_iter().flat_map(|own| own.ancestors().take(2)).map(Path::to_owned),
            );
        }
        let named = judge.named(&directories);
        for name in &named.files {
            for place in named.places(name, &directories) {
                scene.path(&place, |name| !name.as_bytes().starts_with(b"."));
            }
        }
        scene
    }

    /// A file, or those in a directory that count.
    fn path(&mut self, path: &Path, counts: impl Fn(&OsString) -> bool) {
        let Some(real) = self.follow(path) else {
            self.seen.0.insert(path.to_owned(), None);
            return;
        };
        if !real.is_dir() {
            self.file(path, real);
            return;
        }
        self.places.whole.insert(real.clone());
        let entries = fs::read_dir(&real).into_iter().flatten().flatten();
        for name in entries.map(|entry| entry.file_name()).filter(counts) {
            let entry = path.join(&name);
            if let Some(real) = self.follow(&real.join(&name)).filter(|real| real.is_file()) {
                self.file(&entry, real);
            }
        }
    }

    fn file(&mut self, path: &Path, real: PathBuf) {
        let print = fs::metadata(&real).ok().map(|file| Print {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed: (file.mtime(), file.mtime_nsec()),
        });
        self.seen.0.insert(path.to_owned(), print);
        self.places.files.insert(real);
    }

    /// Notes every name on the way; the answer is what is at its end, if it is there.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let mut left: VecDeque<OsString> = names(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            self.places.names.entry(at.clone()).or_default().insert(name.clone());
            match fs::read_link(at.join(&name)) {
                Ok(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return None;
                    }
                    if target.is_absolute() {
                        at = "/".into();
                    }
                    names(&target).into_iter().rev().for_each(|name| left.push_front(name));
                }
                // It is there, and no link.
                Err(error) if error.kind() == ErrorKind::InvalidInput => at.push(name),
                Err(_) => return None,
            }
        }
        Some(at)
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_name_on_the_way_counts_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/a.cfg"), "").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/a.cfg", root.join("a.cfg")).unwrap();
        let mut scene = Scene::default();
        scene.path(&root.join("a.cfg"), |_| true);
        let names = |directory: &str| {
            let names = scene.places.names.get(&root.join(directory));
            names.into_iter().flatten().map(|n| n.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((names(""), names("..1")), ("..1 ..data a.cfg".to_owned(), "a.cfg".to_owned()));
        assert_eq!(scene.places.files, [root.join("..1/a.cfg")].into());
        assert_eq!(scene.seen.count(), 1);
    }

    #[test]
    fn what_comes_goes_or_is_another_differs() {
        let directory = tempfile::tempdir().unwrap();
        let look = || {
            let mut scene = Scene::default();
            scene.path(directory.path(), configuration_files::is_part);
            scene.seen
        };
        let names = |seen: &Seen, before: &Seen| {
            let all = seen.differs_from(before);
            all.iter().map(|p| p.file_name().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let empty = look();
        let file = directory.path().join("a.cfg");
        fs::write(&file, "1").unwrap();
        fs::write(directory.path().join(".b.cfg"), "1").unwrap();
        let one = look();
        assert_eq!(names(&one, &empty), ["a.cfg"]);
        assert_eq!(names(&empty, &one), ["a.cfg"]);
        assert_eq!(names(&look(), &one), [""; 0]);
        fs::write(directory.path().join("new"), "2").unwrap();
        fs::rename(directory.path().join("new"), &file).unwrap();
        assert_eq!(names(&look(), &one), ["a.cfg"]);
    }

    #[test]
    fn links_in_a_circle_and_what_is_not_there_are_nothing() {
        let directory = tempfile::tempdir().unwrap();
        symlink("circle", directory.path().join("circle")).unwrap();
        let mut scene = Scene::default();
        for name in ["circle", "circle/a", "none/a", "none/../b"] {
            scene.path(&directory.path().join(name), |_| true);
        }
        assert_eq!(scene.seen.count(), 0);
        assert!(scene.places.files.is_empty());
    }
}
