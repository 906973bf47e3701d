//! Connections: ordered streams that can stall, break, or break on one side only.

use std::collections::{BTreeMap, VecDeque};

use muster_core::{
    host::Hello,
    model::{Epoch, Mono},
};

use crate::agent::{Down, Up};

/// A connection between an agent's process and a broker's.
#[derive(Debug)]
pub struct Conn {
    /// The machine.
    pub machine: usize,
    /// The agent's process.
    pub generation: u32,
    /// The broker's start that it arrived at; 0 before.
    pub incarnation: u32,
    /// The agent holds its end.
    pub agent_open: bool,
    /// The broker holds its end.
    pub broker_open: bool,
    /// The session, once accepted.
    pub epoch: Option<Epoch>,
    /// First word, until it arrives.
    pub hello: Option<Box<Hello>>,
    /// What is sent up arrives no earlier than what was sent before.
    pub up_last: Mono,
    /// Likewise down.
    pub down_last: Mono,
    /// What the network does not deliver now, oldest first.
    pub stalled_up: VecDeque<Up>,
    /// Likewise down.
    pub stalled_down: VecDeque<Down>,
    /// The agent's side gives up at some time.
    pub up_timer: bool,
    /// The broker's side does.
    pub down_timer: bool,
}

/// All connections, by number.
#[derive(Debug, Default)]
pub struct Net {
    /// The connections.
    pub conns: BTreeMap<u32, Conn>,
    next: u32,
    /// Nothing passes between the broker and anybody.
    pub cut_all: u8,
    /// Messages take so long at most, in milliseconds; the largest of those in force counts.
    pub slow: Vec<u16>,
    /// An adversary is at work.
    pub adversary: u8,
}

impl Net {
    /// A new connection with its first word.
    pub fn connect(&mut self, machine: usize, generation: u32, hello: Box<Hello>) -> u32 {
        self.next += 1;
        // Both ends gone: nobody will ask for it any more.
        self.conns
            .retain(|_, conn| conn.agent_open || conn.broker_open);
        self.conns.insert(
            self.next,
            Conn {
                machine,
                generation,
                incarnation: 0,
                agent_open: true,
                broker_open: false,
                epoch: None,
                hello: Some(hello),
                up_last: Mono::ZERO,
                down_last: Mono::ZERO,
                stalled_up: VecDeque::new(),
                stalled_down: VecDeque::new(),
                up_timer: false,
                down_timer: false,
            },
        );
        self.next
    }

    /// The connections of a machine.
    #[must_use]
    pub fn of(&self, machine: usize) -> Vec<u32> {
        self.conns
            .iter()
            .filter(|(_, conn)| conn.machine == machine)
            .map(|(number, _)| *number)
            .collect()
    }

    /// The connection that carries this session.
    #[must_use]
    pub fn of_epoch(&self, epoch: Epoch) -> Option<u32> {
        self.conns
            .iter()
            .find(|(_, conn)| conn.epoch == Some(epoch))
            .map(|(number, _)| *number)
    }
}
