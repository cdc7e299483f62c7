//! What an operator does all day, from inside the container: asks HAProxy, moves servers, looks at
//! sessions. Each is a command of its own that ends; it reaches HAProxy through the door and
//! hapilot over the control socket.

pub mod ask;
pub mod runtime;
pub mod server;
pub mod servers;
pub mod sessions;
