//! Where words meet their receivers: the broker's services on one side, machines on the other.
//! Its twin on the broker's side is `broker/src/services/agent.rs`.

use std::time::Duration;

use muster_core::{
    fleet::{BUCKET, TICK},
    host::{Admission, Effects, Event, Undrain},
    model::{Epoch, ResumeToken},
};

use crate::{
    agent::{AckOf, CAP, Down, Up},
    broker::{Broker, TERMS},
    world::{Ev, OnDurable, World},
};

impl World {
    /// The broker's process starts.
    pub fn start_broker(&mut self) {
        if self.broker.is_some() {
            return;
        }
        self.machine_down = false;
        if self.store_fails > 0 {
            // The number of its start cannot be stored: it does not start.
            self.after(Duration::from_secs(1), Ev::Start);
            return;
        }
        self.incarnation += 1;
        let clocks = self.clocks();
        let broker = Broker::start(
            self.incarnation,
            &self.ids,
            &self.policies,
            &mut self.store,
            clocks,
        );
        self.oracle
            .broker_started(&self.store, &self.ids, &broker, clocks);
        self.broker = Some(broker);
        let jitter = self.rng.millis(0, 1000);
        self.after(jitter, Ev::Tick(self.incarnation));
        self.after(BUCKET, Ev::Look(self.incarnation));
        self.trace.line(
            self.now,
            format_args!("BROKER starts, number {}", self.incarnation),
        );
    }

    /// It is gone, with all that was not durable; `cut` if its machine went with it.
    pub fn kill_broker(&mut self, cut: bool) {
        let Some(broker) = self.broker.take() else {
            return;
        };
        self.trace.line(
            self.now,
            format_args!("BROKER is gone, number {}", broker.incarnation),
        );
        self.oracle.broker_gone();
        self.store.crash(&mut self.rng);
        self.waiting.clear();
        self.held.retain(|ev| !ev.needs_broker());
        self.machine_down = cut;
        let conns: Vec<u32> = self.net.conns.keys().copied().collect();
        for number in conns {
            if let Some(conn) = self.net.conns.get_mut(&number)
                && std::mem::replace(&mut conn.broker_open, false)
                && !cut
            {
                let delay = self.delay();
                self.after(delay, Ev::AgentLost(number));
            }
        }
    }

    pub(crate) fn tick(&mut self, incarnation: u32) {
        let clocks = self.clocks();
        if let Some(broker) = self
            .broker
            .as_mut()
            .filter(|b| b.incarnation == incarnation)
        {
            self.oracle.ticked(clocks);
            broker.tick(&mut self.store, clocks);
            broker.due(&mut self.store, clocks);
            self.oracle.looked();
            self.after(TICK, Ev::Tick(incarnation));
        }
    }

    pub(crate) fn look(&mut self, incarnation: u32) {
        let clocks = self.clocks();
        if let Some(broker) = self
            .broker
            .as_mut()
            .filter(|b| b.incarnation == incarnation)
        {
            broker.due(&mut self.store, clocks);
            self.oracle.looked();
            self.after(BUCKET, Ev::Look(incarnation));
        }
    }

    /// Begins a commit if one can begin.
    pub(crate) fn commit(&mut self) {
        if self.broker.is_none() || !self.store.begin() {
            return;
        }
        let takes = if self.store_slow > 0 {
            self.rng.millis(500, 8000)
        } else {
            self.rng.millis(0, 4)
        };
        self.after(takes, Ev::Commit(self.incarnation));
    }

    pub(crate) fn committed(&mut self, incarnation: u32) {
        if incarnation != self.incarnation || self.broker.is_none() {
            return;
        }
        if self.store_fails > 0 {
            self.store.fail();
            self.store.pause();
            self.after(Duration::from_secs(1), Ev::Retry(incarnation));
            return;
        }
        self.store.finish();
        let waiting = std::mem::take(&mut self.waiting);
        for (ticket, then) in waiting {
            if !self.store.is_durable(ticket) {
                self.waiting.push((ticket, then));
                continue;
            }
            match then {
                OnDurable::Ack(conn, of) => self.acknowledge(conn, of),
                OnDurable::Drained(host) => self.oracle.drain_acknowledged(host),
                OnDurable::Undrain(host) => self.apply(host, Event::Undrain(Undrain::All)),
            }
        }
    }

