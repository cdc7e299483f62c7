//! Acts: the secret that the operator gave two hapilots (`HAPROXY_TAKEOVER_SECRET_FILE`), and the
//! proof of knowing it: an HMAC over what both ends of one connection know. The secret itself is
//! never sent.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::instance::Instance;

/// A proof that a visitor sees can be compared with guesses, so the secret must not be guessed.
const SHORTEST: usize = 16;
const LONGEST: usize = 4096;
const MAY_READ_OR_WRITE: u32 = 0o006;
const GROUP_MAY_WRITE: u32 = 0o020;

static OURS: OnceLock<Secret> = OnceLock::new();

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// Which end proves that it knows the secret: the proof of one is not that of the other.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    Predecessor,
    Successor,
}

/// What a proof is about: this connection, and no other.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// At whose door.
    pub instance: Instance,
    /// This boot of this machine, and the number of the network namespace: the host's own has the same
    /// number on every machine. Empty and 0 where they cannot be read.
    pub network: &'a str,
    pub successors_nonce: &'a str,
    pub predecessors_nonce: &'a str,
}

impl Secret {
    /// From a file that no other user may read. The error says why not.
    pub fn read(path: &Path) -> Result<Self, String> {
        // A pipe would be waited for.
        let mut options = File::options();
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open(path).map_err(|error| error.to_string())?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err("it is not a file".to_owned());
        }
        let mode = metadata.mode() & 0o7777;
        if mode & (MAY_READ_OR_WRITE | GROUP_MAY_WRITE) != 0 {
            return Err(format!("other users may read or change it (mode {mode:04o}): chmod 600"));
        }
        let own = rustix::process::geteuid().as_raw();
        if ![0, own].contains(&metadata.uid()) {
            return Err(format!("it belongs to user {}: chown {own}", metadata.uid()));
        }
        let mut bytes = Vec::new();
        let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX) + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Self::new(bytes.trim_ascii())
    }

    /// Trimmed already.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        match bytes.len() {
            0..SHORTEST => Err(format!("its secret is shorter than {SHORTEST} bytes")),
            SHORTEST..=LONGEST => Ok(Self(bytes.to_vec())),
            _ => Err(format!("its secret is longer than {LONGEST} bytes")),
        }
    }

    /// For the rest of this process's life.
    pub fn keep(self) {
        let _ = OURS.set(self);
    }

    /// That of the operator, if there is one.
    #[must_use]
    pub fn ours() -> Option<&'static Self> {
        OURS.get()
    }

    #[must_use]
    pub fn proof(&self, role: Role, occasion: &Occasion<'_>) -> String {
        hex(&self.mac(role, occasion).finalize().into_bytes())
    }

    /// Takes as long for a wrong proof as for one that is nearly right.
    #[must_use]
    pub fn is_proof(&self, role: Role, occasion: &Occasion<'_>, proof: &str) -> bool {
        bytes(proof).is_some_and(|proof| self.mac(role, occasion).verify_slice(&proof).is_ok())
    }

    fn mac(&self, role: Role, occasion: &Occasion<'_>) -> Hmac<Sha256> {
        let Occasion { instance, network, successors_nonce, predecessors_nonce } = occasion;
        // Debug writes the texts with quotes, so that no two occasions read the same.
        let text = format!(
            "hapilot take-over {role:?} {instance} {network:?} {successors_nonce:?} \
             {predecessors_nonce:?}"
        );
        let key = Hmac::<Sha256>::new_from_slice(&self.0);
        key.expect("HMAC takes a key of any length").chain_update(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(pair).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const OCCASION: Occasion<'static> = Occasion {
        instance: Instance::new(1),
        network: "boot 7",
        successors_nonce: "aa",
        predecessors_nonce: "bb",
    };

    #[test]
    fn a_proof_holds_for_its_secret_its_end_and_its_occasion_alone() {
        let secret = Secret::new(b"0123456789abcdef").unwrap();
        let proof = secret.proof(Role::Successor, &OCCASION);
        assert!(secret.is_proof(Role::Successor, &OCCASION, &proof));
        assert!(!secret.is_proof(Role::Predecessor, &OCCASION, &proof));
        for other in [
            Occasion { instance: Instance::new(2), ..OCCASION },
            Occasion { network: "boot 8", ..OCCASION },
            Occasion { network: "other 7", ..OCCASION },
            Occasion { successors_nonce: "ab", ..OCCASION },
            Occasion { predecessors_nonce: "ba", ..OCCASION },
        ] {
            assert!(!secret.is_proof(Role::Successor, &other, &proof), "{other:?}");
        }
        let stranger = Secret::new(b"0123456789abcdeg").unwrap();
        assert!(!stranger.is_proof(Role::Successor, &OCCASION, &proof));
        for garbage in ["", "a", "zz", "é", &proof[2..], &format!("{proof}00")] {
            assert!(!secret.is_proof(Role::Successor, &OCCASION, garbage), "{garbage}");
        }
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }

    #[test]
    fn a_file_for_every_reader_and_a_secret_to_be_guessed_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        write(&path, "0123456789abcdef\n").unwrap();
        for (mode, why) in [
            (0o600, None),
            (0o400, None),
            (0o640, None),
            (0o644, Some("(mode 0644)")),
            (0o602, Some("(mode 0602)")),
            (0o660, Some("(mode 0660)")),
        ] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match (Secret::read(&path), why) {
                (Ok(secret), None) => assert_eq!(secret.0, b"0123456789abcdef"),
                (Err(error), Some(why)) => assert!(error.contains(why), "{error}"),
                (read, _) => panic!("{mode:o}: {read:?}"),
            }
        }
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for (text, why) in [("short", "shorter"), (&"x".repeat(5000), "longer")] {
            write(&path, text).unwrap();
            assert!(Secret::read(&path).unwrap_err().contains(why));
        }
        assert!(Secret::read(directory.path()).unwrap_err().contains("not a file"));
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(Secret::read(&pipe).unwrap_err().contains("not a file"));
        assert!(Secret::read(&directory.path().join("none")).unwrap_err().contains("No such file"));
    }
}
