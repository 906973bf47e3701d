//! What each fault does when it begins, goes on and ends.

use std::{sync::Arc, time::Duration};

use muster_core::{
    host::{Drain, Event},
    model::{Leave, PowerAnnouncement, UpgradeAnnouncement, UpgradeAttempt, UpgradePhase},
};

use crate::{
    agent::Up,
    plan::{Plan, What},
    store::{Key, Value},
    world::{BEGIN, Ev, OnDurable, World},
};

/// Step of a fault: it begins.
const BEGINS: u8 = 0;
/// It ends.
const ENDS: u8 = 1;
/// It goes on.
const GOES_ON: u8 = 2;
/// The longest wait for the acknowledgement of a goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// The owner of drains.
const OWNER: &str = "operator";

impl World {
    pub(crate) fn fault(&mut self, number: usize, step: u8) {
        let fault = self.plan.faults[number];
        let (begins, ends) = (step == BEGINS, step == ENDS);
        if begins {
            self.trace.line(
                self.now,
                format_args!("FAULT {number} begins: {:?}", fault.what),
            );
            self.after(fault.lasts, Ev::Fault(number, ENDS));
        } else if ends {
            self.trace.line(
                self.now,
                format_args!("FAULT {number} ends: {:?}", fault.what),
            );
        }
        match fault.what {
            What::AgentKilled(m) | What::TokenLost(m) => {
                if begins {
                    self.kill_agent(m);
                    if matches!(fault.what, What::TokenLost(_)) {
                        self.machines[m].token = None;
                    }
                    self.machines[m].truth.no_agent += 1;
                } else if ends {
                    self.machines[m].truth.no_agent -= 1;
                    self.start_agent(m);
                }
            }
            What::AgentRestarts(m) => self.goodbye(m, step, Leave::AgentRestart),
            What::AgentStopped(m) => self.goodbye(m, step, Leave::AgentStop),
            What::Poweroff(m) => self.goodbye(m, step, Leave::Poweroff),
            What::Reboot(m) => self.goodbye(m, step, Leave::Reboot),
            What::Suspend(m) => self.goodbye(m, step, Leave::Suspend),
            What::AgentPaused(m) => self.pause_agent(m, begins, ends),
            What::PowerCut(m) => {
                if begins {
                    self.power_off(m);
                    self.machines[m].truth.off += 1;
                } else if ends {
                    self.power_on(m);
                }
            }
            What::Reset(m) if begins => self.reset(m, true, true),
            What::HalfOpen(m) if begins => {
                let agent = self.rng.percent(50);
                self.reset(m, agent, !agent);
            }
            What::Reset(_) | What::HalfOpen(_) => {}
            What::Cut(m) => self.cut(m, begins, ends),
            What::CutSome(percent) => self.cut_some(number, percent, begins, ends),
            What::CutAll => {
                if begins {
                    self.net.cut_all += 1;
                } else if ends {
                    self.net.cut_all -= 1;
                    for machine in 0..self.machines.len() {
                        self.flush(machine);
                    }
                }
            }
            What::Clone(m) => self.clone_machine(number, m, begins, ends),
            What::Drained(m) => self.drain(number, m, step),
            What::Upgraded(m, kind) => self.upgrade(number, m, kind, step),
            What::Flaps(m) => self.flap(number, m, step),
            What::Removed(m) if begins => self.remove_host(m),
            What::Removed(_) => {}
            What::BrokerKilled(_)
            | What::BrokerLoops(_)
            | What::BrokerStops
            | What::BrokerPaused
            | What::WallJumps(_) => self.broker_fault(number, step),
            _ => self.count(fault.what, begins, ends),
        }
    }

    /// What happens to the broker.
    fn broker_fault(&mut self, number: usize, step: u8) {
        let (begins, ends) = (step == BEGINS, step == ENDS);
        match self.plan.faults[number].what {
            What::BrokerKilled(cut) if begins => self.kill_broker_for(cut),
            What::BrokerLoops(lives) => self.crash_loop(number, lives, step),
            What::BrokerStops if begins => self.stop_broker(),
            What::BrokerKilled(cut) if ends => {
                if cut && self.broker.is_none() {
                    self.boot_base = self.now.back(Duration::from_secs(20));
                }
                self.start_broker();
            }
            What::BrokerStops if ends => self.start_broker(),
            What::BrokerKilled(_) | What::BrokerStops => {}
            What::BrokerPaused => {
                if begins {
                    self.paused += 1;
                } else if ends {
                    self.paused -= 1;
                    if self.paused == 0 {
                        self.resume();
                    }
                }
            }
            What::WallJumps(seconds) if begins => self.wall_off += i64::from(seconds),
            What::WallJumps(_) => {}
            _ => {}
        }
    }

