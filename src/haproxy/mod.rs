//! One stock `haproxy`: what it is told, how it is started, when it is ready, what it says.
//!
//! `command_line` decides what our arguments and HAProxy's mean and what a generation is started
//! with; `configuration` reads hints out of the configuration's text, which `configuration_files`
//! fetches; `version` understands `haproxy -vv`, which `installed` runs. HAProxy has the last word
//! on all of it: nothing here refuses a configuration that HAProxy itself would take.

pub mod answer;
pub mod command_line;
pub mod configuration;
pub mod configuration_files;
pub mod embedded;
pub mod generation;
pub mod hint;
pub mod inheritance;
pub mod insider;
pub mod installed;
pub mod judge;
pub mod launch;
pub mod output;
pub mod peers;
pub mod places;
pub mod ready;
pub mod runtime_api;
pub mod server_state;
pub mod session;
pub mod starved;
pub mod state_file;
pub mod stick_table;
pub mod taken;
pub mod version;
