//! All workers as one: agents are numbered through, whatever process they live in.

use std::{ops::Range, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use muster_runtime::accept::raise_open_files;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{
    meter::{self, Usage},
    worker::{Answer, Order, Start, Totals, Worker},
};

/// Files that a process needs beside those of its agents: the runtime, logs, the watch, and the
/// processes that it starts.
const OTHER_FILES: u64 = 500;
/// Files of an agent, and of one with a listener of its own: a probe may be talking to it.
const FILES: u64 = 1;
const FILES_WITH_LISTENER: u64 = 3;

/// All workers.
pub(crate) struct Crew {
    members: Vec<Member>,
}

struct Member {
    numbers: Range<usize>,
    place: Place,
}

enum Place {
    Here(Box<Worker>),
    There(Box<There>),
}

/// A worker in a child process.
struct There {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Crew {
    /// Workers for this many agents, in so many processes; none for as many as need be. With one
    /// there is no child.
    pub(crate) fn new(agents: usize, listeners: bool, processes: Option<usize>) -> Result<Self> {
        let files = if listeners {
            FILES_WITH_LISTENER
        } else {
            FILES
        };
        let room = raise_open_files().saturating_sub(OTHER_FILES) / files;
        let most = usize::try_from(room)?.max(1);
        let needed = agents.div_ceil(most).max(1);
        let processes = processes.unwrap_or(needed).max(1);
        let share = agents.div_ceil(processes);
        ensure!(
            share <= most,
            "{share} agents in one process need more open files than the limit allows: raise \
             `ulimit -n`, or use at least {needed} processes"
        );
        let numbers = (0..processes)
            .map(|process| (process * share).min(agents)..((process + 1) * share).min(agents));
        let members = numbers.map(|numbers| {
            let place = if processes == 1 {
                Place::Here(Box::default())
            } else {
                Place::There(Box::new(There::start()?))
            };
            Ok(Member { numbers, place })
        });
        Ok(Self {
            members: members.collect::<Result<_>>()?,
        })
    }

    /// Processes that agents live in.
    pub(crate) fn processes(&self) -> usize {
        self.members.len()
    }

    /// Starts all agents.
    pub(crate) async fn start(&mut self, start: &Start) -> Result<()> {
        let parts = u32::try_from(self.members.len())?.max(1);
        for member in &mut self.members {
            let share = Start {
                first: member.numbers.start.min(start.end),
                end: member.numbers.end.min(start.end),
                per_second: start.per_second.div_ceil(parts),
                ..start.clone()
            };
            member.done(Order::Start(share)).await?;
        }
        Ok(())
    }

    /// How things stand with all agents.
    pub(crate) async fn totals(&mut self) -> Result<Totals> {
        let mut totals = Totals::default();
        for member in &mut self.members {
            match member.say(Order::Totals).await? {
                Answer::Totals(share) => totals = totals.and(share),
                other => bail!("no totals but {other:?}"),
            }
        }
        Ok(totals)
    }

    /// All connections break at once.
    pub(crate) async fn break_all(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.done(Order::BreakAll).await?;
        }
        Ok(())
    }

    /// All agents end.
    pub(crate) async fn clear(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.done(Order::Clear).await?;
        }
        Ok(())
    }

    /// Harms one agent by `order`, and says when.
    pub(crate) async fn harm(
        &mut self,
        number: usize,
        order: impl FnOnce(Vec<usize>) -> Order,
    ) -> Result<u64> {
        let mut members = self.members.iter_mut();
        let member = members
            .find(|member| member.numbers.contains(&number))
            .with_context(|| format!("there is no agent {number}"))?;
        match member.say(order(vec![number])).await? {
            Answer::Harmed(harmed) => match harmed.first() {
                Some((_, at)) => Ok(*at),
                None => bail!("agent {number} is not there any more"),
            },
            other => bail!("no word of agent {number} but {other:?}"),
        }
    }

    /// What the processes of the agents have used. In the only process, that is the watch and all
    /// else too.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let mut all = Usage::default();
        for member in &self.members {
            let process = match &member.place {
                Place::Here(_) => std::process::id(),
                Place::There(there) => there.process.id().context("a worker has ended")?,
            };
            let used = meter::usage(process)?;
            all.cpu += used.cpu;
            all.rss_kib += used.rss_kib;
            all.pss_kib += used.pss_kib;
        }
        Ok(all)
    }
}

impl Member {
    async fn done(&mut self, order: Order) -> Result<()> {
        match self.say(order).await? {
            Answer::Done => Ok(()),
            other => bail!("not done but {other:?}"),
        }
    }

    async fn say(&mut self, order: Order) -> Result<Answer> {
        let answer = match &mut self.place {
            Place::Here(worker) => worker.handle(order).await,
            Place::There(there) => there.say(&order).await?,
        };
        match answer {
            Answer::Failed(why) => bail!("{why}"),
            answer => Ok(answer),
        }
    }
}

impl There {
    fn start() -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let mut process = Command::new(program)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a worker")?;
        let orders = process.stdin.take().context("a worker without input")?;
        let answers = process.stdout.take().context("a worker without output")?;
        Ok(Self {
            process,
            orders,
            answers: BufReader::new(answers).lines(),
        })
    }

    async fn say(&mut self, order: &Order) -> Result<Answer> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders
            .write_all(&line)
            .await
            .context("a worker has ended")?;
        let answer = self
            .answers
            .next_line()
            .await?
            .context("a worker has ended")?;
        Ok(serde_json::from_str(&answer)?)
    }
}