    /// Faults that are so while they last.
    fn count(&mut self, what: What, begins: bool, ends: bool) {
        let counter = match what {
            What::Slow(most) => {
                if begins {
                    self.net.slow.push(most);
                } else if ends && let Some(at) = self.net.slow.iter().position(|s| *s == most) {
                    self.net.slow.swap_remove(at);
                }
                return;
            }
            What::Adversary => &mut self.net.adversary,
            What::StoreSlow => &mut self.store_slow,
            What::StoreFails => &mut self.store_fails,
            What::FrontEndBroken => &mut self.front_end_broken,
            What::FatalFails(m) => &mut self.machines[m].truth.fatal_fails,
            What::NonFatalFails(m) => &mut self.machines[m].truth.non_fatal_fails,
            What::CheckHangs(m) => &mut self.machines[m].truth.hangs,
            What::ChecksStuck(m) => &mut self.machines[m].truth.stuck,
            What::ListenerDown(m) => &mut self.machines[m].truth.listener_down,
            What::FirewallRejects(m) => &mut self.machines[m].truth.rejects_broker,
            _ => return,
        };
        if begins {
            *counter += 1;
        } else if ends {
            *counter -= 1;
        }
        if ends && let What::ChecksStuck(m) = what {
            self.wake(m);
        }
    }

    /// The agent's process is gone; the kernel closes its connections.
    pub(crate) fn kill_agent(&mut self, m: usize) {
        if self.machines[m].process.take().is_none() {
            return;
        }
        for number in self.net.of(m) {
            let open = self
                .net
                .conns
                .get_mut(&number)
                .is_some_and(|conn| std::mem::replace(&mut conn.agent_open, false));
            if open && !self.is_cut(m) {
                let delay = self.delay();
                let now = self.now;
                // Behind what is on its way.
                let at = self
                    .net
                    .conns
                    .get(&number)
                    .map_or(now, |conn| conn.up_last.max(now + delay));
                self.at(at, Ev::BrokerLost(number));
            }
        }
    }

    pub(crate) fn start_agent(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        if machine.process.is_some() || machine.truth.no_agent > 0 || machine.truth.off > 0 {
            return;
        }
        let now = self.now;
        machine.start(now, &mut self.rng);
        self.wake(m);
    }

    /// No power: nobody is told.
    fn power_off(&mut self, m: usize) {
        self.machines[m].process = None;
        for number in self.net.of(m) {
            if let Some(conn) = self.net.conns.get_mut(&number) {
                conn.agent_open = false;
            }
        }
    }

    fn power_on(&mut self, m: usize) {
        let now = self.now;
        let machine = &mut self.machines[m];
        machine.truth.off = machine.truth.off.saturating_sub(1);
        if machine.truth.off == 0 {
            machine.boot(now);
            self.start_agent(m);
        }
    }

    /// A goodbye at the beginning; back at the end.
    fn goodbye(&mut self, m: usize, step: u8, how: Leave) {
        let machine = &mut self.machines[m];
        if step == BEGINS {
            let away = how != Leave::AgentRestart && how != Leave::AgentStop;
            if !machine.is_awake() {
                // Nobody to say it: as if the power went.
                if away {
                    self.power_off(m);
                    self.machines[m].truth.off += 1;
                }
                return;
            }
            let power = PowerAnnouncement::Leaving {
                how,
                back_within: None,
            };
            machine.power = power;
            let generation = machine.process.as_ref().map_or(0, |p| p.generation);
            let conn = machine.conn().filter(|_| machine.is_in_session());
            match conn {
                Some(conn) => {
                    self.send_up(conn, Up::Leaving(power));
                    self.after(GOODBYE_WITHIN, Ev::Gone(m, generation));
                }
                None => self.gone(m, generation),
            }
            self.wake(m);
            return;
        }
        if step != ENDS {
            return;
        }
        match how {
            Leave::Poweroff | Leave::Reboot => {
                if machine.truth.off > 0 {
                    self.power_on(m);
                } else {
                    // It has not gone yet, or is back already.
                    self.stay(m);
                }
            }
            Leave::Suspend => {
                if machine.truth.off > 0 {
                    self.power_on(m);
                } else {
                    machine.truth.suspended = 0;
                    self.flush(m);
                    self.stay(m);
                }
            }
            Leave::AgentStop | Leave::AgentRestart => {
                machine.power = PowerAnnouncement::Running;
                self.start_agent(m);
                self.wake(m);
            }
        }
    }

