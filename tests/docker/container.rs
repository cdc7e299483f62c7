//! Containers that go when they are dropped, and what a person would ask them.

use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Long enough for a busy machine; nothing here waits that long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn image() -> String {
    std::env::var("HAPILOT_TEST_IMAGE")
        .expect("HAPILOT_TEST_IMAGE names the image: scripts/test sets it")
}

/// Runs a program to its end and hands back whatever came of it.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| unreachable!("run {program}: {error}"))
}

/// Standard output of a program that must succeed.
pub(crate) fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

pub(crate) fn docker(arguments: &[&str]) -> String {
    Engine::default().succeed(arguments)
}

/// The machine's own engine, or another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Engine {
    /// `--host` and where it listens, or nothing.
    address: Vec<String>,
}

impl Engine {
    pub(crate) fn at(address: &str) -> Self {
        Self { address: vec!["--host".to_owned(), address.to_owned()] }
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        let address: Vec<&str> = self.address.iter().map(String::as_str).collect();
        output("docker", &[&address, arguments].concat())
    }

    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// The newest container with this label; like one that was started here, it goes when this is dropped.
    pub(crate) fn newest(&self, label: &str) -> Container {
        let filter = format!("label={label}");
        let ids = self.succeed(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]);
        let newest = ids.lines().next();
        let id = newest.unwrap_or_else(|| unreachable!("no container has the label {label}"));
        Container { engine: self.clone(), id: id.to_owned() }
    }

    /// `docker run -d` with these words.
    pub(crate) fn start(&self, words: &[&str]) -> Container {
        let id = self.succeed(&[&["run", "-d"], words].concat());
        Container { engine: self.clone(), id }
    }
}

/// Everything that a program wrote, as a person in front of it would see it.
pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// For who is on the machine's own network or on Docker's bridge: what is seen there before and after is compared.
pub(crate) fn machines_network() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `docker run --rm` with these options, in the foreground. One that does not end is made to, and fails.
pub(crate) fn run(options: &[&str], arguments: &[&str]) -> Output {
    let _alone = machines_network();
    let image = image();
    let patience = PATIENCE.as_secs().to_string();
    let docker = ["--signal=INT", "--kill-after=10", &patience, "docker", "run", "--rm"];
    let output = output("timeout", &[&docker, options, &[&image], arguments].concat());
    assert_ne!(output.status.code(), Some(124), "still running after {patience} s: {output:?}");
    output
}

/// Asks again until there is an answer, or fails with what was hoped for.
pub(crate) fn wait_for<T>(hope: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {hope}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Debug)]
pub(crate) struct Container {
    engine: Engine,
    id: String,
}

impl Container {
    /// `docker run -d` with these options, from the image under test.
    pub(crate) fn start(options: &[&str], arguments: &[&str]) -> Self {
        Engine::default().start(&[options, &[&image()], arguments].concat())
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The PID on the host, which is also the way into its namespaces.
    pub(crate) fn pid(&self) -> String {
        self.inspect("{{.State.Pid}}")
    }

    pub(crate) fn inspect(&self, format: &str) -> String {
        self.docker(&["inspect", "--format", format])
    }

    /// A `docker` command that ends in this container's name, and succeeds.
    pub(crate) fn docker(&self, words: &[&str]) -> String {
        self.engine.succeed(&[words, &[&self.id]].concat())
    }

    pub(crate) fn logs(&self) -> String {
        words(&self.engine.output(&["logs", &self.id]))
    }

    pub(crate) fn exec(&self, arguments: &[&str]) -> Output {
        self.engine.output(&[&["exec", &self.id], arguments].concat())
    }

    /// `hapilot status --json`, or nothing while nobody answers.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        let answer = self.exec(&["hapilot", "status", "--json"]);
        serde_json::from_slice(&answer.stdout).ok()
    }

    /// Waits for a status of which this holds.
    pub(crate) fn wait_status(
        &self,
        hope: &str,
        holds: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let hope = format!("{hope}; its log:");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| holds(status)) {
                return status.clone();
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain for {hope}\n{}\n{status:?}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_serving(&self, generation: u64) -> serde_json::Value {
        self.wait_status(&format!("generation {generation} serving"), |status| {
            status["state"] == "serving" && serving_generation(status) == Some(generation)
        })
    }

    /// `docker stop --time=300`, and the exit status.
    pub(crate) fn stop(&self) -> String {
        self.docker(&["stop", "--time=300"]);
        self.docker(&["wait"])
    }
}

#[allow(clippy::print_stderr, reason = "a test that fails shows what the container said")]
impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.id, self.logs());
        }
        self.engine.output(&["rm", "--force", "--volumes", &self.id]);
    }
}

/// The generation that serves; a draining one is not it.
pub(crate) fn serving_generation(status: &serde_json::Value) -> Option<u64> {
    let generations = status["generations"].as_array()?;
    let serving = generations.iter().find(|generation| generation["state"] == "serving")?;
    serving["id"].as_u64()
}
