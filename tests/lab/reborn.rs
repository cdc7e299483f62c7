//! A process with a PID that another one had: the kernel gives it to whoever asks (`clone3(2)`, with
//! `CAP_SYS_ADMIN`).
#![allow(unsafe_code, reason = "no crate at hand wraps clone3 with set_tid")]

use std::ffi::CString;
use std::path::Path;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

#[derive(Debug)]
pub struct Reborn(Pid);

impl Reborn {
    pub fn with_pid(pid: u32, program: &Path, argument: &str) -> Self {
        let program = CString::new(program.to_str().unwrap()).unwrap();
        let argument = CString::new(argument).unwrap();
        let words = [program.as_ptr(), argument.as_ptr(), std::ptr::null()];
        let wanted = libc::pid_t::try_from(pid).unwrap();
        // SAFETY: all of it are numbers, for which zero means none.
        let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
        how.exit_signal = u64::try_from(libc::SIGCHLD).unwrap();
        how.set_tid = std::ptr::from_ref(&wanted) as u64;
        how.set_tid_size = 1;
        // SAFETY: as fork; the child calls nothing but execv and _exit, on memory made before.
        let child = unsafe {
            let child = libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how));
            if child == 0 {
                libc::execv(words[0], words.as_ptr());
                libc::_exit(127);
            }
            child
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(child, i64::from(wanted), "clone3 with PID {pid}: {error}");
        let reborn = Self(Pid::from_raw(wanted));
        let name = Path::new(program.to_str().unwrap()).file_name().unwrap().to_str();
        super::until(super::SHORT, "it has its name", || {
            (super::process::name(pid).as_deref() == name).then_some(())
        });
        reborn
    }

    pub fn is_running(&mut self) -> bool {
        matches!(waitpid(self.0, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
    }
}

impl Drop for Reborn {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
