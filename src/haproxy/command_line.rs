//! Decides: what our own arguments mean, what HAProxy's mean, and how a generation is started.
//!
//! Options are told apart as HAProxy itself does it (2.6 to 3.2): by their first letter or two, so
//! that `-dbx` is `-db`, and a value is always the next word, even one that begins with a dash.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const OWN: [&str; 15] = [
    "check",
    "plan",
    "status",
    "sessions",
    "reload",
    "stop",
    "runtime",
    "drain",
    "enable",
    "weight",
    "sweep",
    "health",
    "version",
    "help",
    LAST_RESORT,
];

/// Of no use to people: what hapilot becomes when it hangs.
pub const LAST_RESORT: &str = "last-resort";

const USUAL_PLACES: [&str; 2] = ["/usr/local/etc/haproxy/haproxy.cfg", "/etc/haproxy/haproxy.cfg"];

/// What the words after our own name ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Supervise HAProxy with these arguments of its own.
    Supervise(Vec<OsString>),
    /// One of our own commands, its name first.
    Own(Vec<OsString>),
    /// Execute this program with these arguments in our place.
    Execute(Vec<OsString>),
}

#[must_use]
pub fn invocation(args: &[OsString]) -> Invocation {
    let Some((first, rest)) = args.split_first() else {
        return Invocation::Supervise(vec![]);
    };
    match (first.to_str(), rest) {
        (Some("run"), []) => Invocation::Supervise(vec![]),
        (Some("run"), [dashes, args @ ..]) if dashes == "--" => haproxy(args),
        (Some("run" | "--help" | "--version"), _) => Invocation::Own(args.to_vec()),
        (Some("--" | "haproxy"), _) => haproxy(rest),
        (Some(word), _) if OWN.contains(&word) => Invocation::Own(args.to_vec()),
        _ if first.as_bytes().first() == Some(&b'-') => haproxy(args),
        _ => Invocation::Execute(args.to_vec()),
    }
}

fn haproxy(args: &[OsString]) -> Invocation {
    if words(args).iter().any(ends_by_itself) {
        let name = std::iter::once("haproxy".into());
        return Invocation::Execute(name.chain(args.iter().cloned()).collect());
    }
    Invocation::Supervise(args.to_vec())
}

/// HAProxy answers such an option and exits; there is nothing to supervise.
fn ends_by_itself(word: &Word) -> bool {
    let (Word::Flag(option) | Word::Valued(option, _) | Word::Unknown(option, _)) = word else {
        return false;
    };
    ["-v", "-c", "-h", "-dA", "-dC"].iter().any(|end| option.as_bytes().starts_with(end.as_bytes()))
}

/// HAProxy's arguments, without what the supervisor sees to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HaproxyArguments {
    /// Files and directories, in the order in which HAProxy reads them.
    pub files: Vec<PathBuf>,
    /// All other options, as given.
    pub rest: Vec<OsString>,
    /// `-C`: relative files are looked for there.
    pub directory: Option<PathBuf>,
    /// `-L`.
    pub local_peer: Option<String>,
    /// `-n`, which wins over `maxconn` of the configuration.
    pub maxconn: Option<u64>,
    /// For the log: what was taken out, and why.
    pub notes: Vec<String>,
}

impl HaproxyArguments {
    /// Err lists everything that HAProxy could not make sense of.
    pub fn parse(args: &[OsString]) -> Result<Self, Vec<String>> {
        let mut parsed = Self::default();
        let mut mistakes = Vec::new();
        for word in words(args) {
            match word {
                Word::Flag(option) => parsed.flag(option),
                Word::Valued(option, value) => parsed.valued(option, value),
                Word::Unknown(option, values) => {
                    parsed.rest.push(option);
                    parsed.rest.extend(values);
                }
                Word::Pids(option) => parsed.notes.push(format!(
                    "{} is left out: name the processes to take over from in HAPROXY_PIDS",
                    option.display()
                )),
                Word::Files(files) => parsed.files.extend(files.into_iter().map(PathBuf::from)),
                Word::Incomplete(option) => {
                    mistakes.push(format!("{} lacks its value", option.display()));
                }
                Word::Stray(word) => mistakes.push(format!(
                    "{} is not an option; a configuration file needs -f before it",
                    word.display()
                )),
            }
        }
        if mistakes.is_empty() { Ok(parsed) } else { Err(mistakes) }
    }