    /// It stays after all, or is back from a suspend; whether the word for it comes through or not.
    fn stay(&mut self, m: usize) {
        self.machines[m].power = PowerAnnouncement::Running;
        let in_session = self.machines[m].is_in_session();
        if let Some(conn) = self.machines[m].conn()
            && in_session
            && self.rng.percent(50)
        {
            self.send_up(conn, Up::Leaving(PowerAnnouncement::Running));
        }
        self.wake(m);
    }

    /// What was announced happens.
    pub(crate) fn leave(&mut self, m: usize, how: Leave) {
        self.trace
            .line(self.now, format_args!("machine {m} goes: {}", how.as_str()));
        match how {
            Leave::Poweroff | Leave::Reboot => {
                // The agent is stopped with everything else.
                self.kill_agent(m);
                self.power_off(m);
                self.machines[m].truth.off += 1;
            }
            Leave::Suspend => self.machines[m].truth.suspended = 1,
            Leave::AgentStop | Leave::AgentRestart => self.kill_agent(m),
        }
    }

    fn pause_agent(&mut self, m: usize, begins: bool, ends: bool) {
        if begins {
            self.machines[m].truth.paused += 1;
        } else if ends {
            self.machines[m].truth.paused -= 1;
            if self.machines[m].truth.paused == 0 {
                self.flush(m);
                self.wake(m);
            }
        }
    }

    /// The connection breaks, on the sides that are told.
    fn reset(&mut self, m: usize, agent: bool, broker: bool) {
        for number in self.net.of(m) {
            if agent {
                self.after(Duration::ZERO, Ev::AgentLost(number));
            }
            if broker {
                self.after(Duration::ZERO, Ev::BrokerLost(number));
            }
        }
    }

    fn cut(&mut self, m: usize, begins: bool, ends: bool) {
        if begins {
            self.machines[m].truth.cut += 1;
        } else if ends {
            self.machines[m].truth.cut -= 1;
            if !self.is_cut(m) {
                self.flush(m);
            }
        }
    }

    fn cut_some(&mut self, number: usize, percent: u8, begins: bool, ends: bool) {
        for m in 0..self.plan.hosts {
            // The same hosts at the end as at the beginning.
            let chance = (m * 37 + number * 61 + usize::from(percent) * 13) % 100;
            if chance < usize::from(percent) {
                self.cut(m, begins, ends);
            }
        }
    }

    fn clone_machine(&mut self, number: usize, m: usize, begins: bool, ends: bool) {
        if begins {
            let same_boot = self.rng.percent(50);
            let (peer, own) = addresses(&self.plan, self.machines.len(), true);
            let copy = self.machines[m].copy(same_boot, peer, own, self.now);
            self.machines.push(copy);
            self.wakes.push(None);
            let copy = self.machines.len() - 1;
            self.copies.push((number, copy));
            self.start_agent(copy);
        } else if ends && let Some((_, copy)) = self.copies.iter().find(|(n, _)| *n == number) {
            let copy = *copy;
            self.power_off(copy);
            self.machines[copy].truth.off += 1;
        }
    }

    fn drain(&mut self, number: usize, m: usize, step: u8) {
        let clocks = self.clocks();
        let by_itself = number.is_multiple_of(2);
        let lasts = self.plan.faults[number].lasts;
        if step == BEGINS {
            let drain = Drain {
                owner: OWNER.to_owned(),
                reason: "sim".to_owned(),
                since: clocks.wall,
                until: by_itself.then(|| clocks.wall.checked_add(lasts).unwrap_or(clocks.wall)),
            };
            if self.paused > 0 {
                return;
            }
            let Some(broker) = &mut self.broker else {
                return;
            };
            self.oracle.drained(m, drain.until);
            let outcome = broker.apply(m, Event::Drain(drain), &mut self.store, clocks);
            if let Some(ticket) = outcome.and_then(|outcome| outcome.ticket) {
                self.waiting.push((ticket, OnDurable::Drained(m)));
            }
        } else if step == ENDS || step == GOES_ON {
            if self.paused > 0 || self.broker.is_none() {
                // The operator tries again.
                self.after(Duration::from_secs(5), Ev::Fault(number, GOES_ON));
                return;
            }
            // Durable first: it turns an answer to yes.
            self.oracle.undrain_asked(m);
            let mut admin = self.store.admin(self.ids[m]);
            admin.drains.clear();
            let write = (Key::Admin(self.ids[m]), Some(Value::Admin(admin)));
            let known = self.broker.as_ref().is_some_and(|b| b.cells[m].is_some());
            if known {
                let ticket = self.store.put([write]);
                self.waiting.push((ticket, OnDurable::Undrain(m)));
            }
        }
    }

