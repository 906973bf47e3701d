//! `memory`: what programs may still get.

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};

use super::{
    Definition, Place, cannot_run, definition, pass, seen,
    size::{Amount, shown},
};
use crate::platform::resources;

definition! {
    /// Keys of `kind = "memory"`.
    Memory {
        /// Less available memory than this fails.
        #[serde(default = "tenth")]
        min_available: Amount,
    }
}

fn tenth() -> Amount {
    Amount::Share(10)
}

impl Definition for Memory {
    const KIND: &'static str = "memory";

    fn look<'a>(&'a self, _place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let memory = match resources::memory() {
                Ok(memory) => memory,
                Err(error) => {
                    return cannot_run(
                        "memory",
                        "MEMORY_NOT_ASKED",
                        format!("how much memory is left cannot be told: {error}"),
                        Remedy::text("Mount /proc for the agent."),
                    );
                }
            };
            let least = self.min_available.of(memory.total);
            let step = format!(
                "{} of {} available",
                shown(memory.available),
                shown(memory.total)
            );
            if memory.available >= least {
                return pass("memory", "MEMORY_AVAILABLE", step.clone(), vec![step]);
            }
            seen(
                Outcome::Fail,
                "memory",
                "MEMORY_LOW",
                format!("{step}, and it should be {}", shown(least)),
                vec![step],
                Some(
                    Remedy::text("See which programs have it; end some, or add memory.")
                        .command("ps -eo rss,pid,user,comm --sort=-rss | head"),
                ),
            )
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::look;
    use super::*;

    #[tokio::test]
    async fn memory_passes_or_fails_by_what_should_be_available() {
        let seen = look("kind = 'memory'\nmin_available = '1KiB'").await;
        assert_eq!(seen.outcome, Outcome::Pass);
        let seen = look("kind = 'memory'\nmin_available = '100%'").await;
        assert_eq!(seen.outcome, Outcome::Fail);
        assert_eq!(seen.findings[0].code, "MEMORY_LOW");
    }
}
