//! Blobs as files below a folder. Files have mode 0600, folders 0700.
//!
//! Folders are made durable when they are first used; names of blobs by [`BlobStore::sync_dir`].
//! Names that begin with a dot are temporary files of [`BlobStore::put_new`] and are never listed.

use super::{Appender, BlobStore, Put, StorageError, StoreLock, check_name, split};
use rustix::{
    buffer::spare_capacity,
    fs::{FlockOperation, RenameFlags},
};
use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Files kept open for reading. A view reads from few segments at a time; more only costs
/// descriptors. At the limit all are closed and opened again as needed.
const OPEN_FILES_MAX: usize = 128;

/// Number of the next temporary file of this process.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A folder of the local file system.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
    durable_folders: Mutex<BTreeSet<PathBuf>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The maps below are valid after every single statement, so a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalStore {
    /// Opens `root` for writing, making the folder if it is not there, and proves that its file
    /// system enforces create-if-absent.
    ///
    /// # Errors
    /// [`StorageError::NotEnforced`] when it does not; [`StorageError::Io`].
    pub fn open(root: impl Into<PathBuf>) -> Result<LocalStore, StorageError> {
        let store = LocalStore::open_reading(root);
        store.durable_folder("")?;
        store.probe()?;
        Ok(store)
    }

    /// Opens `root` without writing anything there, for readers.
    pub fn open_reading(root: impl Into<PathBuf>) -> LocalStore {
        LocalStore { root: root.into(), open: Mutex::default(), durable_folders: Mutex::default() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn probe(&self) -> Result<(), StorageError> {
        let name = format!("probe-{}-{}", std::process::id(), next_temporary());
        let not_enforced = || StorageError::NotEnforced { name: self.root.display().to_string() };
        let first = self.put_new(&name, b"create-if-absent").map_err(|error| match error {
            StorageError::Io { source, .. }
                if matches!(source.kind(), io::ErrorKind::InvalidInput)
                    || source.kind() == io::ErrorKind::Unsupported =>
            {
                not_enforced()
            }
            other => other,
        });
        let second = first.and_then(|first| Ok((first, self.put_new(&name, b"again")?)));
        self.delete(&name)?;
        match second? {
            (Put::Created, Put::Exists) => Ok(()),
            _ => Err(not_enforced()),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, StorageError> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    fn folder_path(&self, folder: &str) -> Result<PathBuf, StorageError> {
        if folder.is_empty() { Ok(self.root.clone()) } else { self.path(folder) }
    }

    /// Makes `folder` and all above it, and makes their names durable once a process: a killed
    /// predecessor may have made them without a flush.
    fn durable_folder(&self, folder: &str) -> Result<PathBuf, StorageError> {
        let path = self.folder_path(folder)?;
        if guard(&self.durable_folders).contains(&path) {
            return Ok(path);
        }
        let io =
            |action| move |source| StorageError::Io { action, name: folder.to_owned(), source };
        let mut missing = vec![path.clone()];
        if !folder.is_empty() {
            let above = path.ancestors().skip(1);
            missing.extend(
                above.take_while(|above| above.starts_with(&self.root)).map(Path::to_owned),
            );
        }
        for path in missing.iter().rev() {
            let mut builder = fs::DirBuilder::new();
            let made = builder.recursive(*path == self.root).mode(0o700).create(path);
            match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(io("make folder"))?,
            }
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_folder(parent).map_err(io("flush the folder of"))?;
            }
            guard(&self.durable_folders).insert(path.clone());
        }
        Ok(path)
    }

    fn reading(&self, name: &str) -> Result<Arc<File>, StorageError> {
        if let Some(file) = guard(&self.open).get(name) {
            return Ok(file.clone());
        }
        let file =
            File::open(self.path(name)?).map_err(|source| absent_or(name, "open", source))?;
        let file = Arc::new(file);
        let mut open = guard(&self.open);
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_data()
    }
}

fn next_temporary() -> u64 {
    TEMPORARY.fetch_add(1, Ordering::Relaxed)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn absent_or(name: &str, action: &'static str, source: io::Error) -> StorageError {
    let name = name.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => StorageError::Absent { name },
        _ => StorageError::Io { action, name, source },
    }
}

impl BlobStore for LocalStore {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        let path = self.path(name)?;
        self.durable_folder(split(name).0)?;
        let opened = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
        let file = opened.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StorageError::Exists { name: name.to_owned() },
            _ => StorageError::Io { action: "create", name: name.to_owned(), source },
        })?;
        Ok(Box::new(LocalAppender { name: name.to_owned(), file, poisoned: false }))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        let path = self.path(name)?;
        let folder = self.durable_folder(split(name).0)?;
        let temporary = folder.join(format!(".new-{}-{}", std::process::id(), next_temporary()));
        let io = |action| move |source| StorageError::Io { action, name: name.to_owned(), source };
        if let Err(error) = self.write_temporary(&temporary, bytes) {
            let _ = fs::remove_file(&temporary);
            return Err(io("write")(error));
        }
        let (cwd, flags) = (rustix::fs::CWD, RenameFlags::NOREPLACE);
        match rustix::fs::renameat_with(cwd, &temporary, cwd, &path, flags) {
            Ok(()) => {}
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                if error == rustix::io::Errno::EXIST {
                    return Ok(Put::Exists);
                }
                return Err(io("put")(error.into()));
            }
        }
        sync_folder(&folder).map_err(io("flush the folder of"))?;
        Ok(Put::Created)
    }

    fn replace_hint(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.path(name)?;
        let folder = self.folder_path(split(name).0)?;
        let temporary = folder.join(format!(".new-{}-{}", std::process::id(), next_temporary()));
        let mut options = OpenOptions::new();
        let opened = options.write(true).create_new(true).mode(0o600).open(&temporary);
        let written = opened.and_then(|mut file| file.write_all(bytes));
        written.and_then(|()| fs::rename(&temporary, &path)).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            StorageError::Io { action: "replace", name: name.to_owned(), source }
        })
    }

    fn read_hint(&self, name: &str, max: usize) -> Result<Option<Vec<u8>>, StorageError> {
        // Never through the files that are kept open: a hint's file is another one each time.
        let mut bytes = Vec::new();
        let read = File::open(self.path(name)?)
            .and_then(|file| file.take(max as u64).read_to_end(&mut bytes));
        match read.map_err(|source| absent_or(name, "read", source)) {
            Ok(_) => Ok(Some(bytes)),
            Err(StorageError::Absent { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        let file = self.reading(name)?;
        // Not filled with zeros first: the kernel writes to the spare room.
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&*file, spare_capacity(&mut bytes), at) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let (name, source) = (name.to_owned(), error.into());
                    return Err(StorageError::Io { action: "read", name, source });
                }
            }
        }
        // There may have been more room than was asked for.
        bytes.truncate(len);
        Ok(bytes)
    }

    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        match fs::metadata(self.path(name)?) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(source) => match absent_or(name, "look at", source) {
                StorageError::Absent { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let io = |source| StorageError::Io { action: "list", name: folder.to_owned(), source };
        let entries = match fs::read_dir(self.folder_path(folder)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            if check_name(&name).is_ok() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let path = self.path(name)?;
        guard(&self.open).remove(name);
        let deleted = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                guard(&self.durable_folders).remove(&path);
                fs::remove_dir(&path)
            }
            deleted => deleted,
        };
        match deleted {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            deleted => deleted.map_err(|source| StorageError::Io {
                action: "delete",
                name: name.to_owned(),
                source,
            }),
        }
    }

    fn sync_dir(&self, folder: &str) -> Result<(), StorageError> {
        let path = self.folder_path(folder)?;
        match sync_folder(&path) {
            // A folder that is not there holds no names.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(|source| StorageError::Io {
                action: "flush folder",
                name: folder.to_owned(),
                source,
            }),
        }
    }

    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        let path = self.path(name)?;
        let io = |source| StorageError::Io { action: "lock", name: name.to_owned(), source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Box::new(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let name = self.root.join(name).display().to_string();
                Err(StorageError::Locked { name, holder: "another process".into() })
            }
            Err(error) => Err(io(error.into())),
        }
    }

    fn is_near(&self) -> bool {
        true
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let figures = rustix::fs::statvfs(&self.root).map_err(|error| StorageError::Io {
            action: "ask for the free space of",
            name: self.root.display().to_string(),
            source: error.into(),
        })?;
        Ok(Some(figures.f_bavail * figures.f_frsize))
    }
}

struct LocalAppender {
    name: String,
    file: File,
    poisoned: bool,
}

impl LocalAppender {
    fn checked(
        &mut self,
        action: &'static str,
        work: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), StorageError> {
        if self.poisoned {
            return Err(StorageError::Poisoned { name: self.name.clone() });
        }
        work(&mut self.file).map_err(|source| {
            self.poisoned = true;
            StorageError::Io { action, name: self.name.clone(), source }
        })
    }
}

impl Appender for LocalAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.checked("append to", |file| file.write_all(bytes))
    }

    fn append_all(&mut self, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.checked("append to", |file| {
            let mut slices: Vec<IoSlice<'_>> =
                parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut rest = &mut slices[..];
            // Without this, an empty part at the end would look like a full disk.
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match file.write_vectored(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => IoSlice::advance_slices(&mut rest, written),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    fn sync_data(&mut self) -> Result<(), StorageError> {
        self.checked("flush", |file| file.sync_data())
    }
}
