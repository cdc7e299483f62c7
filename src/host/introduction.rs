//! Acts: how two hapilots learn whom they have before them, at the start of each connection to the
//! lease's socket. Any process on this network can connect there, and bind a name of that kind.
//!
//! The successor says `knock`, with a number for the predecessor to show (`net_admin`) and a nonce;
//! the predecessor answers `prove` with its own, and with its proof of the operator's secret if there
//! is one; the successor sends its `proof`, and is told `welcome`, or why not. One JSON object a line.

use std::fmt;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::instance::Instance;
use super::net_admin::{self, Challenge};
use super::secret::{Occasion, Role, Secret, hex};
use crate::process::limits::explained;

/// Of this version; a hapilot that speaks another one is told so.
pub const PROTOCOL: u32 = 2;
const LONGEST: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "say")]
enum Word {
    Knock { protocol: u32, nonce: String, number: Option<Challenge> },
    Proof { proof: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "answer")]
enum Reply {
    Prove { nonce: String, number: Option<Challenge>, proof: Option<String> },
    Welcome,
    Refused { reason: String },
}

/// The other end ended the connection without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HungUp;

impl fmt::Display for HungUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it hung up")
    }
}

impl std::error::Error for HungUp {}

/// What a peer has shown of itself, beside its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    NetAdmin,
    Secret,
    Nothing,
}

/// Which visitors are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// None at all (`HAPROXY_TAKEOVER=off`).
    Closed,
    /// Those that show `CAP_NET_ADMIN`, or that they know the secret.
    Shown,
    /// All of our own user: there is nothing by which they could be told apart.
    SameUser,
}

impl Admission {
    /// Of a door that is open: by what can be shown here. The reason is why no more than the user
    /// counts, or why the door lets none in as long as that lasts.
    #[must_use]
    pub fn here() -> (Self, Option<anyhow::Error>) {
        match net_admin::can_be_shown() {
            Ok(()) => (Self::Shown, None),
            Err(_) if Secret::ours().is_some() => (Self::Shown, None),
            Err(error) => (Self::where_not(&error), Some(explained(error))),
        }
    }

    /// The right that we do not have ourselves is asked of no other. Whatever else is in the way may
    /// have been put there, and opens nothing.
    fn where_not(error: &anyhow::Error) -> Self {
        let denied = error.downcast_ref::<Errno>() == Some(&Errno::PERM);
        if denied { Self::SameUser } else { Self::Shown }
    }

