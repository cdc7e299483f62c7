//! The sysctls that we may write, at `/proc/sys` or where an operator mounted them.
//!
//! Docker mounts `/proc/sys` read-only, and refuses `--sysctl` with the host's network. So one file
//! of it may be mounted at `/var/proc/sys`, which the `sysctl` package cannot reach.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use sysctl::Sysctl as _;

use super::step::Family;
use crate::fault::{self, Point};
use crate::problem::Problem;

/// Where a value can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Door {
    Proc,
    Mounted(PathBuf),
}

/// Whether half-open connections of a closed listener move to another one (Linux 5.14).
pub const MIGRATE: &str = "net.ipv4.tcp_migrate_req";

/// What `ip_nonlocal_bind` is now; `None` where this kernel does not have it.
pub fn read(family: Family) -> Result<Option<u8>> {
    value(family.nonlocal_bind())
}

/// What it is now; `None` where this kernel does not have it.
pub fn value(name: &str) -> Result<Option<u8>> {
    let text = match sysctl::Ctl::new(name).and_then(|ctl| ctl.value_string()) {
        Ok(text) => text,
        Err(sysctl::SysctlError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read sysctl {name}")),
    };
    let value = text.trim().parse().with_context(|| format!("read sysctl {name}: {text:?}"))?;
    Ok(Some(value))
}

/// Writes and reads back.
pub fn write(family: Family, value: u8) -> Result<()> {
    set(family.nonlocal_bind(), value)
}

/// Writes and reads back.
pub fn set(name: &str, value: u8) -> Result<()> {
    fault::at(Point::Sysctl).with_context(|| format!("write sysctl {name}"))?;
    match door(name) {
        Some(Door::Proc) => {
            sysctl::Ctl::new(name)
                .and_then(|ctl| ctl.set_value_string(&value.to_string()))
                .with_context(|| format!("write sysctl {name}"))?;
        }
        Some(Door::Mounted(path)) => fs::write(&path, value.to_string())
            .with_context(|| format!("write {}", path.display()))?,
        None => bail!("sysctl {name} cannot be written here"),
    }
    match self::value(name)? {
        Some(now) if now == value => Ok(()),
        now => bail!("sysctl {name} reads {now:?} after {value} was written"),
    }
}

/// Whether `write` has a way; opening for writing changes nothing.
#[must_use]
pub fn writable(family: Family) -> bool {
    settable(family.nonlocal_bind())
}

/// Whether `set` has a way; opening for writing changes nothing.
#[must_use]
pub fn settable(name: &str) -> bool {
    door(name).is_some()
}

/// Transparent proxying does not need it (`IP_TRANSPARENT` does the same), so this is a warning:
/// one for both protocols. `None`: there is nothing to tell.
#[must_use]
pub fn unwritable(families: &[Family]) -> Option<Problem> {
    let names: Vec<&str> = families.iter().map(|family| family.nonlocal_bind()).collect();
    let settings: Vec<String> = names.iter().map(|name| format!("{name}=1")).collect();
    let mounts: Vec<String> = families
        .iter()
        .map(|family| path(family.nonlocal_bind()))
        .map(|path| format!("-v /proc/sys/{path}:/var/proc/sys/{path}"))
        .collect();
    (!families.is_empty()).then(|| {
        Problem::new(
            format!("not 1, and cannot be written here: {}", names.join(", ")),
            format!(
                "if HAProxy binds addresses that this host does not have yet, run 'sysctl -w {}' \
                 on the host or add '{}' to docker run",
                settings.join(" "),
                mounts.join(" ")
            ),
        )
    })
}

fn path(name: &str) -> String {
    name.replace('.', "/")
}

fn door(name: &str) -> Option<Door> {
    let opens = |path: &PathBuf| OpenOptions::new().write(true).open(path).is_ok();
    let path = path(name);
    let mounted = PathBuf::from("/var/proc/sys").join(&path);
    if opens(&PathBuf::from("/proc/sys").join(&path)) {
        return Some(Door::Proc);
    }
    opens(&mounted).then_some(Door::Mounted(mounted))
}
