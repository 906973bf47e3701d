//! `process`: as many processes of a program as there should be.

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};

use super::{Definition, OneAtATime, Place, Wrong, cannot_run, definition, pass, seen};
use crate::platform::resources;

definition! {
    /// Keys of `kind = "process"`.
    Process {
        /// Name of the program, or the path of its executable.
        program: String,
        /// Fewer than this fail.
        #[serde(default = "one")]
        min: usize,
        /// More than this fail.
        max: Option<usize>,
        #[serde(skip)]
        asked: OneAtATime,
    }
}

fn one() -> usize {
    1
}

impl Definition for Process {
    const KIND: &'static str = "process";

    fn wrong(&self) -> Option<Wrong> {
        let allowed = "at least min".to_owned();
        match self.max {
            Some(max) if max < self.min => Some(("max", max.to_string(), allowed)),
            _ if self.program.is_empty() => {
                Some(("program", "\"\"".to_owned(), "a name or a path".to_owned()))
            }
            _ => None,
        }
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let program = self.program.clone();
            let asked = self
                .asked
                .ask(place.budget, move || resources::processes_of(&program))
                .await;
            match asked {
                Ok(found) => self.judge(&found),
                Err(error) => cannot_run(
                    "/proc",
                    "PROCESSES_NOT_LISTED",
                    format!("the processes cannot be listed: {error}"),
                    Remedy::text("Mount /proc for the agent."),
                ),
            }
        }
        .boxed()
    }
}

impl Process {
    fn judge(&self, found: &[i32]) -> Observation {
        let (program, count) = (&self.program, found.len());
        let ids: Vec<_> = found.iter().take(8).map(ToString::to_string).collect();
        let steps = vec![format!(
            "{count} of {program}: {}",
            if ids.is_empty() {
                "none".to_owned()
            } else {
                ids.join(", ")
            }
        )];
        if count < self.min {
            let message = format!("{program} runs {count} times, and should {}", self.min);
            let remedy = Remedy::text(format!("Start {program}; its log says why it ended."));
            return seen(
                Outcome::Fail,
                program,
                "PROCESS_MISSING",
                message,
                steps,
                Some(remedy),
            );
        }
        match self.max {
            Some(max) if count > max => {
                let message = format!("{program} runs {count} times, and should {max} at most");
                let remedy =
                    Remedy::text("See which of them should not run, and who started it.").command(
                        format!("ps -o pid,ppid,user,lstart,args -p {}", ids.join(",")),
                    );
                seen(
                    Outcome::Fail,
                    program,
                    "PROCESS_TOO_MANY",
                    message,
                    steps,
                    Some(remedy),
                )
            }
            _ => pass(program, "PROCESS_RUNS", format!("{program} runs"), steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{look, refused};
    use super::*;

    #[tokio::test]
    async fn processes_are_counted() {
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let mine = format!("kind = 'process'\nprogram = '{}'", comm.trim());
        assert_eq!(look(&mine).await.outcome, Outcome::Pass);
        let seen = look(&format!("{mine}\nmin = 0\nmax = 0")).await;
        assert_eq!(seen.findings[0].code, "PROCESS_TOO_MANY");
        let seen = look("kind = 'process'\nprogram = 'no-such-program'").await;
        assert_eq!(seen.outcome, Outcome::Fail);
        assert_eq!(seen.findings[0].code, "PROCESS_MISSING");
        let seen = look("kind = 'process'\nprogram = '/no/such'\nmin = 0").await;
        assert_eq!(seen.outcome, Outcome::Pass);
    }

    #[test]
    fn keys_are_checked() {
        assert!(refused("kind = 'process'\nprogram = 'a'\nmin = 2\nmax = 1").contains("least min"));
    }
}
