//! Machines as they wake and leave, and who asks the broker: its own dials, front ends, watchers,
//! operators.

use std::time::Duration;

use muster_core::{
    fleet::{Dial, DialOutcome, Met},
    model::{Intent, PowerAnnouncement},
};

use crate::{
    agent::{Act, PORT, WELCOME_WITHIN},
    store::{Key, Value},
    world::{Ev, World},
};

impl World {
    /// Does what is due at a machine, and says when to wake it again.
    pub(crate) fn wake(&mut self, machine: usize) {
        let now = self.now;
        if self.wakes[machine].is_some_and(|at| at <= now) {
            self.wakes[machine] = None;
        }
        let mut acts = Vec::new();
        self.machines[machine].wake(now, &mut self.rng, &mut acts);
        let generation = self.machines[machine]
            .process
            .as_ref()
            .map_or(0, |p| p.generation);
        for act in acts {
            match act {
                Act::Connect(hello) => {
                    let number = self.net.connect(machine, generation, hello);
                    self.machines[machine].connecting(number);
                    let delay = self.delay();
                    self.after(delay, Ev::Arrive(number));
                    self.after(WELCOME_WITHIN, Ev::NoWelcome(number));
                }
                Act::Send(up) => {
                    if let Some(conn) = self.machines[machine].conn() {
                        self.send_up(conn, up);
                    }
                }
                Act::Run(name, run, ends, outcome) => {
                    self.at(ends, Ev::Ran(machine, generation, name, run, outcome));
                }
            }
        }
        if !self.machines[machine].is_awake() {
            return;
        }
        if let Some(next) = self.machines[machine].next_wake(now) {
            let next = next.max(now + Duration::from_millis(1));
            if self.wakes[machine].is_none_or(|at| next < at) {
                self.wakes[machine] = Some(next);
                self.at(next, Ev::Wake(machine));
            }
        }
    }

    /// The broker's dial arrives at an address.
    pub(crate) fn dialled(&mut self, dial: &Dial) {
        let address = dial.target.ip().to_string();
        let machine = self
            .machines
            .iter()
            .position(|machine| machine.own.contains(&address));
        let (outcome, takes) = match machine {
            _ if self.net.cut_all > 0 || dial.target.port() != PORT => {
                (DialOutcome::Silent, Duration::from_secs(5))
            }
            None => (DialOutcome::Unreachable, Duration::from_secs(3)),
            Some(machine) => {
                let truth = self.machines[machine].truth;
                let delay = self.delay();
                if truth.cut > 0 {
                    (DialOutcome::Silent, Duration::from_secs(5))
                } else if truth.off > 0 || truth.suspended > 0 {
                    if self.rng.percent(50) {
                        (DialOutcome::Unreachable, Duration::from_secs(3))
                    } else {
                        (DialOutcome::Silent, Duration::from_secs(5))
                    }
                } else if truth.listener_down > 0 || truth.rejects_broker > 0 {
                    (DialOutcome::Refused, delay)
                } else {
                    (DialOutcome::Answered, delay)
                }
            }
        };
        self.after(takes, Ev::DialDone(Box::new(*dial), outcome));
    }

    /// A front end asks for a host, and follows the answer.
    pub(crate) fn front_end(&mut self, number: usize) {
        let after = self.rng.millis(1000, 12_000);
        self.after(after, Ev::FrontEnd(number));
        if self.paused > 0 || self.machine_down {
            return;
        }
        let host = self.rng.index(self.plan.hosts);
        let clocks = self.clocks();
        let Some(broker) = &mut self.broker else {
            return;
        };
        let verdict = broker.verdict(host, Intent::New, clocks);
        if !verdict.is_some_and(|verdict| verdict.connectable) {
            return;
        }
        let truth = self.machines[host].truth;
        let broken = self.front_end_broken > 0 && number == 0;
        let met = if broken || truth.off > 0 || truth.suspended > 0 {
            Met::TimedOut
        } else if truth.listener_down > 0 {
            Met::Refused
        } else {
            Met::Ok
        };
        let takes = self.rng.millis(5, 500);
        self.after(takes, Ev::Outcome(number, host, met));
    }

    /// A watcher reads.
    pub(crate) fn watch(&mut self, number: usize) {
        let slow = number + 1 == self.watchers.len();
        let after = if slow {
            self.rng.millis(1000, 60_000)
        } else {
            self.rng.millis(10, 2000)
        };
        self.after(after, Ev::Watch(number));
        if self.paused > 0 {
            return;
        }
        let clocks = self.clocks();
        if let Some(broker) = &mut self.broker {
            let broken = self.watchers[number].read(broker, clocks);
            if let Err(problem) = broken {
                self.oracle.problem(5, None, problem);
            }
        }
    }

    /// The agent's last word is acknowledged, or was waited for long enough: what was announced
    /// happens.
    pub(crate) fn gone(&mut self, machine: usize, generation: u32) {
        let here = &self.machines[machine];
        let same = here
            .process
            .as_ref()
            .is_some_and(|p| p.generation == generation);
        let PowerAnnouncement::Leaving { how, .. } = here.power else {
            return;
        };
        if same && here.is_awake() {
            self.leave(machine, how);
        }
    }

    /// Deletes all that is stored of a host, durably, and takes it out.
    pub(crate) fn remove_host(&mut self, host: usize) {
        let id = self.ids[host];
        let clocks = self.clocks();
        let Some(broker) = &mut self.broker else {
            return;
        };
        let journal: Vec<u64> = self.store.journal(id).map(|entry| entry.sequence).collect();
        let mut writes: Vec<(Key, Option<Value>)> =
            vec![(Key::Host(id), None), (Key::Admin(id), None)];
        writes.extend(
            journal
                .into_iter()
                .map(|sequence| (Key::Journal(id, sequence), None)),
        );
        self.store.forget(id);
        self.store.put_durable(writes);
        broker.remove(host, &mut self.store, clocks);
        self.oracle.removed(host);
    }
}
