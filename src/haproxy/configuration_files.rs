//! Acts: finds and reads the files of a configuration, as `haproxy -f` would.
//!
//! Only regular files are read: a pipe gives its text once, and that once is HAProxy's.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Access, access};

use super::configuration::Configuration;
use super::configuration::reader::Reader;
use crate::fault::{self, Point};

/// Names of descriptors, which HAProxy does not have: hapilot starts it anew at each reload.
const DESCRIPTORS: [&str; 4] = ["/dev/stdin", "/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"];

/// Whether each generation could read the configuration here, or why only the first one.
pub fn readable_again(path: &Path) -> Result<(), String> {
    let mend = "mount a file: docker run -v ./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro";
    let target = fs::read_link(path).unwrap_or_default();
    let is_descriptor = |path: &Path| DESCRIPTORS.iter().any(|name| path.starts_with(name));
    if is_descriptor(path) || is_descriptor(&target) {
        let name = if path.starts_with("/dev/stdin") || target.ends_with("fd/0") {
            "standard input"
        } else {
            "a descriptor"
        };
        return Err(format!("{name} cannot be read again at a reload: {mend}"));
    }
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let empty = path == Path::new("/dev/null");
    if metadata.is_file() || metadata.is_dir() || empty {
        return Ok(());
    }
    Err(format!("it is no file (a pipe?) and cannot be read again at a reload: {mend}"))
}

/// Whether HAProxy could read its configuration here, or why not.
pub fn usable(path: &Path) -> Result<(), String> {
    readable_again(path)?;
    let files = files(path).map_err(|error| reason(&error))?;
    if files.is_empty() {
        return Err("there is no *.cfg file in that directory".into());
    }
    for file in files {
        access(&file, Access::READ_OK).map_err(|error| {
            format!("cannot read {}: {}", file.display(), reason(&error.into()))
        })?;
    }
    Ok(())
}

/// Reads all of them as HAProxy would. `directory` is where `-C` says that relative paths begin.
pub fn read(
    paths: &[PathBuf],
    directory: Option<&Path>,
    reader: &Reader,
) -> anyhow::Result<Configuration> {
    let mut texts = Vec::new();
    for path in paths {
        let path = directory.map_or_else(|| path.clone(), |directory| directory.join(path));
        let files = files(&path).with_context(|| format!("look at {}", path.display()))?;
        for file in files.iter().filter(|file| file.is_file()) {
            let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
            texts.push((file.clone(), String::from_utf8_lossy(&text).into_owned()));
        }
    }
    Ok(reader.read(&texts))
}

/// What is in all of them, in the order in which HAProxy reads them. What cannot be read is left out.
#[must_use]
pub fn texts(paths: &[PathBuf], directory: Option<&Path>) -> Vec<String> {
    let whole = |path: &PathBuf| directory.map_or_else(|| path.clone(), |at| at.join(path));
    let files = paths.iter().map(whole).flat_map(|path| files(&path).unwrap_or_default());
    let read =
        |file: PathBuf| fs::read(file).map(|text| String::from_utf8_lossy(&text).into_owned());
    files.filter(|file| file.is_file()).filter_map(|file| read(file).ok()).collect()
}

/// The files of a configuration as they were, in a directory that is removed with this. What they
/// name by a path (certificates, maps) is not in it.
#[derive(Debug)]
pub struct Copies {
    directory: PathBuf,
    /// In the order of the originals.
    pub files: Vec<PathBuf>,
}

impl Copies {
    pub fn make(
        paths: &[PathBuf],
        directory: Option<&Path>,
        into: PathBuf,
    ) -> anyhow::Result<Self> {
        let made = fault::at(Point::Copies).and_then(|()| fs::create_dir(&into));
        made.with_context(|| format!("make {}", into.display()))?;
        let mut copies = Self { directory: into, files: Vec::new() };
        copies.fill(paths, directory)?;
        Ok(copies)
    }

