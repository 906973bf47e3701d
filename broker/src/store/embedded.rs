//! The embedded store: redb, one file.

use std::{
    fs, io,
    ops::RangeBounds,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use parking_lot::RwLock;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition,
};

use super::{Applied, Batch, FORMAT, Pair, Store, StoreError, keys};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("muster");
/// Page cache: the working set is read once at the start; afterwards only journals are read.
const CACHE_BYTES: usize = 2 << 20;

/// Opens the file that the store is in.
type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// One redb file.
///
/// redb refuses everything after the first error of the file system, until the file is opened
/// anew. So after a failure the file is closed, and the next use opens it again: a disk that was
/// full for a while does not end the broker.
pub struct EmbeddedStore {
    /// None after a failure.
    database: RwLock<Option<Database>>,
    opener: Opener,
    path: PathBuf,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Makes the file at the very first start.
    ///
    /// # Errors
    /// If it cannot be written, or is there already.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        // Made beside its place and moved there when it is whole: a crash in between leaves no
        // half store that the next start would have to refuse.
        let fresh = path.with_extension("new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("write", path)(error));
            }
            _ => {}
        }
        let database = builder()
            .create(&fresh)
            .map_err(|error| explain(path, error))?;
        let store = Self::over(
            database,
            path,
            Box::new(|| Err(DatabaseError::DatabaseAlreadyOpen)),
        );
        store.commit(&[Batch {
            require: Vec::new(),
            write: vec![(keys::FORMAT.to_vec(), Some(FORMAT.to_string().into_bytes()))],
        }])?;
        drop(store);
        fs::rename(&fresh, path).map_err(io_error("write", path))?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(io_error("write", path))?;
        }
        Self::open(path)
    }

    /// Opens the file, checks that it is whole, and that we know its format.
    ///
    /// # Errors
    /// With a clear word for a file that is missing, empty, damaged, newer or in use.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let length = fs::metadata(path).map_err(io_error("open", path))?.len();
        if length == 0 {
            return Err(StoreError::Empty {
                path: path.to_owned(),
            });
        }
        let damaged = |problem: String| StoreError::Damaged {
            path: path.to_owned(),
            problem,
        };
        // A file that something else has changed may break an assumption inside the library; that
        // is damage, not a crash of ours.
        let opened = catch_unwind(AssertUnwindSafe(|| builder().open(path)));
        let database = match opened {
            Ok(opened) => opened.map_err(|error| explain(path, error))?,
            Err(_) => return Err(damaged("its pages contradict each other".to_owned())),
        };
        let opener = {
            let path = path.to_owned();
            move || builder().open(&path)
        };
        let store = Self::over(database, path, Box::new(opener));
        let format = catch_unwind(AssertUnwindSafe(|| store.get(keys::FORMAT)))
            .unwrap_or_else(|_| Err(damaged("its pages contradict each other".to_owned())))?
            .ok_or_else(|| damaged("it has no format mark".to_owned()))?;
        let found: u32 = std::str::from_utf8(&format)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| damaged("its format mark is no number".to_owned()))?;
        if found > FORMAT {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found,
                known: FORMAT,
            });
        }
        Ok(store)
    }

    fn over(database: Database, path: &Path, opener: Opener) -> Self {
        Self {
            database: RwLock::new(Some(database)),
            opener,
            path: path.to_owned(),
        }
    }

    /// Uses the open file; opens it first if a failure closed it, and closes it after one.
    fn with<R>(
        &self,
        action: impl Fn(&Database) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        if let Some(database) = self.database.read().as_ref() {
            match action(database) {
                Ok(done) => return Ok(done),
                Err(error @ StoreError::Io { .. }) => {
                    tracing::debug!(error = %error, "the store is opened anew");
                }
                Err(other) => return Err(other),
            }
        }
        let mut database = self.database.write();
        // Closed before it is opened: two of them would lock each other out.
        *database = None;
        let opened = database.insert((self.opener)().map_err(|error| explain(&self.path, error))?);
        let done = action(opened);
        if done.is_err() {
            *database = None;
        }
        done
    }

    fn failed(&self, action: &'static str, error: impl Into<redb::Error>) -> StoreError {
        io_error(action, &self.path)(error.into())
    }

    fn read<R>(
        &self,
        use_table: impl Fn(&redb::ReadOnlyTable<&[u8], &[u8]>) -> Result<R, StorageError>,
    ) -> Result<Option<R>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read().map_err(|e| self.failed("read", e))?;
            match transaction.open_table(TABLE) {
                Ok(table) => use_table(&table)
                    .map(Some)
                    .map_err(|e| self.failed("read", e)),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
                Err(error) => Err(self.failed("read", error)),
            }
        })
    }

    fn write(&self, database: &Database, batches: &[Batch]) -> Result<Vec<Applied>, StoreError> {
        let mut transaction = database
            .begin_write()
            .map_err(|e| self.failed("write", e))?;
        transaction
            .set_durability(Durability::Immediate)
            .map_err(|e| self.failed("write", e))?;
        let mut applied = Vec::with_capacity(batches.len());
        {
            let mut table = transaction
                .open_table(TABLE)
                .map_err(|e| self.failed("write", e))?;
            for batch in batches {
                let mut holds = true;
                for (key, wanted) in &batch.require {
                    let found = table
                        .get(key.as_slice())
                        .map_err(|e| self.failed("write", e))?;
                    holds &= found.as_ref().map(redb::AccessGuard::value) == wanted.as_deref();
                }
                if !holds {
                    applied.push(Applied::Conflict);
                    continue;
                }
                for (key, value) in &batch.write {
                    match value {
                        Some(value) => table.insert(key.as_slice(), value.as_slice()).map(drop),
                        None => table.remove(key.as_slice()).map(drop),
                    }
                    .map_err(|e| self.failed("write", e))?;
                }
                applied.push(Applied::Yes);
            }
        }
        transaction.commit().map_err(|e| self.failed("write", e))?;
        Ok(applied)
    }
}