    fn acknowledge(&mut self, number: u32, of: AckOf) {
        let Some(conn) = self.net.conns.get(&number) else {
            return;
        };
        if !conn.broker_open {
            return;
        }
        let machine = conn.machine;
        self.oracle.acknowledged(self.machines[machine].host, &of);
        self.send_down(number, Down::Ack(of));
    }

    /// An event for a host that no connection carries.
    pub(crate) fn apply(&mut self, host: usize, event: Event) {
        let clocks = self.clocks();
        if let Some(broker) = &mut self.broker {
            broker.apply(host, event, &mut self.store, clocks);
        }
    }

    /// A connection arrives.
    pub(crate) fn arrive(&mut self, number: u32) {
        let Some(conn) = self.net.conns.get(&number) else {
            return;
        };
        let machine = conn.machine;
        if self.is_cut(machine) || self.machine_down || !conn.agent_open {
            return;
        }
        let host = self.machines[machine].host;
        let token = ResumeToken::new(self.rng.bytes());
        let clocks = self.clocks();
        let Some(broker) = &mut self.broker else {
            let delay = self.delay();
            self.after(delay, Ev::AgentLost(number));
            return;
        };
        let Some(conn) = self.net.conns.get_mut(&number) else {
            return;
        };
        let Some(hello) = conn.hello.take() else {
            return;
        };
        conn.incarnation = self.incarnation;
        conn.broker_open = true;
        let epoch = broker.next_epoch();
        let event = Event::Opened {
            epoch,
            hello: (*hello).clone(),
            terms: TERMS,
            peer_address: self.machines[machine].peer.clone(),
            is_local: false,
            token: token.clone(),
        };
        self.oracle.hello(host, broker, clocks);
        let Some(outcome) = broker.apply(host, event, &mut self.store, clocks) else {
            self.refuse(number, Some(CAP));
            return;
        };
        self.oracle.opened(
            host,
            machine,
            epoch,
            &hello,
            &token,
            &outcome.effects,
            broker,
            clocks,
        );
        match outcome.effects.admission {
            Some(Admission::Accepted) => {
                if let Some(conn) = self.net.conns.get_mut(&number) {
                    conn.epoch = Some(epoch);
                }
                self.send_down(number, Down::Welcome(token, epoch));
                self.follow(number, &outcome.effects);
            }
            Some(Admission::InUse { retry_after } | Admission::Conflict { retry_after }) => {
                self.refuse(number, Some(retry_after));
            }
            None => self.refuse(number, None),
        }
        if outcome.effects.challenge {
            self.challenge(host);
        }
    }

    /// The session that speaks for a host is asked for a word.
    fn challenge(&mut self, host: usize) {
        let session = self
            .broker
            .as_ref()
            .and_then(|broker| broker.cells[host].as_ref())
            .and_then(|cell| cell.host.facts().session.as_ref().map(|s| s.epoch));
        if let Some(conn) = session.and_then(|epoch| self.net.of_epoch(epoch)) {
            self.send_down(conn, Down::Resync);
        }
    }

    fn refuse(&mut self, number: u32, retry: Option<Duration>) {
        self.send_down(number, Down::Refused(retry));
        if let Some(conn) = self.net.conns.get_mut(&number) {
            conn.broker_open = false;
        }
    }

    /// What the core wants of the agent.
    fn follow(&mut self, number: u32, effects: &Effects) {
        if effects.resync.is_some() {
            self.send_down(number, Down::Resync);
        }
        if effects.recheck {
            self.send_down(number, Down::Recheck);
        }
    }

    /// A word arrives at the broker's machine.
    pub(crate) fn up(&mut self, number: u32, up: Up) {
        let Some(conn) = self.net.conns.get(&number) else {
            return;
        };
        if self.is_cut(conn.machine) || self.machine_down {
            let lease = TERMS.lease;
            if let Some(conn) = self.net.conns.get_mut(&number) {
                conn.stalled_up.push_back(up);
                if !std::mem::replace(&mut conn.up_timer, true) {
                    self.after(lease, Ev::UpTimeout(number));
                }
            }
            return;
        }
        let there =
            conn.broker_open && conn.incarnation == self.incarnation && self.broker.is_some();
        let (Some(epoch), true) = (conn.epoch, there) else {
            let delay = self.delay();
            self.after(delay, Ev::AgentLost(number));
            return;
        };
        let host = self.machines[conn.machine].host;
        if self.net.adversary > 0 && self.rng.percent(20) {
            let after = self.rng.millis(0, 40_000);
            self.after(after, Ev::Replay(host, epoch, up.clone()));
        }
        if let Some(effects) = self.hear(host, epoch, &up, Some(number)) {
            self.follow(number, &effects);
            if effects.stale && !matches!(up, Up::Beat(_)) {
                // A newer session took over: this word was not taken, and is not acknowledged.
                self.end(number, false);
            }
        }
    }

