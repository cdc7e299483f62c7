//! Acts: keeps a socket file to ourselves. Its directory is ours alone too: whoever mounts that
//! somewhere else, or opens it up, still finds the sockets closed.

use std::fs::{Permissions, set_permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub fn make_private(socket: &Path) -> io::Result<()> {
    set_permissions(socket, Permissions::from_mode(0o600))
}
