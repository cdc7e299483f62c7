//! Holds a HAProxy back between its start and its first word.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::haproxy_cfg::proxy;
use super::spec::Spec;
use super::{Instance, Lab};

/// A `haproxy` that, when it is to inherit listeners, waits until the test lets it go on.
#[derive(Debug)]
pub struct Turnstile {
    bin: PathBuf,
    go: PathBuf,
    /// As long as it is there, the waiting one is not to go on but to die.
    die: PathBuf,
}

impl Turnstile {
    pub fn new(lab: &Lab) -> Self {
        let [bin, go, die] = ["bin", "go", "die"].map(|name| lab.balancer.path(name));
        std::fs::create_dir(&bin).unwrap();
        let real = Command::new("sh").args(["-c", "command -v haproxy"]).output().unwrap().stdout;
        let real = String::from_utf8(real).unwrap();
        let script = format!(
            "#!/bin/sh\nfor word; do if [ \"$word\" = -x ]; then\n\
             while [ ! -e {} ]; do [ ! -e {} ] || exit 9; sleep 0.02; done\nfi; done\nexec {} \"$@\"\n",
            go.display(),
            die.display(),
            real.trim()
        );
        let path = bin.join("haproxy");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { bin, go, die }
    }

    /// A container in which it is the `haproxy`, unless it inherits nothing.
    pub fn within<'l>(&self, lab: &'l Lab, name: &str, bind: &str) -> Spec<'l> {
        let config = lab.balancer.write(&format!("{name}.cfg"), &proxy(bind, name));
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        lab.balancer.container(name).config(&config).env("PATH", &path)
    }

    /// A successor whose HAProxy has been started and waits.
    pub fn waiting(&self, lab: &Lab, name: &str) -> Instance {
        let instance = self.within(lab, name, ":80").env("HAPROXY_PIDS", "auto").start();
        instance.log.await_line("started HAProxy");
        instance
    }

    pub fn open(&self) {
        std::fs::write(&self.go, "").unwrap();
    }

    /// Whoever waits there dies, and whoever comes.
    pub fn kill(&self) {
        std::fs::write(&self.die, "").unwrap();
    }
}