    /// A word repeated by somebody in between.
    pub(crate) fn replay(&mut self, host: usize, epoch: Epoch, up: &Up) {
        let is_live = self.oracle.is_live(host, epoch);
        if is_live && matches!(up, Up::Leaving(_) | Up::Upgrade(_)) {
            // Within a session only what TLS would let pass: nothing. Beats and reports are tried
            // all the same, because they are numbered.
            return;
        }
        let clocks = self.clocks();
        if let Some(broker) = &mut self.broker {
            self.oracle.before_replay(host, broker, clocks);
        }
        self.hear(host, epoch, up, None);
        if let Some(broker) = &mut self.broker {
            self.oracle.after_replay(host, broker, clocks);
        }
    }

    fn hear(
        &mut self,
        host: usize,
        epoch: Epoch,
        up: &Up,
        answer_to: Option<u32>,
    ) -> Option<Effects> {
        let (event, of) = match up.clone() {
            Up::Beat(beat) => (Event::Beat(epoch, beat), None),
            Up::Report(report) => (Event::Report(epoch, *report), Some(AckOf::Report)),
            Up::Leaving(power) => (Event::Leaving(epoch, power), Some(AckOf::Leaving(power))),
            Up::Upgrade(upgrade) => {
                let of = AckOf::Upgrade(upgrade.clone());
                (Event::Upgrade(epoch, upgrade), Some(of))
            }
        };
        let clocks = self.clocks();
        let broker = self.broker.as_mut()?;
        let outcome = broker.apply(host, event, &mut self.store, clocks)?;
        if answer_to.is_some() {
            self.oracle
                .heard(host, epoch, up, &outcome.effects, broker, clocks);
        }
        if let (Some(conn), Some(of), false) = (answer_to, of, outcome.effects.stale) {
            match outcome.ticket {
                Some(ticket) => self.waiting.push((ticket, OnDurable::Ack(conn, of))),
                None => self.acknowledge(conn, of),
            }
        }
        Some(outcome.effects)
    }

    /// The broker ends a session.
    pub(crate) fn close(&mut self, _host: usize, epoch: Epoch, replaced: bool) {
        if let Some(number) = self.net.of_epoch(epoch) {
            self.end(number, !replaced);
        }
    }

    fn end(&mut self, number: u32, soon: bool) {
        let Some(conn) = self.net.conns.get(&number) else {
            return;
        };
        if conn.broker_open {
            self.send_down(number, Down::End(soon));
            self.broker_side_ends(number);
        }
    }

    /// The broker's end is gone: its session is told.
    fn broker_side_ends(&mut self, number: u32) {
        let Some(conn) = self.net.conns.get_mut(&number) else {
            return;
        };
        if !std::mem::replace(&mut conn.broker_open, false) {
            return;
        }
        let (machine, epoch) = (conn.machine, conn.epoch);
        if let Some(epoch) = epoch {
            let host = self.machines[machine].host;
            let clocks = self.clocks();
            self.oracle.stream_ended(host, epoch, clocks);
            self.apply(host, Event::StreamEnded(epoch));
        }
    }

    pub(crate) fn broker_lost(&mut self, number: u32) {
        let here = self
            .net
            .conns
            .get(&number)
            .is_some_and(|conn| conn.incarnation == self.incarnation);
        if here {
            self.broker_side_ends(number);
        }
    }

    /// Sends a word to the agent.
    pub(crate) fn send_down(&mut self, number: u32, down: Down) {
        let delay = self.delay();
        let now = self.now;
        if let Some(conn) = self.net.conns.get_mut(&number) {
            let at = (now + delay).max(conn.down_last);
            conn.down_last = at;
            self.at(at, Ev::Down(number, down));
        }
    }

