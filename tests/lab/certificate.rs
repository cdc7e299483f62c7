//! Certificates, made by OpenSSL.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Key and certificate in one file, as HAProxy wants them; beside it each alone.
pub fn certificate(directory: &Path) -> PathBuf {
    let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '));
    openssl.args(["-subj", "/CN=lab", "-addext", "subjectAltName=DNS:lab"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let output = openssl.output().expect("openssl must be in PATH");
    assert!(output.status.success(), "{output:?}");
    let both = [key, certificate].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    let path = directory.join("lab.pem");
    std::fs::write(&path, both).unwrap();
    path
}