    fn flag(&mut self, option: OsString) {
        match option.as_bytes() {
            // Put back by `command`, so nothing changes that deserves a note.
            [b'-', b'd', b'b', ..] => {}
            [b'-', b'D', ..] => {
                self.notes.push("-D is left out: a container's process stays in front".into());
            }
            [b'-', b'W', ..] => self.notes.push(format!(
                "{} is left out: hapilot does what the master process would do",
                option.display()
            )),
            _ => self.rest.push(option),
        }
    }

    fn valued(&mut self, option: OsString, value: OsString) {
        let left_out = match option.as_bytes().get(1) {
            Some(b'f') => return self.files.push(value.into()),
            Some(b'x') => "listeners are handed over by hapilot itself",
            Some(b'S') => "there is no master process that could have a CLI",
            Some(b'p') => "HAProxy writes no pid file in front; `hapilot status` shows its PIDs",
            letter => {
                match letter {
                    Some(b'C') => self.directory = Some(value.clone().into()),
                    Some(b'L') => self.local_peer = value.to_str().map(str::to_owned),
                    Some(b'n') => self.maxconn = value.to_str().and_then(|n| n.parse().ok()),
                    _ => {}
                }
                return self.rest.extend([option, value]);
            }
        };
        self.notes.push(format!(
            "{} {} is left out: {left_out}",
            option.display(),
            value.display()
        ));
    }
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files or directories, as for `-f`.
    Paths(Vec<PathBuf>),
    /// There is none: the embedded default serves its page.
    Embedded,
}

/// `-f` wins over `HAPROXY_CONFIG`, which wins over the usual places.
#[must_use]
pub fn source(
    arguments: &HaproxyArguments,
    setting: Option<&Path>,
    exists: impl Fn(&Path) -> bool,
) -> Source {
    if !arguments.files.is_empty() {
        return Source::Paths(arguments.files.clone());
    }
    let usual = || USUAL_PLACES.iter().map(Path::new).find(|place| exists(place));
    setting.or_else(usual).map_or(Source::Embedded, |path| Source::Paths(vec![path.to_owned()]))
}

/// What a generation reads, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    pub fragment: &'a Path,
    pub configuration: &'a [PathBuf],
    pub last: Option<&'a Path>,
}

/// The argv of one generation. The fragment comes before the configuration, whose `global` may
/// then say otherwise; it must be absolute because `-C` changes the directory first.
#[must_use]
pub fn command(
    binary: &Path,
    files: Files<'_>,
    rest: &[OsString],
    from: Option<&Path>,
) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec![binary.into(), "-db".into()];
    argv.extend_from_slice(rest);
    let Files { fragment, configuration, last } = files;
    let first = std::iter::once(fragment);
    for file in first.chain(configuration.iter().map(PathBuf::as_path)).chain(last) {
        argv.extend(["-f".into(), file.into()]);
    }
    if let Some(socket) = from {
        argv.extend(["-x".into(), socket.into()]);
    }
    argv
}

/// One option with all that belongs to it.
enum Word {
    Flag(OsString),
    Valued(OsString, OsString),
    /// `-sf` or `-st`; the list is of no use to us.
    Pids(OsString),
    /// What follows `--`.
    Files(Vec<OsString>),
    /// Perhaps of a newer HAProxy: it goes through with what follows, for HAProxy to judge.
    Unknown(OsString, Vec<OsString>),
    Incomplete(OsString),
    Stray(OsString),
}

fn words(args: &[OsString]) -> Vec<Word> {
    let mut words = Vec::new();
    let mut left = args.iter().cloned().peekable();
    while let Some(option) = left.next() {
        let word = match option.as_bytes() {
            b"--" => Word::Files(left.by_ref().collect()),
            [b'-', b's', b'f' | b't', ..] => {
                while left.next_if(is_plain).is_some() {}
                Word::Pids(option)
            }
            [b'-', b'd', b't'] => match left.next_if(is_plain) {
                Some(trace) => Word::Valued(option, trace),
                None => Word::Flag(option),
            },
            [b'-', b'c', b'c', ..]
            | [b'-', b'C' | b'n' | b'm' | b'N' | b'L' | b'f' | b'p' | b'S' | b'x', ..] => {
                match left.next() {
                    Some(value) => Word::Valued(option, value),
                    None => Word::Incomplete(option),
                }
            }
            [b'-', b'v' | b'V' | b'd' | b'c' | b'D' | b'W' | b'q' | b'4', ..] => Word::Flag(option),
            [b'-', ..] => {
                let mut values = Vec::new();
                while let Some(value) = left.next_if(is_plain) {
                    values.push(value);
                }
                Word::Unknown(option, values)
            }
            _ => Word::Stray(option),
        };
        words.push(word);
    }
    words
}

