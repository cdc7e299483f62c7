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
        let field = |name: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let frontend = field("fe")?;
        if frontend == "GLOBAL" {
            return None;
        }
        let known = |name| field(name).filter(|value| !value.starts_with('<'));
        let server = known("be").map(|backend| {
            known("srv").map_or(backend.to_owned(), |server| format!("{backend}/{server}"))
        });
        Some(Self {
            id: line.split_once(':')?.0.to_owned(),
            client: field("src")?.to_owned(),
            frontend: frontend.to_owned(),
            server,
            age: humantime::parse_duration(field("age")?).ok()?,
        })
    }
}

#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

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
