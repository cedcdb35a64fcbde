//! Reload: other settings and views, applied between two batches. What they have in common with those before goes on.

use std::sync::Arc;

use anyhow::Result;

use super::Core;
use crate::model::time::EventTime;
use crate::run::rules::Rules;
use crate::run::settings::Settings;
use crate::run::{corrector, resume, service};
use crate::stream::Engine;
use crate::stream::adopt::Adopted;

/// What was read anew, checked and planned: nothing in it can be refused any more.
pub struct Prepared {
    pub settings: Arc<Settings>,
    pub engine: Engine,
    pub rules: Rules,
}

impl Core {
    /// Goes on with what was prepared. Views that changed begin at the first window that is not closed yet, out of what
    /// the store holds.
    ///
    /// # Errors
    /// A store that cannot be read. The core is of no more use then; a restart finds everything.
    pub async fn reload(&mut self, prepared: Prepared) -> Result<Adopted> {
        let Prepared { settings, engine, rules } = prepared;
        let old = std::mem::replace(&mut self.engine, engine);
        let adopted = self.engine.adopt(old, &self.interner)?;
        self.read_outputs();
        self.decoders = service::decoders(&settings);
        self.topics = settings.topics.clone();
        self.interner.set_series_max(settings.series_max);
        self.closed_loop.reload(service::loop_parts(&settings, rules))?;
        adopted.gone.iter().for_each(|view| self.telemetry.views.forget(view));
        let store = Arc::clone(&self.store);
        for (view, _) in self.engine.views().filter(|(view, _)| adopted.changed.contains(&view.name)) {
            let closed = self.engine.closed_through(&view.name);
            if closed > EventTime::MIN {
                corrector::begins(&store, view, closed)?;
            }
        }
        resume::rebuild(self, &store).await?;
        Ok(adopted)
    }

    /// Notes which topics the rows of views go to.
    pub(super) fn read_outputs(&mut self) {
        let views = self.engine.views().map(|(view, _)| view);
        self.view_topics = views.filter_map(|view| Some((view.name.clone(), view.topic.clone()?))).collect();
        self.late_topics = self.engine.views().map(|(view, _)| view.late_topic.clone()).collect();
    }
}