impl Store for EmbeddedStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.read(|table| Ok(table.get(key)?.map(|value| value.value().to_vec())))?;
        Ok(value.flatten())
    }

    fn scan(&self, prefix: &[u8], limit: usize, reverse: bool) -> Result<Vec<Pair>, StoreError> {
        let pairs = self.read(|table| {
            let range = table.range::<&[u8]>(within(prefix).as_bounds())?;
            let take = |pair: Result<_, StorageError>| {
                let (key, value): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>) =
                    pair?;
                Ok((key.value().to_vec(), value.value().to_vec()))
            };
            if reverse {
                range.rev().take(limit).map(take).collect()
            } else {
                range.take(limit).map(take).collect()
            }
        })?;
        Ok(pairs.unwrap_or_default())
    }

    fn commit(&self, batches: &[Batch]) -> Result<Vec<Applied>, StoreError> {
        self.with(|database| self.write(database, batches))
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    builder
}

/// All keys that begin with a prefix.
struct Prefix {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

fn within(prefix: &[u8]) -> Prefix {
    let mut to = prefix.to_vec();
    while to.last() == Some(&u8::MAX) {
        to.pop();
    }
    if let Some(last) = to.last_mut() {
        *last += 1;
    }
    Prefix {
        from: prefix.to_vec(),
        to: (!to.is_empty()).then_some(to),
    }
}

impl Prefix {
    fn as_bounds(&self) -> impl RangeBounds<&[u8]> {
        use std::ops::Bound;
        let to = self.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (Bound::Included(self.from.as_slice()), to)
    }
}

fn io_error<E>(action: &'static str, path: &Path) -> impl FnOnce(E) -> StoreError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source: source.into(),
    }
}