    fn fill(&mut self, paths: &[PathBuf], directory: Option<&Path>) -> anyhow::Result<()> {
        for path in paths {
            let path = directory.map_or_else(|| path.clone(), |directory| directory.join(path));
            for file in files(&path).with_context(|| format!("look at {}", path.display()))? {
                anyhow::ensure!(file.is_file(), "{} can be read only once", file.display());
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let copy = self.directory.join(format!("{:04}-{name}", self.files.len()));
                fs::copy(&file, &copy).with_context(|| format!("copy {}", file.display()))?;
                self.files.push(copy);
            }
        }
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The path itself, or of a directory its regular files `*.cfg` in lexical order, without those
/// that begin with a dot.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let (name, file) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        if is_part(&name) && fs::metadata(&file)?.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether HAProxy reads a file of that name in a directory.
#[must_use]
pub fn is_part(name: &OsString) -> bool {
    !name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(b".cfg")
}

/// Without Rust's "(os error 2)", which tells an operator nothing.
fn reason(error: &io::Error) -> String {
    let text = error.to_string().to_lowercase();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::configuration::environment::Environment;
    use crate::haproxy::version::Build;

    fn reader() -> Reader {
        Reader { build: Build::oldest(), environment: Environment::default() }
    }

    #[test]
    fn copies_keep_the_order_and_the_text() {
        let dir = tree(&[("b.cfg", "second"), ("a.cfg", "first"), ("c.txt", "no")]);
        let alone = tree(&[("a.cfg", "third")]);
        let into = tempfile::tempdir().unwrap();
        let paths = [dir.path().to_owned(), alone.path().join("a.cfg")];
        let copies = Copies::make(&paths, None, into.path().join("new")).unwrap();
        let read = |file: &PathBuf| fs::read_to_string(file).unwrap();
        let texts: Vec<_> = copies.files.iter().map(read).collect();
        assert_eq!(texts, ["first", "second", "third"]);
        let device = Copies::make(&["/dev/null".into()], None, into.path().join("other"));
        assert!(device.is_err());
        drop(copies);
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0, "nothing is left");
    }

    fn tree(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in entries {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_file_and_a_directory_with_configuration_are_usable() {
        let dir = tree(&[("a.cfg", "")]);
        assert_eq!(usable(dir.path()), Ok(()));
        assert_eq!(usable(&dir.path().join("a.cfg")), Ok(()));
        assert_eq!(usable(Path::new("/dev/null")), Ok(()));
    }

    #[test]
    fn what_can_be_read_only_once_is_refused_by_name() {
        for (path, why) in [
            ("/dev/stdin", "standard input cannot be read again at a reload: mount a file"),
            ("/proc/self/fd/0", "a descriptor cannot be read again"),
            ("/dev/fd/63", "a descriptor cannot be read again"),
            ("/dev/zero", "it is no file"),
        ] {
            let said = readable_again(Path::new(path)).unwrap_err();
            assert!(said.starts_with(why), "{path}: {said}");
        }
        let dir = tree(&[]);
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(usable(&fifo).unwrap_err().starts_with("it is no file (a pipe?)"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/stdin", &link).unwrap();
        assert!(usable(&link).is_err());
    }

    #[test]
    fn what_haproxy_could_not_read_has_a_reason() {
        let dir = tree(&[("notes.txt", ""), (".hidden.cfg", "")]);
        assert_eq!(usable(dir.path()), Err("there is no *.cfg file in that directory".into()));
        let missing = dir.path().join("missing");
        assert_eq!(usable(&missing), Err("no such file or directory".into()));
        let circle = dir.path().join("circle.cfg");
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        assert_eq!(usable(&circle), Err("too many levels of symbolic links".into()));
    }

    #[test]
    fn an_unreadable_file_is_named_with_the_reason() {
        use rustix::process::{Uid, geteuid};
        use std::os::unix::fs::PermissionsExt;

        let dir = tree(&[("a.cfg", "")]);
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let file = dir.path().join("a.cfg");
        set(dir.path(), 0o755);
        set(&file, 0o000);
        // Root may read anything; a user is a property of the thread, so this one stops being root.
        let judge = || {
            if geteuid().is_root() {
                let nobody = Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            [usable(&file), usable(dir.path())]
        };
        let answers = std::thread::scope(|scope| scope.spawn(judge).join().unwrap());
        let expected = format!("cannot read {}: permission denied", file.display());
        assert_eq!(answers, [Err(expected.clone()), Err(expected)]);
    }

    #[test]
    fn all_files_are_read_in_haproxys_order() {
        let dir = tree(&[
            ("20.cfg", "global\n maxconn 20\n"),
            ("100.cfg", "global\n maxconn 100\n"),
            (".30.cfg", "global\n maxconn 30\n"),
            ("40.cfg.bak", "global\n maxconn 40\n"),
        ]);
        fs::create_dir(dir.path().join("50.cfg")).unwrap();
        let paths = ["/dev/null".into(), ".".into()];
        let read = read(&paths, Some(dir.path()), &reader()).unwrap();
        let maxconn = read.maxconn.unwrap();
        assert_eq!(maxconn.value, 20);
        assert!(maxconn.place.file.ends_with("20.cfg"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read(&["/no/such.cfg".into()], None, &reader()).unwrap_err();
        assert!(format!("{error:#}").starts_with("look at /no/such.cfg: No such file"));
    }
}