fn is_plain(word: &OsString) -> bool {
    OsStr::as_bytes(word).first() != Some(&b'-')
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn split(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn parse(line: &str) -> HaproxyArguments {
        HaproxyArguments::parse(&split(line)).unwrap()
    }

    #[test]
    fn haproxys_own_arguments_are_supervised() {
        for (line, args) in [
            ("", ""),
            ("run", ""),
            ("run -- -f /my.cfg", "-f /my.cfg"),
            ("-- -f /my.cfg", "-f /my.cfg"),
            ("-f /my.cfg", "-f /my.cfg"),
            ("-db -f /my.cfg", "-db -f /my.cfg"),
            ("haproxy", ""),
            ("haproxy -W -db -f /my.cfg", "-W -db -f /my.cfg"),
            ("-L -c -f -v", "-L -c -f -v"),
            ("-Ws -V", "-Ws -V"),
            ("-f a -- -c", "-f a -- -c"),
        ] {
            let expected = Invocation::Supervise(split(args));
            assert_eq!(invocation(&split(line)), expected, "{line:?}");
        }
    }

    #[test]
    fn what_haproxy_answers_and_exits_is_executed_and_so_is_any_other_command() {
        for (line, argv) in [
            ("-v", "haproxy -v"),
            ("-vv", "haproxy -vv"),
            ("-c -f /my.cfg", "haproxy -c -f /my.cfg"),
            ("-f /my.cfg -c", "haproxy -f /my.cfg -c"),
            ("-cc version_atleast(2.6)", "haproxy -cc version_atleast(2.6)"),
            ("-h", "haproxy -h"),
            ("run -- -vv", "haproxy -vv"),
            ("haproxy -v", "haproxy -v"),
            ("haproxy -f a -c", "haproxy -f a -c"),
            ("sh -c ls", "sh -c ls"),
            ("/usr/sbin/haproxy -f a", "/usr/sbin/haproxy -f a"),
        ] {
            assert_eq!(invocation(&split(line)), Invocation::Execute(split(argv)), "{line:?}");
        }
    }

    #[test]
    fn our_own_commands_are_ours() {
        for line in ["--help", "--version", "help", "status --json", "run --help", "run -f x"]
            .into_iter()
            .chain(OWN)
        {
            assert_eq!(invocation(&split(line)), Invocation::Own(split(line)), "{line:?}");
        }
    }

    #[test]
    fn files_are_found_wherever_they_stand() {
        let parsed = parse("-f a -V -n 100 -f dir -L me -C /etc -m 64 -dt h1 -q -- b c");
        assert_eq!(parsed.files, ["a", "dir", "b", "c"].map(PathBuf::from));
        assert_eq!(parsed.rest, split("-V -n 100 -L me -C /etc -m 64 -dt h1 -q"));
        assert_eq!(parsed.directory.as_deref(), Some(Path::new("/etc")));
        assert_eq!(parsed.local_peer.as_deref(), Some("me"));
        assert_eq!(parsed.maxconn, Some(100));
        assert!(parsed.notes.is_empty());
    }

    #[test]
    fn what_the_supervisor_does_itself_is_left_out_with_a_reason() {
        for (line, note) in [
            ("-D", "-D is left out: a container's process"),
            ("-W", "-W is left out: hapilot does what the master"),
            ("-Ws", "-Ws is left out: hapilot does what the master"),
            ("-sf 12 13", "-sf is left out: name the processes to take over from in HAPROXY_PIDS"),
            ("-st", "-st is left out: name the processes"),
            ("-x /run/h.sock", "-x /run/h.sock is left out: listeners are handed over"),
            ("-p /run/h.pid", "-p /run/h.pid is left out: HAProxy writes no pid file"),
            ("-S /run/m.sock", "-S /run/m.sock is left out: there is no master"),
        ] {
            let parsed = parse(&format!("{line} -f a -V"));
            assert_eq!(parsed.rest, ["-V"], "{line}");
            assert_eq!(parsed.files, [PathBuf::from("a")], "{line}");
            assert_eq!(parsed.notes.len(), 1, "{line}");
            assert!(parsed.notes[0].starts_with(note), "{}", parsed.notes[0]);
        }
        assert_eq!(parse("-db -f a").rest, split(""));
        assert!(parse("-db -f a").notes.is_empty());
    }

    #[test]
    fn options_of_a_newer_haproxy_go_through_with_their_values() {
        assert_eq!(parse("-Z some thing -f a --new").rest, split("-Z some thing --new"));
    }

    #[test]
    fn all_mistakes_in_haproxys_arguments_are_listed() {
        let mistakes = HaproxyArguments::parse(&split("my.cfg -V other.cfg -f")).unwrap_err();
        assert_eq!(
            mistakes,
            [
                "my.cfg is not an option; a configuration file needs -f before it",
                "other.cfg is not an option; a configuration file needs -f before it",
                "-f lacks its value",
            ]
        );
    }

    #[test]
    fn the_configuration_is_the_argument_then_the_setting_then_a_usual_place() {
        let paths = |paths: &[&str]| Source::Paths(paths.iter().map(PathBuf::from).collect());
        let [first, second] = USUAL_PLACES;
        let (given, none) = (parse("-f a -f b"), parse(""));
        let setting = Some(Path::new("/set"));
        assert_eq!(source(&given, setting, |_| true), paths(&["a", "b"]));
        assert_eq!(source(&none, setting, |_| true), paths(&["/set"]));
        assert_eq!(source(&none, None, |_| true), paths(&[first]));
        assert_eq!(source(&none, None, |path| path == Path::new(second)), paths(&[second]));
        assert_eq!(source(&none, None, |_| false), Source::Embedded);
    }

    #[test]
    fn a_generation_gets_its_fragment_before_the_configuration_and_its_predecessor_last() {
        let files = ["/a.cfg".into(), "/conf.d".into()];
        let binary = Path::new("/usr/sbin/haproxy");
        let (fragment, last) = (Path::new("/run/f.cfg"), Some(Path::new("/run/l.cfg")));
        let all = Files { fragment, configuration: &files, last };
        let argv = command(binary, all, &split("-L me"), Some(Path::new("/run/k.sock")));
        let expected = "/usr/sbin/haproxy -db -L me -f /run/f.cfg -f /a.cfg -f /conf.d \
                        -f /run/l.cfg -x /run/k.sock";
        assert_eq!(argv, split(expected));
        let alone = Files { fragment, configuration: &[], last: None };
        assert_eq!(command(binary, alone, &[], None).last().unwrap(), "/run/f.cfg");
    }

    #[test]
    fn what_a_generation_is_started_with_is_read_back_as_it_was_meant() {
        for line in ["", "-L me", "-n 5 -V", "-dt h1 -q", "-Z new value -m 9", "-C -f"] {
            let (files, rest) = (["/a.cfg".into(), "-odd".into()], split(line));
            let files = Files { fragment: Path::new("/run/f"), configuration: &files, last: None };
            let argv = command(Path::new("h"), files, &rest, None);
            let parsed = HaproxyArguments::parse(&argv[1..]).unwrap();
            assert_eq!(parsed.files, ["/run/f", "/a.cfg", "-odd"].map(PathBuf::from), "{line}");
            assert_eq!(parsed.rest, rest, "{line}");
        }
    }

    #[test]
    fn the_real_haproxy_reads_the_fragment_before_files_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        std::fs::create_dir(path("conf.d")).unwrap();
        let stats = path("g.sock");
        let fragment = format!("global\n stats socket {} level admin\n", stats.display());
        write("fragment.cfg", &fragment);
        // Each file refers to what an earlier one defines: any other order is refused.
        write(
            "main.cfg",
            "defaults base\n mode http\n timeout client 1s\n timeout server 1s\n timeout connect 1s\n",
        );
        write(
            "conf.d/10.cfg",
            "frontend f from base\n bind 127.0.0.1:1\n http-request return status 200\n",
        );
        write("conf.d/ignored", "nonsense\n");
        let files = [path("main.cfg"), path("conf.d")];
        let rest = split("-L me -dD");
        let fragment = path("fragment.cfg");
        let files = Files { fragment: &fragment, configuration: &files, last: None };
        let argv = command(Path::new("haproxy"), files, &rest, None);
        let output = Command::new(&argv[0]).args(&argv[1..]).arg("-c").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
