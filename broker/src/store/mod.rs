//! What must outlive the process: a small ordered map of bytes, written in groups.
//!
//! The trait is small so that a shared store can take its place: prefix scans and batches with
//! compare-and-set are all that the broker asks for. Nothing may assume that this process is the
//! only writer; what two might race for (a name, a token) is written on condition.

mod embedded;
pub mod keys;
mod queue;
mod records;

use std::path::PathBuf;

pub use embedded::EmbeddedStore;
pub use queue::{Ticket, WriteQueue};
pub use records::{BrokerRecord, TokenRecord, TokenUse, decode, encode};

/// Version of the layout of keys and records. A newer file is refused, never guessed at.
pub const FORMAT: u32 = 1;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not there although the broker has run in this folder before.
    #[error(
        "the store {} is missing, although this broker has run here before; restore it from a \
         backup, or remove {} to begin a new fleet", path.display(), beside.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// What shows that the broker has run here.
        beside: PathBuf,
    },
    /// The file is empty.
    #[error("the store {} is empty; restore it from a backup", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged.
    #[error("the store {} is damaged ({problem}); restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        problem: String,
    },
    /// A newer program wrote the file.
    #[error(
        "the store {} has format {found}, this program knows up to {known}; run the newer \
         muster-broker, or restore a backup made before the upgrade", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Another broker has the file open.
    #[error("the store {} is in use by another muster-broker", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("cannot {action} the store {}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record cannot be read.
    #[error("the store has a record that cannot be read: {key}")]
    Record {
        /// Its key, for people.
        key: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A pool's policy cannot be read.
    #[error("the stored policy of the pool {pool} cannot be used: {problem}")]
    Policy {
        /// The pool.
        pool: String,
        /// What is wrong.
        problem: String,
    },
    /// The writer is at its limit or gone.
    #[error("the store cannot take more writes just now")]
    Overloaded,
}

/// A key with its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Writes that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Keys with the value that they must have, none for "must not be there".
    pub require: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Keys with their new value, none to delete.
    pub write: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Written, durably.
    Yes,
    /// A requirement did not hold; nothing of the batch was written.
    Conflict,
}

/// An ordered map of bytes that outlives the process.
pub trait Store: Send + Sync + 'static {
    /// The value of `key`.
    ///
    /// # Errors
    /// If reading fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Pairs whose key begins with `prefix`, in order, or in reverse; at most `limit`.
    ///
    /// # Errors
    /// If reading fails.
    fn scan(&self, prefix: &[u8], limit: usize, reverse: bool) -> Result<Vec<Pair>, StoreError>;

    /// Writes batches durably, in order, in one transaction.
    ///
    /// # Errors
    /// If writing fails; then nothing was written.
    fn commit(&self, batches: &[Batch]) -> Result<Vec<Applied>, StoreError>;
}
