//! Decides: which limit it was that the kernel refused something for, and what an operator can do.

use std::fmt;
use std::io;

use anyhow::anyhow;
use nix::errno::Errno;

/// A process, a thread or a descriptor that the kernel does not give, told with the limit that is full.
#[derive(Debug)]
pub struct Refused(pub io::Error);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = self;
        match advice(error) {
            Some(advice) => write!(f, "{error}; {advice}"),
            None => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refused {}

/// Of an error of `fork`, `clone`, `open` or `write`. `EAGAIN` of a socket means something else.
#[must_use]
pub fn advice(error: &io::Error) -> Option<&'static str> {
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EAGAIN => Some(
            "no more processes or threads are allowed here: raise docker run --pids-limit (docker \
             update --pids-limit), or on the host kernel.pid_max and kernel.threads-max",
        ),
        Errno::EMFILE => Some(
            "hapilot may open no more descriptors: raise docker run --ulimit nofile=, for example \
             --ulimit nofile=65536:65536",
        ),
        Errno::ENFILE => {
            Some("the host may open no more files: raise its sysctl fs.file-max, or close some")
        }
        Errno::ENOMEM => Some(
            "there is no more memory: raise docker run --memory (docker update --memory), or free \
             some on the host",
        ),
        Errno::ENOSPC | Errno::EDQUOT => {
            Some("the disk is full: free some of its space, or give that tmpfs a larger size")
        }
        _ => None,
    }
}

/// The same error, with what an operator can do where a limit was the cause.
#[must_use]
pub fn explained(error: anyhow::Error) -> anyhow::Error {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(errno) = cause.downcast_ref::<rustix::io::Errno>() {
            return advice(&(*errno).into());
        }
        advice(cause.downcast_ref::<io::Error>()?)
    };
    match error.chain().find_map(of) {
        Some(advice) => anyhow!("{error:#}; {advice}"),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_with_what_raises_it() {
        for (errno, words) in [
            (Errno::EAGAIN, "--pids-limit"),
            (Errno::EMFILE, "--ulimit nofile="),
            (Errno::ENFILE, "fs.file-max"),
            (Errno::ENOMEM, "--memory"),
            (Errno::ENOSPC, "disk is full"),
        ] {
            let told = Refused(errno.into()).to_string();
            assert!(told.contains(words) && told.contains("os error"), "{told}");
        }
        let error = anyhow::Error::new(rustix::io::Errno::MFILE).context("make a pipe");
        let told = explained(error).to_string();
        assert!(told.starts_with("make a pipe: ") && told.contains("--ulimit nofile="), "{told}");
        assert!(advice(&Errno::ENOENT.into()).is_none());
        assert!(advice(&io::Error::other("not the kernel's")).is_none());
    }
}
