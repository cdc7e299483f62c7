//! A watch on the configuration (`HAPROXY_WATCH=on`): it tells when a reload is due.
//!
//! `scene` looks at what is there now; `inotify` says that something stirs in the directories
//! where it is; `quiet` decides when it is time to look. What a launch read is remembered, so that
//! a change is a difference to that, whatever was missed or said twice meanwhile: nothing that
//! happens during a reload is lost, and what was refused is not tried again until it differs.

mod inotify;
mod quiet;
mod scene;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::haproxy::judge::Judge;
use inotify::Inotify;
use quiet::Quiet;
use scene::{Scene, Seen};

#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    quiet: Quiet,
    /// As it was when HAProxy was last started.
    launched: Seen,
}

impl Watch {
    /// Fails where the kernel has no watch left for us.
    pub fn open(judge: &Judge) -> Result<Self> {
        let mut watch =
            Self { inotify: Inotify::open()?, quiet: Quiet::default(), launched: Seen::default() };
        watch.launched = watch.look(judge);
        tracing::info!(files = watch.launched.count(), "the configuration is watched");
        Ok(watch)
    }

    /// In the moment before HAProxy reads it.
    pub fn launches(&mut self, judge: &Judge) {
        self.launched = self.look(judge);
    }

    /// Something may have changed.
    pub fn stir(&mut self, now: Instant) {
        self.quiet.stir(now);
    }

    /// Waits until something stirs.
    pub async fn stirred(&mut self) {
        self.inotify.stirred().await;
    }

    #[must_use]
    pub fn look_at(&self) -> Option<Instant> {
        self.quiet.look_at()
    }

    /// What differs from what HAProxy was last started with.
    pub fn changes(&mut self, judge: &Judge) -> Vec<PathBuf> {
        self.quiet.looked();
        self.look(judge).differs_from(&self.launched)
    }

    /// Whatever is put into a directory before it is watched is there when it is read after that.
    fn look(&mut self, judge: &Judge) -> Seen {
        const MOST: usize = 8;
        let mut scene = Scene::survey(judge);
        for _ in 0..MOST {
            self.inotify.watch(&scene.places);
            let now = Scene::survey(judge);
            if now.places == scene.places {
                return now.seen;
            }
            scene = now;
        }
        // It changes all the time; who changes it stirs us again.
        scene.seen
    }
}