    fn refuses(self, shown: Shown) -> Option<String> {
        match (self, shown) {
            (Self::Closed, _) => Some(CLOSED.to_owned()),
            (Self::Shown, Shown::Nothing) => Some(
                "it has not shown CAP_NET_ADMIN over this network, nor the secret of \
                 HAPROXY_TAKEOVER_SECRET_FILE: run it with --cap-add=NET_ADMIN, or give both \
                 hapilots the same secret"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

pub const CLOSED: &str = "HAPROXY_TAKEOVER=off closes its door";

/// A connection to that hapilot's door, let in. Without a limit.
pub async fn introduce(stream: UnixStream, instance: Instance) -> Result<(UnixStream, Shown)> {
    let mut stream = BufReader::new(stream);
    let (number, nonce) = (Challenge::draw().ok(), nonce()?);
    let knock = Word::Knock { protocol: PROTOCOL, nonce: nonce.clone(), number };
    // It may have said no already, and have hung up.
    let _ = say(&mut stream, &knock).await;
    let (theirs, asked, proof) = match hear(&mut stream).await? {
        Some(Reply::Prove { nonce, number, proof }) => (nonce, number, proof),
        Some(Reply::Refused { reason }) => bail!(reason),
        Some(Reply::Welcome) => bail!("it did not ask for a proof"),
        None => bail!(HungUp),
    };
    let occasion = Occasion {
        instance,
        network: &network(),
        successors_nonce: &nonce,
        predecessors_nonce: &theirs,
    };
    let secret = Secret::ours();
    let shown = shown(&stream, number, |secret| {
        secret.is_proof(Role::Predecessor, &occasion, proof.as_deref().unwrap_or_default())
    });
    let shown = shown.unwrap_or(Shown::Nothing);
    ensure!(
        secret.is_none() || shown != Shown::Nothing,
        "it has not shown CAP_NET_ADMIN over this network, nor that it knows the secret of \
         HAPROXY_TAKEOVER_SECRET_FILE"
    );
    if let Some(number) = asked {
        // Without the right there may be a secret.
        let _ = number.show(stream.get_ref());
    }
    let proof = secret.map(|secret| secret.proof(Role::Successor, &occasion));
    let _ = say(&mut stream, &Word::Proof { proof }).await;
    match hear(&mut stream).await? {
        Some(Reply::Welcome) => {}
        Some(Reply::Refused { reason }) => bail!(reason),
        Some(Reply::Prove { .. }) => bail!("it asked for a proof again"),
        None => bail!(HungUp),
    }
    ensure!(stream.buffer().is_empty(), "it spoke before it was asked");
    Ok((stream.into_inner(), shown))
}

/// Whether a visitor is let in that has said this first; the error is what it is told.
pub async fn receive(
    stream: &mut BufReader<UnixStream>,
    first: &str,
    instance: Instance,
    admission: Admission,
) -> Result<Shown, String> {
    let Ok(Word::Knock { protocol, nonce: theirs, number }) = serde_json::from_str(first) else {
        return Err(format!("a visitor must knock first, in protocol {PROTOCOL}"));
    };
    if let Some(reason) = stranger(protocol) {
        return Err(reason);
    }
    let shown = examine(stream, &theirs, number, instance, admission).await;
    let shown = shown.map_err(|error| format!("{:#}", explained(error)))?;
    if let Some(reason) = admission.refuses(shown) {
        return Err(reason);
    }
    say(stream, &Reply::Welcome).await.map_err(|error| format!("{error:#}"))?;
    Ok(shown)
}

async fn examine(
    stream: &mut BufReader<UnixStream>,
    theirs: &str,
    number: Option<Challenge>,
    instance: Instance,
    admission: Admission,
) -> Result<Shown> {
    let (asked, nonce) = (Challenge::draw(), nonce()?);
    let asked = match asked {
        Err(error) if admission == Admission::Shown && Secret::ours().is_none() => {
            return Err(error);
        }
        asked => asked.ok(),
    };
    let occasion = Occasion {
        instance,
        network: &network(),
        successors_nonce: theirs,
        predecessors_nonce: &nonce,
    };
    if let Some(number) = number {
        // The visitor is told by our proof, or by our user alone.
        let _ = number.show(stream.get_ref());
    }
    let proof = Secret::ours().map(|secret| secret.proof(Role::Predecessor, &occasion));
    say(stream, &Reply::Prove { nonce: nonce.clone(), number: asked, proof }).await?;
    let Some(Word::Proof { proof }) = hear(stream).await? else { bail!("no proof came") };
    let shown = shown(stream, asked, |secret| {
        secret.is_proof(Role::Successor, &occasion, proof.as_deref().unwrap_or_default())
    });
    if admission == Admission::SameUser { Ok(shown.unwrap_or(Shown::Nothing)) } else { shown }
}

fn shown(
    stream: &BufReader<UnixStream>,
    number: Option<Challenge>,
    knows: impl FnOnce(&Secret) -> bool,
) -> Result<Shown> {
    match number.map_or(Ok(false), |number| number.is_shown(stream.get_ref())) {
        Ok(true) => Ok(Shown::NetAdmin),
        _ if Secret::ours().is_some_and(knows) => Ok(Shown::Secret),
        Ok(false) => Ok(Shown::Nothing),
        Err(error) => Err(error),
    }
}

/// What keeps these two from understanding each other.
#[must_use]
pub fn stranger(protocol: u32) -> Option<String> {
    (protocol != PROTOCOL)
        .then(|| format!("protocol {protocol} is spoken there and protocol {PROTOCOL} here"))
}

fn nonce() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("draw a nonce")?;
    Ok(hex(&bytes))
}

/// Which network this is, in words that are the same for every process in it and in no other network,
/// also of another machine.
fn network() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let number = std::fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino());
    format!("{} {}", boot.trim(), number.unwrap_or_default())
}

async fn say(stream: &mut BufReader<UnixStream>, what: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(what).context("write a line")?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await.context("send a line")
}

/// `None` at the end of the connection.
async fn hear<T: for<'a> Deserialize<'a>>(stream: &mut BufReader<UnixStream>) -> Result<Option<T>> {
    let mut line = String::new();
    match stream.take(LONGEST).read_line(&mut line).await {
        Ok(0) | Err(_) => Ok(None),
        Ok(_) => serde_json::from_str(&line).map(Some).with_context(|| {
            format!("understand {:?}", line.chars().take(200).collect::<String>())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_missing_right_opens_the_door_to_the_user() {
        let error = |errno: Errno| anyhow::Error::new(errno).context("show CAP_NET_ADMIN");
        assert_eq!(Admission::where_not(&error(Errno::PERM)), Admission::SameUser);
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOENT] {
            assert_eq!(Admission::where_not(&error(errno)), Admission::Shown, "{errno:?}");
        }
        let other = anyhow::anyhow!("any process may set any buffer");
        assert_eq!(Admission::where_not(&other), Admission::Shown);
    }
}
