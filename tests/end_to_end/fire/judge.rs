//! A front end that judges the broker from outside: it watches, asks, writes down everything with
//! the broker's own instants, and holds it against what the test knows to be true.
//!
//! It judges by the broker's `as_of` and ages, not by when a word reached it: a busy machine makes
//! words late and no verdict wrong.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use muster_proto::{
    border,
    v1::{CreateTokenRequest, HostStatus, Verdict, WatchHostsRequest, watch_hosts_response::Event},
};
use muster_tests::{
    broker::{Broker, describe},
    clients::{self, Connections, Credentials, Token, WayIn},
    wait,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

/// Between two rounds of questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Names of hosts that only mark a place in the order of what is told.
const MARK: &str = "mark-";
/// A question is given up after this time: a broker that is stopped answers none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Between two tries to watch a broker that is not there.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The front end.
pub(super) struct Judge {
    record: Arc<Mutex<Record>>,
    changed: watch::Sender<u64>,
    tasks: [JoinHandle<()>; 2],
    lease: Duration,
    operator_socket: PathBuf,
    way_in: WayIn,
}

/// What a test knows of a host that it harmed.
#[derive(Clone, Copy)]
struct Harm {
    from: Timestamp,
    /// It was mended then: from the next yes on it must stay yes.
    mended: Option<Timestamp>,
    over: bool,
}

/// One word of the broker.
struct Told {
    verdict: Verdict,
    as_of: Timestamp,
}

/// One answer to a question.
struct Answer {
    verdict: Verdict,
    as_of: Timestamp,
    /// Place of the last word about the host that was told before the question.
    after: usize,
}

#[derive(Default)]
struct Record {
    told: BTreeMap<String, Vec<Told>>,
    answers: BTreeMap<String, Vec<Answer>>,
    harms: BTreeMap<String, Vec<Harm>>,
    /// Later than its lease by so much hosts are believed: a hold, a window.
    extended: Duration,
    /// The last revision that was told; none before a snapshot.
    revision: Option<u64>,
    /// A snapshot may show hosts as of revisions that follow it, and those are not told again.
    racing: bool,
    /// All that was due by then has been told.
    progress: Option<Timestamp>,
    /// Rounds of questions that were all answered.
    rounds: u64,
    broken: Vec<String>,
}

impl Judge {
    /// Begins to watch with a certificate of its own, and waits for the snapshot.
    pub(super) async fn start(broker: &Broker) -> Result<Self> {
        let name = format!("judge-{:08x}", rand::random::<u32>());
        let front_end = clients::issue(broker, "frontend", &name).await?;
        let record = Arc::new(Mutex::new(Record::default()));
        let changed = watch::Sender::new(0);
        let watching = watching(front_end.clone(), record.clone(), changed.clone());
        let judge = Self {
            tasks: [
                tokio::spawn(watching),
                tokio::spawn(asking(front_end, record.clone(), changed.clone())),
            ],
            record,
            changed,
            lease: broker.settings.lease(),
            operator_socket: broker.endpoints.operator_socket.clone(),
            way_in: broker.way_in(),
        };
        judge
            .see("a snapshot", |record| record.revision.map(drop))
            .await?;
        Ok(judge)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }

    /// The host dies now, or cannot be heard: it may be told lost, and must be once its lease is
    /// over.
    pub(super) fn harm(&self, name: &str) {
        let harm = Harm {
            from: Timestamp::now(),
            mended: None,
            over: false,
        };
        let mut record = self.record();
        record.harms.entry(name.to_owned()).or_default().push(harm);
    }

    /// The host is well again: it may be told lost until it is told connectable, and no longer.
    pub(super) fn mend(&self, name: &str) {
        let mut record = self.record();
        let harm = record
            .harms
            .get_mut(name)
            .and_then(|harms| harms.last_mut());
        if let Some(harm) = harm {
            harm.mended = Some(Timestamp::now());
        }
    }

    /// Harmed hosts are believed for so much longer than their leases: a hold or a window.
    pub(super) fn allow(&self, extended: Duration) {
        self.record().extended = extended;
    }

    /// Waits until something is on record.
    async fn see<T>(&self, what: &str, mut look: impl FnMut(&Record) -> Option<T>) -> Result<T> {
        let mut changed = self.changed.subscribe();
        let mut found = None;
        let looked = wait::within(
            what,
            wait::PATIENCE,
            changed.wait_for(|_| {
                found = look(&self.record());
                found.is_some()
            }),
        );
        let looked = looked.await.map(drop);
        looked.with_context(|| self.record().said())?;
        found.context("nothing was found")
    }

    /// Waits until a verdict of this host is told that is as wanted, since the host was harmed if
    /// it was, and gives it.
    pub(super) async fn told(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Verdict) -> bool,
    ) -> Result<Verdict> {
        let from = self.record().harms.get(name).and_then(|harms| {
            let last = harms.last()?;
            Some(last.mended.unwrap_or(last.from))
        });
        self.see(&format!("{name}: {what}"), |record| {
            let told = record.told.get(name)?;
            let mut since = told
                .iter()
                .filter(|told| from.is_none_or(|from| told.as_of >= from));
            let found = since.find(|told| wanted(&told.verdict))?;
            Some(found.verdict.clone())
        })
        .await
    }

    /// Waits until all that was decided by now has been told, by enrolling a host that changes
    /// nothing else: what is told comes in the order in which it was decided.
    pub(super) async fn caught_up(&self) -> Result<()> {
        let name = format!("{MARK}{:08x}", rand::random::<u32>());
        let request = CreateTokenRequest {
            host_name: name.clone(),
            uses: 1,
            ..CreateTokenRequest::default()
        };
        let mut operator = clients::operator(&self.operator_socket).await?;
        let made = operator.create_token(request).await?.into_inner();
        let (token, ca_pin) = (made.token, made.ca_pin);
        self.way_in.enrol(&Token { token, ca_pin }, &name).await?;
        self.see("a mark", |record| record.told.get(&name).map(drop))
            .await
    }

    /// Everything told about this host, in order.
    pub(super) fn all_told(&self, name: &str) -> Vec<Verdict> {
        let record = self.record();
        let told = record.told.get(name).map(Vec::as_slice).unwrap_or_default();
        told.iter().map(|told| told.verdict.clone()).collect()
    }

    /// Waits until all is told, and judges.
    pub(super) async fn verdict(self) -> Result<()> {
        let asked = self.record().rounds;
        self.caught_up().await?;
        // A whole round of questions that began after the last thing that the test did.
        self.see("answers", |record| {
            (record.rounds > asked + 1).then_some(())
        })
        .await?;
        for task in &self.tasks {
            task.abort();
        }
        let record = self.record();
        let mut broken = record.broken.clone();
        for (name, told) in &record.told {
            record.judge_told(name, told, self.lease, &mut broken);
        }
        for (name, answers) in &record.answers {
            record.judge_answers(name, answers, self.lease, &mut broken);
        }
        ensure!(
            broken.is_empty(),
            "the front end saw: {broken:#?}\n{}",
            record.said()
        );
        Ok(())
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Record {
    /// What was told, for whoever reads a failure.
    fn said(&self) -> String {
        let mut lines = Vec::new();
        for told in self.told.values() {
            let lately = &told[told.len().saturating_sub(12)..];
            lines.extend(
                lately
                    .iter()
                    .map(|told| format!("{} {}", told.as_of, describe(&told.verdict))),
            );
        }
        lines.join("\n")
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::SnapshotChunk(chunk) => {
                for verdict in chunk.verdicts {
                    self.tell(verdict)?;
                }
            }
            Event::SnapshotEnd(end) => {
                self.revision = Some(end.revision);
                self.racing = true;
            }
            Event::Changed(changed) => {
                self.follow(changed.revision);
                self.tell(changed.verdict.context("a change without verdict")?)?;
            }
            Event::Removed(removed) => self.follow(removed.revision),
            Event::Resync(_) => self.revision = None,
            Event::Progress(progress) => {
                if self.revision != Some(progress.revision) {
                    let (told, claimed) = (self.revision, progress.revision);
                    let holes = format!("progress claims revision {claimed} after {told:?}");
                    // What a snapshot showed ahead is not told again.
                    if !self.racing {
                        self.broken.push(holes);
                    }
                    self.revision = Some(claimed);
                }
                self.racing = false;
                self.progress = border::optional_instant("as_of", progress.as_of)?;
            }
        }
        Ok(())
    }

    /// Revisions have no holes.
    fn follow(&mut self, revision: u64) {
        let follows = match self.revision {
            Some(before) if self.racing => revision > before,
            Some(before) => revision == before + 1,
            None => false,
        };
        if !follows {
            let before = self.revision;
            let broken = format!("revision {revision} came after {before:?}");
            self.broken.push(broken);
        }
        self.revision = Some(revision);
    }

    fn tell(&mut self, verdict: Verdict) -> Result<()> {
        let as_of = as_of(&verdict)?;
        for harm in self.harms.get_mut(&verdict.name).into_iter().flatten() {
            if harm.mended.is_some_and(|at| as_of >= at) && verdict.connectable_reconnect {
                harm.over = true;
            }
        }
        if verdict.status() == HostStatus::Unavailable
            && self.was_well(&verdict.name)
            && !self.is_harmed_at(&verdict.name, as_of)
        {
            let broken = format!(
                "{as_of}: a host that was well was told lost: {}",
                describe(&verdict)
            );
            self.broken.push(broken);
        }
        let told = self.told.entry(verdict.name.clone()).or_default();
        told.push(Told { verdict, as_of });
        Ok(())
    }

    /// Was it ever told connectable? Before, nothing is known of it.
    fn was_well(&self, name: &str) -> bool {
        let told = self.told.get(name).map(Vec::as_slice).unwrap_or_default();
        told.iter().any(|told| told.verdict.connectable_reconnect)
    }

    /// Was the host harmed then, and not told well since?
    fn is_harmed_at(&self, name: &str, as_of: Timestamp) -> bool {
        let harms = self.harms.get(name).map(Vec::as_slice).unwrap_or_default();
        harms.iter().any(|harm| harm.from <= as_of && !harm.over)
    }

    fn judge_told(&self, name: &str, told: &[Told], lease: Duration, broken: &mut Vec<String>) {
        for told in told {
            self.judge_dead(name, &told.verdict, told.as_of, lease, broken);
        }
    }

    /// No yes for a host after its death, its lease and what extends it. The lease runs from the
    /// last word that the broker took, which it may have taken a little after the death; so its
    /// own age of that word is what counts, and no word may be from long after the death.
    fn judge_dead(
        &self,
        name: &str,
        verdict: &Verdict,
        as_of: Timestamp,
        lease: Duration,
        broken: &mut Vec<String>,
    ) {
        let age = verdict.last_beat_age_ms.map(Duration::from_millis);
        let believed = lease + self.extended;
        if verdict.connectable_reconnect && age.is_some_and(|age| age > believed) {
            let broken_by = describe(verdict);
            broken.push(format!(
                "{as_of}: yes {age:?} after its last beat: {broken_by}"
            ));
        }
        let harms = self.harms.get(name).map(Vec::as_slice).unwrap_or_default();
        let dead = harms
            .iter()
            .find(|harm| harm.from <= as_of && harm.mended.is_none_or(|mended| as_of < mended));
        let Some(dead) = dead else { return };
        let since = Duration::try_from(as_of.duration_since(dead.from)).unwrap_or_default();
        // A lease for what was under way when it died.
        if verdict.connectable_reconnect && since > believed + lease {
            let broken_by = describe(verdict);
            broken.push(format!("{as_of}: yes {since:?} after its end: {broken_by}"));
        }
    }

    /// An answer is what was told last before the question, or something told after it: never
    /// older.
    fn judge_answers(
        &self,
        name: &str,
        answers: &[Answer],
        lease: Duration,
        broken: &mut Vec<String>,
    ) {
        let Some(told) = self.told.get(name) else {
            return;
        };
        for answer in answers {
            self.judge_dead(name, &answer.verdict, answer.as_of, lease, broken);
            let agrees = told[answer.after..]
                .iter()
                .any(|told| says(&told.verdict) == says(&answer.verdict));
            if !agrees {
                broken.push(format!(
                    "{}: answered {} after {}",
                    answer.as_of,
                    describe(&answer.verdict),
                    describe(&told[answer.after].verdict)
                ));
            }
        }
    }
}

/// What an answer says to a front end.
fn says(verdict: &Verdict) -> (HostStatus, bool, bool) {
    (
        verdict.status(),
        verdict.connectable_new,
        verdict.connectable_reconnect,
    )
}

/// When the broker computed this.
pub(super) fn as_of(verdict: &Verdict) -> Result<Timestamp> {
    border::optional_instant("as_of", verdict.as_of)?.context("no as_of")
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches for ever: a broker that goes away is watched again when it is back.
async fn watching(front_end: Credentials, record: Arc<Mutex<Record>>, changed: watch::Sender<u64>) {
    loop {
        if let Err(error) = watch_once(&front_end, &record, &changed).await {
            let mut record = lock(&record);
            record.revision = None;
            record.progress = None;
            // A stream that ends is no fault of the broker; a word without its parts is.
            if error.downcast_ref::<tonic::Status>().is_none()
                && error.to_string().starts_with("a change")
            {
                record.broken.push(error.to_string());
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn watch_once(
    front_end: &Credentials,
    record: &Mutex<Record>,
    changed: &watch::Sender<u64>,
) -> Result<()> {
    let mut connections = Connections::new(front_end.connect().await?);
    let request = WatchHostsRequest::default();
    let mut stream = connections
        .service()
        .watch_hosts(request)
        .await?
        .into_inner();
    while let Some(message) = stream.message().await? {
        lock(record).take(message.event.context("a change of no kind")?)?;
        changed.send_modify(|count| *count += 1);
    }
    Ok(())
}

/// Asks about every host that was told of, again and again.
async fn asking(front_end: Credentials, record: Arc<Mutex<Record>>, changed: watch::Sender<u64>) {
    let mut rounds = interval(ASK_EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connections: Option<Connections> = None;
    loop {
        rounds.tick().await;
        let names: Vec<String> = lock(&record).told.keys().cloned().collect();
        let mut answered = 0;
        let asked = names.len();
        for name in names {
            let Some(asked) = &mut connections else {
                let connected = timeout(ANSWER_WITHIN, front_end.connect()).await;
                connections = connected.ok().and_then(Result::ok).map(Connections::new);
                break;
            };
            let after = lock(&record).told[&name].len() - 1;
            match timeout(ANSWER_WITHIN, asked.check(&name)).await {
                Ok(Ok(verdict)) => {
                    let Ok(as_of) = as_of(&verdict) else {
                        continue;
                    };
                    let mut record = lock(&record);
                    answered += 1;
                    let answers = record.answers.entry(name).or_default();
                    answers.push(Answer {
                        verdict,
                        as_of,
                        after,
                    });
                }
                // No answer is no wrong one.
                Ok(Err(_)) | Err(_) => {
                    connections = None;
                    break;
                }
            }
        }
        if answered == asked {
            lock(&record).rounds += 1;
            changed.send_modify(|count| *count += 1);
        }
    }
}