    fn upgrade(&mut self, number: usize, m: usize, kind: u8, step: u8) {
        let from = self.machines[m].version;
        let id: Arc<str> = format!("attempt-{number}").into();
        let attempt = |phase| UpgradeAttempt {
            id: id.clone(),
            from: format!("0.{from}.0").into(),
            to: format!("0.{}.0", from + 1).into(),
            phase,
        };
        match step {
            BEGINS => {
                if !self.machines[m].is_awake() {
                    return;
                }
                let upgrade = UpgradeAnnouncement::InProgress {
                    attempt: attempt(UpgradePhase::Switch),
                    within: None,
                };
                self.machines[m].upgrade = upgrade.clone();
                let conn = self.machines[m].conn();
                if let Some(conn) = conn.filter(|_| self.machines[m].is_in_session()) {
                    self.send_up(conn, Up::Upgrade(upgrade));
                }
                self.wake(m);
                self.after(Duration::from_secs(4), Ev::Fault(number, GOES_ON));
            }
            GOES_ON => {
                if !matches!(
                    self.machines[m].upgrade,
                    UpgradeAnnouncement::InProgress { .. }
                ) {
                    return;
                }
                self.kill_agent(m);
                match kind {
                    0 => {
                        self.machines[m].version += 1;
                        self.machines[m].upgrade = UpgradeAnnouncement::Silent;
                    }
                    1 => {
                        self.machines[m].upgrade = UpgradeAnnouncement::Failed {
                            attempt: attempt(UpgradePhase::Switch),
                            error: "no space".to_owned(),
                        };
                    }
                    _ => {}
                }
                self.start_agent(m);
            }
            _ => {
                if self.machines[m].upgrade != UpgradeAnnouncement::Silent {
                    let cleared = UpgradeAnnouncement::Cleared { id };
                    self.machines[m].upgrade = cleared.clone();
                    let conn = self.machines[m].conn();
                    if let Some(conn) = conn.filter(|_| self.machines[m].is_in_session()) {
                        self.send_up(conn, Up::Upgrade(cleared));
                    }
                    self.wake(m);
                }
            }
        }
    }

    /// Its agent is lost and comes back, again and again.
    fn flap(&mut self, number: usize, m: usize, step: u8) {
        let down = step == BEGINS || step == GOES_ON;
        let fault = self.plan.faults[number];
        let over = self.now >= BEGIN + fault.at + fault.lasts;
        if step == ENDS || over {
            self.start_agent(m);
            return;
        }
        if down && self.machines[m].process.is_some() {
            self.kill_agent(m);
            let after = self.rng.seconds(36, 40);
            self.after(after, Ev::Fault(number, GOES_ON));
        } else {
            self.start_agent(m);
            let after = self.rng.seconds(3, 12);
            self.after(after, Ev::Fault(number, GOES_ON));
        }
    }

    /// It is killed, started, and killed again.
    fn crash_loop(&mut self, number: usize, lives: u8, step: u8) {
        let fault = self.plan.faults[number];
        let over = self.now >= BEGIN + fault.at + fault.lasts;
        if step == ENDS || over {
            self.start_broker();
        } else if self.broker.is_some() && self.paused == 0 {
            self.kill_broker(false);
            self.after(Duration::from_millis(500), Ev::Fault(number, GOES_ON));
        } else {
            self.start_broker();
            let after = Duration::from_secs(u64::from(lives));
            self.after(after, Ev::Fault(number, GOES_ON));
        }
    }

    /// Kills the broker, and perhaps its machine.
    fn kill_broker_for(&mut self, cut: bool) {
        if self.paused == 0 {
            self.kill_broker(cut);
        }
    }

    /// A clean stop: what is known is written, then the process ends.
    fn stop_broker(&mut self) {
        if self.paused > 0 || self.store_fails > 0 {
            self.kill_broker(false);
            return;
        }
        let clocks = self.clocks();
        if let Some(broker) = &self.broker {
            broker.write_all(&mut self.store, clocks);
            self.store.flush();
            self.oracle.stopped_well(clocks);
        }
        self.kill_broker(false);
    }
}

/// The address that the broker sees of a machine, and those that it names as its own.
pub(crate) fn addresses(plan: &Plan, number: usize, is_copy: bool) -> (Arc<str>, Vec<String>) {
    let own = format!("10.0.{}.{}", u8::from(is_copy), number + 1);
    if plan.shared_addresses {
        let shared = "203.0.113.9";
        // Some do not know that they are translated, and some have been told.
        let named = if number.is_multiple_of(2) {
            shared.to_owned()
        } else {
            own
        };
        (format!("{shared}:{}", 40_000 + number).into(), vec![named])
    } else {
        (format!("{own}:{}", 40_000 + number).into(), vec![own])
    }
}
