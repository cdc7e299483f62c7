//! Decides: what `show sess` says of each session (management guide, "show sess"). Values only.

use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// By which HAProxy knows it, as long as it is there.
    pub id: String,
    /// An address, or what HAProxy says of a client without one.
    pub client: String,
    pub frontend: String,
    /// `backend/server`, once there is one.
    pub server: Option<String>,
    pub age: Duration,
}

/// HAProxy's names are not longer; what is no HAProxy's answer may be.
fn short(name: &str) -> String {
    const MOST: usize = 256;
    if name.len() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST).collect()
}

impl Session {
    /// As the kernel has it, whichever family the listener is of.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        // HAProxy puts no brackets around IPv6.
        let (ip, port) = self.client.rsplit_once(':')?;
        Some(canonical(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)))
    }

    /// `None` for what is no session of a client, such as who asks this.
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        // There may be a hundred thousand such lines: each is gone over once, and no further than needed.
        let [mut client, mut frontend, mut backend, mut server, mut age] = [None; 5];
        for (name, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            match name {
                "src" => client = Some(value),
                "fe" if value == "GLOBAL" => return None,
                "fe" => frontend = Some(value),
                "be" => backend = Some(value),
                "srv" => server = Some(value),
                "age" => {
                    age = Some(value);
                    break;
                }
                _ => {}
            }
        }
        let known = |value: &&str| !value.starts_with('<');
        let server = backend.filter(known).map(|backend| {
            server.filter(known).map_or(backend.to_owned(), |server| format!("{backend}/{server}"))
        });
        Some(Self {
            id: short(line.split_once(':')?.0),
            client: short(client?),
            frontend: short(frontend?),
            server: server.map(|server| short(&server)),
            age: humantime::parse_duration(age?).ok()?,
        })
    }
}

/// The oldest of many sessions, and how many there are, read line by line.
#[derive(Clone, Debug)]
pub struct Oldest {
    most: usize,
    pub count: usize,
    kept: Vec<Session>,
}

impl Oldest {
    #[must_use]
    pub fn of_all(most: usize) -> Self {
        Self { most, count: 0, kept: Vec::new() }
    }

    /// Adds what one line of `show sess` says.
    pub fn add(&mut self, line: &str) {
        let Some(session) = Session::read(line) else { return };
        self.count += 1;
        self.kept.push(session);
        if self.kept.len() >= 2 * self.most {
            self.leave_out_the_young();
        }
    }

    fn leave_out_the_young(&mut self) {
        self.kept.sort_by_key(|session| std::cmp::Reverse(session.age));
        self.kept.truncate(self.most);
    }

    /// The oldest first.
    #[must_use]
    pub fn sessions(mut self) -> Vec<Session> {
        self.leave_out_the_young();
        self.kept
    }
}

#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_sessions_the_oldest_are_kept_and_all_are_counted() {
        let mut oldest = Oldest::of_all(3);
        for number in 0..1000_u32 {
            // No order.
            let age = (number * 389) % 1000;
            oldest
                .add(&format!("0x{number:x}: src=10.1.0.2:4 fe=web be=o srv=s age={age}s calls=1"));
            assert!(oldest.kept.len() < 6);
        }
        oldest.add("0x0: src=unix:1 fe=GLOBAL be=<NONE> srv=<none> age=1000s");
        assert_eq!(oldest.count, 1000);
        let ages: Vec<_> = oldest.sessions().iter().map(|session| session.age.as_secs()).collect();
        assert_eq!(ages, [999, 998, 997]);
    }

    /// As HAProxy 2.6 and 3.0 write them.
    #[test]
    fn a_session_is_read_and_who_asks_is_none() {
        let line = "0x55d2baa2fa30: proto=tcpv6 src=::ffff:10.1.0.2:37534 fe=web be=o srv=s1 ts=00 \
                    epoch=0 age=1h2m calls=4 rq[f=49c40000h,i=0,an=8000h,rx=,wx=,ax=] exp=58s rc=0";
        let session = Session::read(line).unwrap();
        assert_eq!(session.id, "0x55d2baa2fa30");
        assert_eq!((&*session.frontend, session.server.as_deref()), ("web", Some("o/s1")));
        assert_eq!(session.age, Duration::from_mins(62));
        let begun =
            "0x1: proto=tcpv4 src=10.1.0.2:4 fe=web be=<NONE> srv=<none> ts=00 age=0s calls=1";
        assert_eq!(Session::read(begun).unwrap().server, None);
        assert_eq!(Session::read(begun).unwrap().address(), "10.1.0.2:4".parse().ok());
        let asker =
            "0x7: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> age=1s calls=2";
        assert_eq!(Session::read(asker), None);
        assert_eq!(Session::read("> "), None);
        assert_eq!(session.address(), Some("10.1.0.2:37534".parse().unwrap()));
    }
}
