//! End-to-end tests: real processes on loopback, real certificates, nothing faked between them.
//! One program, so that it links once.

mod bad_enrolment;
mod bad_sessions;
mod checks;
mod documents;
mod fire;
mod host_view;
mod idle;
mod independent;
mod leaving;
mod mended;
mod operators;
mod own_checks;
mod pools;
mod quickstart;
mod real_agent;
mod restarts;
mod start_up;
mod stuck;
mod support;
mod surroundings;
mod swarm;
mod verdicts;
