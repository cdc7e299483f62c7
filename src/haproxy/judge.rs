//! Acts: looks at the configuration as HAProxy is about to read it, before each launch, so that a
//! reload is warned of like a start. HAProxy has the last word.

use std::path::PathBuf;

use super::configuration::{Configuration, Facts, judge};
use super::configuration_files;
use super::launch::StateFile;
use super::version::Version;
use crate::problem::Problem;

/// What stays the same while the configuration changes.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Files and directories; none for the embedded default.
    pub paths: Vec<PathBuf>,
    /// `-C` of HAProxy's arguments.
    pub directory: Option<PathBuf>,
    pub version: Version,
    pub hostname: String,
    pub local_peer: Option<String>,
    pub maxconn: Option<u64>,
    pub descriptors: Option<u64>,
    pub transparent: bool,
    /// Ours, where the configuration does not name one.
    pub state_file: PathBuf,
}

#[derive(Debug, Default)]
pub struct Judgement {
    pub problems: Vec<Problem>,
    /// Where the configuration expects the servers' state, if it does.
    pub state_file: Option<StateFile>,
}

impl Judge {
    /// What cannot be read is HAProxy's to complain about, in its own words.
    #[must_use]
    pub fn read(&self) -> Configuration {
        configuration_files::read(&self.paths, self.directory.as_deref()).unwrap_or_default()
    }

    #[must_use]
    pub fn judge(&self) -> Judgement {
        let configuration = self.read();
        let facts = Facts {
            version: &self.version,
            hostname: &self.hostname,
            local_peer: self.local_peer.as_deref(),
            maxconn: self.maxconn,
            descriptors: self.descriptors,
            transparent: self.transparent,
        };
        let problems = judge(&configuration, &facts);
        Judgement { problems, state_file: self.state_file(&configuration) }
    }

    fn state_file(&self, configuration: &Configuration) -> Option<StateFile> {
        let Configuration { server_state_file, server_state_base, .. } = configuration;
        configuration.loads_server_state.then(|| match (server_state_file, server_state_base) {
            (Some(file), Some(base)) => StateFile::Theirs(base.join(file)),
            (Some(file), None) => StateFile::Theirs(file.clone()),
            (None, _) => StateFile::Ours(self.state_file.clone()),
        })
    }
}