    /// Sends a word to the broker.
    pub(crate) fn send_up(&mut self, number: u32, up: Up) {
        let delay = self.delay();
        let now = self.now;
        let late = self.net.adversary > 0
            && matches!(up, Up::Beat(_) | Up::Report(_))
            && self.rng.percent(10);
        let extra = self.rng.millis(0, 3000);
        if let Some(conn) = self.net.conns.get_mut(&number) {
            let at = if late {
                now + delay + extra
            } else {
                let at = (now + delay).max(conn.up_last);
                conn.up_last = at;
                at
            };
            self.at(at, Ev::Up(number, up));
        }
    }

    /// A word arrives at the agent's machine.
    pub(crate) fn down(&mut self, number: u32, down: Down) {
        let Some(conn) = self.net.conns.get(&number) else {
            return;
        };
        let machine = conn.machine;
        let truth = self.machines[machine].truth;
        let stalls = self.is_cut(machine) || truth.suspended > 0;
        if stalls || truth.paused > 0 {
            if let Some(conn) = self.net.conns.get_mut(&number) {
                conn.stalled_down.push_back(down);
                if stalls && !std::mem::replace(&mut conn.down_timer, true) {
                    self.after(TERMS.lease, Ev::DownTimeout(number));
                }
            }
            return;
        }
        if truth.off > 0 {
            return;
        }
        let process = self.machines[machine].process.as_ref();
        let there = conn.agent_open && process.is_some_and(|p| p.generation == conn.generation);
        if !there {
            let delay = self.delay();
            self.after(delay, Ev::BrokerLost(number));
            return;
        }
        if let Down::Ack(AckOf::Leaving(_)) = &down {
            self.gone(machine, conn.generation);
            return;
        }
        let is_over = matches!(down, Down::End(_) | Down::Refused(_));
        let now = self.now;
        self.machines[machine].hear(number, &down, now, &mut self.rng);
        if is_over && let Some(conn) = self.net.conns.get_mut(&number) {
            conn.agent_open = false;
        }
        self.wake(machine);
    }

    pub(crate) fn agent_lost(&mut self, number: u32) {
        let Some(conn) = self.net.conns.get_mut(&number) else {
            return;
        };
        let machine = conn.machine;
        if self.net.cut_all > 0 || self.machines[machine].truth.cut > 0 {
            return;
        }
        if !std::mem::replace(&mut conn.agent_open, false) {
            return;
        }
        let generation = conn.generation;
        self.agent_side_ends(machine, generation, number);
    }

    pub(crate) fn agent_side_ends(&mut self, machine: usize, generation: u32, number: u32) {
        let now = self.now;
        let process = self.machines[machine].process.as_ref();
        if process.is_some_and(|p| p.generation == generation) {
            self.machines[machine].lose(number, now, &mut self.rng);
            self.wake(machine);
        }
    }

    pub(crate) fn up_timeout(&mut self, number: u32) {
        let Some(conn) = self.net.conns.get_mut(&number) else {
            return;
        };
        conn.up_timer = false;
        if conn.stalled_up.is_empty() {
            return;
        }
        conn.stalled_up.clear();
        conn.agent_open = false;
        let (machine, generation) = (conn.machine, conn.generation);
        self.agent_side_ends(machine, generation, number);
    }

    pub(crate) fn down_timeout(&mut self, number: u32) {
        let Some(conn) = self.net.conns.get_mut(&number) else {
            return;
        };
        conn.down_timer = false;
        if conn.stalled_down.is_empty() {
            return;
        }
        conn.stalled_down.clear();
        self.after(Duration::ZERO, Ev::BrokerLost(number));
    }

    pub(crate) fn no_welcome(&mut self, number: u32) {
        let Some(conn) = self.net.conns.get_mut(&number) else {
            return;
        };
        let (machine, generation) = (conn.machine, conn.generation);
        if !conn.agent_open || self.machines[machine].is_in_session() {
            return;
        }
        conn.agent_open = false;
        if !self.is_cut(machine) {
            let delay = self.delay();
            self.after(delay, Ev::BrokerLost(number));
        }
        self.agent_side_ends(machine, generation, number);
    }

    /// What stalled goes on, in order.
    pub(crate) fn flush(&mut self, machine: usize) {
        for number in self.net.of(machine) {
            let Some(conn) = self.net.conns.get_mut(&number) else {
                continue;
            };
            let up = std::mem::take(&mut conn.stalled_up);
            let down = std::mem::take(&mut conn.stalled_down);
            for word in up {
                self.send_up(number, word);
            }
            for word in down {
                self.send_down(number, word);
            }
        }
    }
}