fn explain(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    let damaged = |problem: String| StoreError::Damaged {
        path: path.clone(),
        problem,
    };
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        DatabaseError::Storage(StorageError::Corrupted(problem)) => damaged(problem),
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            damaged(error.to_string())
        }
        DatabaseError::UpgradeRequired(version) => damaged(format!(
            "its file format {version} is not one that Muster writes"
        )),
        other => StoreError::Io {
            action: "open",
            path,
            source: Box::new(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> Batch {
        Batch {
            require: vec![],
            write: vec![(key.to_vec(), Some(value.to_vec()))],
        }
    }

    fn filled(folder: &Path) -> PathBuf {
        let path = folder.join("store.redb");
        let store = EmbeddedStore::create(&path).unwrap();
        for number in 0..200u32 {
            let key = [b"h/".as_slice(), &number.to_be_bytes()].concat();
            store.commit(&[put(&key, &[b'x'; 300])]).unwrap();
        }
        path
    }

    #[test]
    fn a_requirement_that_fails_leaves_its_batch_out_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::create(&folder.path().join("s")).unwrap();
        let once = Batch {
            require: vec![(b"k".to_vec(), None)],
            ..put(b"k", b"1")
        };
        let again = Batch {
            require: vec![(b"k".to_vec(), None)],
            ..put(b"k", b"2")
        };
        let swap = Batch {
            require: vec![(b"k".to_vec(), Some(b"1".to_vec()))],
            ..put(b"k", b"3")
        };
        let applied = store.commit(&[once, again, swap]).unwrap();
        assert_eq!(applied, [Applied::Yes, Applied::Conflict, Applied::Yes]);
        assert_eq!(store.get(b"k").unwrap().unwrap(), b"3");
    }

    #[test]
    fn scans_stay_within_their_prefix_in_both_directions() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::create(&folder.path().join("s")).unwrap();
        let keys = [b"a/1".as_slice(), b"j/1", b"j/2", b"j/\xff\xff", b"k/1"];
        store.commit(&keys.map(|key| put(key, key))).unwrap();
        let found = |reverse, limit| -> Vec<Vec<u8>> {
            store
                .scan(b"j/", limit, reverse)
                .unwrap()
                .into_iter()
                .map(|(key, _)| key)
                .collect()
        };
        assert_eq!(
            found(false, 9),
            [b"j/1".to_vec(), b"j/2".to_vec(), b"j/\xff\xff".to_vec()]
        );
        assert_eq!(found(true, 2), [b"j/\xff\xff".to_vec(), b"j/2".to_vec()]);
        assert_eq!(store.scan(b"j/\xff\xff", 9, false).unwrap().len(), 1);
    }

    #[test]
    fn a_store_cut_in_half_or_empty_is_refused_with_a_clear_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let length = fs::metadata(&path).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(length / 2).unwrap();
        let error = EmbeddedStore::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
        file.set_len(0).unwrap();
        let error = EmbeddedStore::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Empty { .. }), "{error:?}");
        fs::remove_file(&path).unwrap();
        assert!(matches!(
            EmbeddedStore::open(&path),
            Err(StoreError::Io { action: "open", .. })
        ));
    }

    #[test]
    fn flipped_bytes_are_noticed_and_never_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let whole = fs::read(&path).unwrap();
        let before = EmbeddedStore::open(&path)
            .unwrap()
            .scan(b"h/", 1000, false)
            .unwrap();
        let whole_again = fs::read(&path).unwrap();
        let mut noticed = 0;
        for at in (0..whole_again.len()).step_by(whole.len() / 97) {
            let mut bytes = whole_again.clone();
            bytes[at] ^= 0xff;
            fs::write(&path, &bytes).unwrap();
            match EmbeddedStore::open(&path) {
                Err(_) => noticed += 1,
                // The byte was in no live page: everything must still be as it was.
                Ok(store) => assert_eq!(store.scan(b"h/", 1000, false).unwrap(), before),
            }
        }
        assert!(noticed > 5, "only {noticed} of 97 flips noticed");
    }

    #[test]
    fn a_newer_format_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let store = EmbeddedStore::open(&path).unwrap();
        store.commit(&[put(keys::FORMAT, b"2")]).unwrap();
        drop(store);
        let error = EmbeddedStore::open(&path).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Newer {
                    found: 2,
                    known: 1,
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn two_brokers_never_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let _first = EmbeddedStore::open(&path).unwrap();
        assert!(matches!(
            EmbeddedStore::open(&path),
            Err(StoreError::InUse { .. })
        ));
    }

    /// A file whose disk is full while the valve is shut.
    #[derive(Debug)]
    struct Disk {
        file: redb::backends::FileBackend,
        full: std::sync::Arc<std::sync::atomic::AtomicBool>,
    }

    impl Disk {
        fn room(&self) -> Result<(), io::Error> {
            if self.full.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            Ok(())
        }
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> Result<u64, io::Error> {
            self.file.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            self.file.read(offset, out)
        }
        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            self.room().and_then(|()| self.file.set_len(len))
        }
        fn sync_data(&self) -> Result<(), io::Error> {
            self.room().and_then(|()| self.file.sync_data())
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            self.room().and_then(|()| self.file.write(offset, data))
        }
    }

    #[test]
    fn a_disk_that_was_full_for_a_while_does_not_end_the_store() {
        use std::sync::atomic::Ordering;
        let folder = tempfile::tempdir().unwrap();
        let path = filled(folder.path());
        let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let opener = {
            let (path, full) = (path.clone(), full.clone());
            move || {
                let file = fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .unwrap();
                let file = redb::backends::FileBackend::new(file)?;
                builder().create_with_backend(Disk {
                    file,
                    full: full.clone(),
                })
            }
        };
        let store = EmbeddedStore::over(opener().unwrap(), &path, Box::new(opener));
        full.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            assert!(matches!(
                store.commit(&[put(b"k", b"1")]),
                Err(StoreError::Io { .. })
            ));
        }
        full.store(false, Ordering::SeqCst);
        assert_eq!(store.commit(&[put(b"k", b"2")]).unwrap(), [Applied::Yes]);
        assert_eq!(store.get(b"k").unwrap().unwrap(), b"2");
        assert_eq!(
            store.scan(b"h/", 1000, false).unwrap().len(),
            200,
            "nothing was lost"
        );
    }
}
