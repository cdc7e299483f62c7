//! What clients say, and where they say it from.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::example::Example;
use crate::lab::client::{Answer, connect, read_answer};
use crate::lab::network::BALANCER4;
use crate::lab::{Outcome, SHORT};

/// One request, to be made as often as wanted.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    host: String,
    headers: String,
}

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        let (path, host) = (path.to_owned(), "www.example.com".to_owned());
        Self { method: "GET", path, host, headers: String::new() }
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    /// Says it and reads the answer to its end.
    pub(crate) fn say(&self, mut stream: impl Read + Write) -> Outcome {
        let begun = Instant::now();
        let Self { method, path, host, headers } = self;
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
        );
        match stream.write_all(text.as_bytes()) {
            Ok(()) => read_answer(&mut stream, Vec::new(), begun),
            Err(error) => Outcome::from_error(&error),
        }
    }

    /// For `Example::reload_under_load`.
    pub(crate) fn talk(&self) -> impl Fn(TcpStream) -> Outcome + Clone + Send + 'static {
        let request = self.clone();
        move |stream| request.say(stream)
    }

    /// The client, to that port of the balancer; whatever comes must be an answer.
    pub(crate) fn ask(&self, example: &Example, port: u16) -> Answer {
        self.ask_at(example, &format!("{BALANCER4}:{port}"))
    }

    pub(crate) fn outcome(&self, example: &Example, address: &str) -> Outcome {
        example.lab.client.enter(|| match connect(address, SHORT) {
            Ok(stream) => self.say(stream),
            Err(error) => Outcome::from_error(&error),
        })
    }

    pub(crate) fn ask_at(&self, example: &Example, address: &str) -> Answer {
        match self.outcome(example, address) {
            Outcome::Answered(answer) => answer,
            other => panic!("{self:?} to {address}: {other:?}"),
        }
    }
}

/// A line of whoami's answer, such as `Name` or a header that the server got.
pub(crate) fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.strip_prefix(name)?.strip_prefix(": ");
    answer.body.lines().find_map(line)
}

/// Which server it was.
pub(crate) fn name(answer: &Answer) -> &str {
    field(answer, "Name").unwrap_or_else(|| panic!("not whoami: {answer:?}"))
}

/// A header of the answer, whatever its case.
pub(crate) fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    let mut pairs = answer.head.lines().filter_map(|line| line.split_once(": "));
    pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Who answers when the request is made that often.
pub(crate) fn names(example: &Example, request: &Request, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| name(&request.ask(example, 80)).to_owned()).collect()
}

pub(crate) fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}
