//! `disk`: room on a file system.

use std::path::PathBuf;

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};

use super::{
    Definition, OneAtATime, Place, Wrong, cannot_run, definition,
    file_fresh::wrong_path,
    pass, seen,
    size::{Amount, shown},
};
use crate::platform::resources::{self, Room};

definition! {
    /// Keys of `kind = "disk"`.
    Disk {
        /// Any path on the file system.
        path: PathBuf,
        /// Less free room than this fails.
        #[serde(default = "tenth")]
        min_free: Amount,
        /// Fewer free files than this share fail, where the file system counts them.
        #[serde(default = "twentieth")]
        min_free_files: Amount,
        #[serde(skip)]
        asked: OneAtATime,
    }
}

fn tenth() -> Amount {
    Amount::Share(10)
}

fn twentieth() -> Amount {
    Amount::Share(5)
}

impl Definition for Disk {
    const KIND: &'static str = "disk";

    fn wrong(&self) -> Option<Wrong> {
        let share = matches!(self.min_free_files, Amount::Share(_));
        wrong_path(&self.path).or_else(|| {
            (!share).then(|| {
                let value = self.min_free_files.to_string();
                ("min_free_files", value, "a share such as \"5%\"".to_owned())
            })
        })
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let path = self.path.clone();
            let asked = self
                .asked
                .ask(place.budget, move || resources::room(&path))
                .await;
            let subject = self.path.display().to_string();
            match asked {
                Ok(room) => self.judge(&subject, room),
                Err(error) => cannot_run(
                    &subject,
                    "DISK_NOT_ASKED",
                    format!("how full {subject} is cannot be told: {error}"),
                    Remedy::text("See whether it is mounted and answers.")
                        .command(format!("findmnt --target {subject}")),
                ),
            }
        }
        .boxed()
    }
}

impl Disk {
    fn judge(&self, subject: &str, room: Room) -> Observation {
        let step = format!(
            "{} of {} free, {} of {} files free",
            shown(room.free),
            shown(room.total),
            room.files_free,
            room.files_total
        );
        let fails = |code, message, remedy| {
            let steps = vec![step.clone()];
            seen(Outcome::Fail, subject, code, message, steps, Some(remedy))
        };
        if room.is_read_only {
            return fails(
                "DISK_READ_ONLY",
                format!("{subject} is mounted read-only"),
                Remedy::text("The kernel does that after an error of the disk: see its log.")
                    .command("dmesg --level err,warn | tail"),
            );
        }
        let least = self.min_free.of(room.total);
        if room.free < least {
            return fails(
                "DISK_FULL",
                format!(
                    "{subject} has {} free, and should have {} ({})",
                    shown(room.free),
                    shown(least),
                    self.min_free
                ),
                Remedy::text("Remove what is not needed, or make it larger.").command(format!(
                    "du --one-file-system --max-depth=2 --human-readable {subject} | sort -h | tail"
                )),
            );
        }
        if room.files_free < self.min_free_files.of(room.files_total) {
            return fails(
                "DISK_OUT_OF_FILES",
                format!(
                    "{subject} can take {} more files, and should take {}",
                    room.files_free, self.min_free_files
                ),
                Remedy::text("Remove small files that are not needed.").command(format!(
                    "du --inodes --one-file-system --max-depth=2 {subject} | sort -n | tail"
                )),
            );
        }
        pass(subject, "DISK_HAS_ROOM", step.clone(), vec![step])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{look, refused};
    use super::*;

    #[tokio::test]
    async fn a_disk_passes_or_fails_by_what_it_should_have_free() {
        let seen = look("kind = 'disk'\npath = '/proc'\nmin_free = '0%'").await;
        assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
        // Programs are there, so something is used.
        let seen = look("kind = 'disk'\npath = '/usr'\nmin_free = '100%'").await;
        assert_eq!(seen.outcome, Outcome::Fail);
        assert_eq!(seen.findings[0].code, "DISK_FULL");
        let seen = look("kind = 'disk'\npath = '/nonexistent'").await;
        assert_eq!(seen.findings[0].code, "DISK_NOT_ASKED");
        assert!(seen.message.contains("No such file"), "{}", seen.message);
    }

    #[test]
    fn keys_are_checked() {
        assert!(refused("kind = 'disk'\npath = '/'\nmin_free = '5GB'").contains("512MiB"));
        assert!(refused("kind = 'disk'\npath = '/'\nmin_free_files = '5B'").contains("share"));
    }
}
