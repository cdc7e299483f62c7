//! Acts: writes files, also in a directory that another user may change, such as the one where the
//! operator has HAProxy's server state saved.
//!
//! What is there is never opened: a fresh file is made beside it and takes its place. So no link that
//! is there is followed. On the way to the directory a link is followed only if it is in a directory
//! that no other user may change.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Error, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RawMode, Stat, fchmod, fchown, fstat, mkdirat, openat, readlinkat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::fault::{self, Point};

/// As the kernel's own (`path_resolution(7)`).
const MOST_LINKS: usize = 40;
const WRITABLE_FOR_OTHERS: RawMode = 0o022;
const STICKY: RawMode = 0o1000;

/// Which users may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    Owner,
    All,
}

/// Puts this text in the place of what is there. Where that fails, what is there stays, and nothing
/// else is left.
pub fn replace(path: &Path, text: &[u8], readers: Readers) -> io::Result<()> {
    fault::at(Point::Disk)?;
    let name = path.file_name().ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
    let directory = directory(path.parent().unwrap_or(Path::new("")))?;
    let fresh = beside(name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(&directory, &fresh, flags, Mode::RUSR | Mode::WUSR)?);
    let written = write(file, text, readers)
        .and_then(|()| renameat(&directory, &fresh, &directory, name).map_err(Error::from));
    if written.is_err() {
        // What is not there any more is not left either.
        let _ = unlinkat(&directory, &fresh, AtFlags::empty());
    }
    written
}

/// Makes the directory, or takes the one that is there, for our own user alone.
pub fn private_directory(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
    let parent = directory(path.parent().unwrap_or(Path::new("")))?;
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let there = directory(path)?;
    // What is held by its path alone has no rights that could be changed.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let there = openat(&there, ".", flags, Mode::empty())?;
    let owner = fstat(&there)?.st_uid;
    if owner != geteuid().as_raw() {
        fchown(&there, Some(geteuid()), Some(getegid())).map_err(|errno| {
            Error::new(errno.kind(), format!("it belongs to user {owner}: {errno}"))
        })?;
    }
    Ok(fchmod(&there, Mode::RWXU)?)
}

fn write(mut file: File, text: &[u8], readers: Readers) -> io::Result<()> {
    if readers == Readers::All {
        fchmod(&file, Mode::from_raw_mode(0o644))?;
    }
    file.write_all(text)
}

/// A name that no other process can foresee.
fn beside(name: &OsStr) -> io::Result<OsString> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    // The name of a file has 255 bytes at most.
    let begin = &name.as_bytes()[..name.len().min(200)];
    let end = format!(".{:016x}", u64::from_ne_bytes(bytes));
    Ok(OsString::from_vec([b".", begin, end.as_bytes()].concat()))
}

pub(super) fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: &OwnedFd, name: &OsStr| openat(at, name, flags, Mode::empty());
    let mut at = openat(CWD, ".", flags, Mode::empty())?;
    let mut way = steps(path);
    let mut links = 0;
    while let Some(step) = way.pop() {
        at = match open(&at, &step) {
            Ok(next) => next,
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let target = readlinkat(&at, &step, Vec::new()).map_err(|_| Errno::NOTDIR)?;
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP.into());
                }
                ours_alone(&at, &step)?;
                way.extend(steps(Path::new(OsStr::from_bytes(target.to_bytes()))));
                continue;
            }
            Err(errno) => return Err(errno.into()),
        };
    }
    Ok(at)
}

/// The last one first. The root is one as well.
fn steps(path: &Path) -> Vec<OsString> {
    let step = |component: Component<'_>| component.as_os_str().to_owned();
    path.components().rev().map(step).collect()
}

/// Whether no user but root and ours can have put that link there.
fn ours_alone(directory: impl AsFd, link: &OsStr) -> io::Result<()> {
    let there = fstat(&directory)?;
    let link_there = statat(&directory, link, AtFlags::SYMLINK_NOFOLLOW)?;
    let closed = there.st_mode & WRITABLE_FOR_OTHERS == 0;
    let sticky = there.st_mode & STICKY != 0 && is_trusted(&link_there);
    if is_trusted(&there) && (closed || sticky) {
        return Ok(());
    }
    let why = format!("{} is a link that another user may change", link.display());
    Err(Error::new(ErrorKind::PermissionDenied, why))
}

fn is_trusted(file: &Stat) -> bool {
    [0, geteuid().as_raw()].contains(&file.st_uid)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const HAPROXY: u32 = 65534;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_there_is_replaced_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, file) = (directory.path().join("victim"), directory.path().join("state"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &file).unwrap();
        for (text, readers, expected) in
            [("one", Readers::All, 0o644), ("two", Readers::Owner, 0o600)]
        {
            replace(&file, text.as_bytes(), readers).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert_eq!(mode(&file), expected);
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_link_on_the_way_is_followed_where_no_other_user_can_have_put_it() {
        let directory = tempfile::tempdir().unwrap();
        let (theirs, precious) =
            (directory.path().join("theirs"), directory.path().join("precious"));
        fs::create_dir(&theirs).unwrap();
        fs::create_dir(&precious).unwrap();
        // A relative one, and one in the other direction.
        symlink("precious", directory.path().join("ours")).unwrap();
        symlink(&precious, theirs.join("sub")).unwrap();
        replace(&directory.path().join("ours/state"), b"1", Readers::Owner).unwrap();
        assert_eq!(fs::read_to_string(precious.join("state")).unwrap(), "1");
        replace(&theirs.join("sub/state"), b"2", Readers::Owner).unwrap();
        chown(&theirs, Some(HAPROXY), Some(HAPROXY)).unwrap();
        let refused = replace(&theirs.join("sub/state"), b"3", Readers::Owner).unwrap_err();
        assert!(refused.to_string().contains("sub is a link that another user may change"));
        assert_eq!(fs::read_to_string(precious.join("state")).unwrap(), "2");
        // A file of its own there is as good as ever.
        replace(&theirs.join("state"), b"4", Readers::Owner).unwrap();
        symlink("circle", directory.path().join("circle")).unwrap();
        assert!(replace(&directory.path().join("circle/x"), b"", Readers::Owner).is_err());
    }

    #[test]
    fn a_private_directory_is_ours_whoever_had_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        private_directory(&path).unwrap();
        chown(&path, Some(HAPROXY), Some(HAPROXY)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        private_directory(&path).unwrap();
        let there = fs::metadata(&path).unwrap();
        assert_eq!(
            (there.permissions().mode() & 0o7777, std::os::unix::fs::MetadataExt::uid(&there)),
            (0o700, 0)
        );
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(private_directory(&directory.path().join("file")).is_err());
    }

    #[test]
    fn what_cannot_be_written_leaves_what_is_there_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state");
        fs::create_dir(&file).unwrap();
        assert!(replace(&file, b"text", Readers::Owner).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(replace(Path::new("/"), b"", Readers::Owner).is_err());
        assert!(replace(&directory.path().join("none/state"), b"", Readers::Owner).is_err());
    }
}
