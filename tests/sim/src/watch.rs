//! Front ends that watch: a snapshot, then every change in order. Its twin is
//! `broker/src/services/watch.rs`.

use std::{collections::BTreeMap, sync::Arc};

use muster_core::model::{Intent, Verdict};

use crate::broker::{Broker, Clocks};

/// A watcher and what it was told.
#[derive(Debug, Default)]
pub struct Watcher {
    position: Option<(u32, u64)>,
    /// The last answer for each host, by the changes alone.
    pub view: BTreeMap<usize, Arc<Verdict>>,
    /// Changes that the snapshot shows already.
    ahead: BTreeMap<usize, u64>,
    /// It was told to begin anew.
    pub resyncs: u64,
}

impl Watcher {
    /// Reads what there is.
    ///
    /// # Errors
    /// If what it was told has a hole.
    pub fn read(&mut self, broker: &mut Broker, clocks: Clocks) -> Result<(), String> {
        let oldest = broker.last - broker.log.len() as u64;
        let goes_on = self.position.filter(|(incarnation, revision)| {
            *incarnation == broker.incarnation && *revision >= oldest && *revision <= broker.last
        });
        let Some((_, mut revision)) = goes_on else {
            if self.position.is_some() {
                self.resyncs += 1;
            }
            return self.snapshot(broker, clocks);
        };
        let after = revision;
        for change in broker.log.iter().filter(|change| change.revision > after) {
            if change.revision != revision + 1 {
                return Err(format!("revision {} follows {revision}", change.revision));
            }
            revision = change.revision;
            if self
                .ahead
                .get(&change.host)
                .is_some_and(|ahead| revision <= *ahead)
            {
                continue;
            }
            match &change.verdict {
                Some(verdict) => self.view.insert(change.host, verdict.clone()),
                None => self.view.remove(&change.host),
            };
        }
        if revision != broker.last {
            return Err(format!(
                "the log ends at {revision}, and its last revision is {}",
                broker.last
            ));
        }
        self.position = Some((broker.incarnation, revision));
        Ok(())
    }

    fn snapshot(&mut self, broker: &mut Broker, clocks: Clocks) -> Result<(), String> {
        self.view.clear();
        self.ahead.clear();
        let revision = broker.last;
        for host in 0..broker.cells.len() {
            let shown = broker.cells[host].as_ref().map(|cell| cell.revision);
            if let Some(shown) = shown
                && let Some(verdict) = broker.verdict(host, Intent::New, clocks)
            {
                if shown > revision {
                    self.ahead.insert(host, shown);
                }
                self.view.insert(host, Arc::new(verdict));
            }
        }
        self.position = Some((broker.incarnation, revision));
        Ok(())
    }

    /// It has read everything up to the broker's last revision.
    #[must_use]
    pub fn is_up_to_date(&self, broker: &Broker) -> bool {
        self.position == Some((broker.incarnation, broker.last))
    }
}
