//! The few file operations that hash files need, so that tests can cut the power between any two.
//!
//! Blocking: callers run them off the async threads. Not a general file system.

use rustix::fs::SeekFrom;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};

/// A folder of flat files.
pub trait Folder: Send + Sync {
    /// Opens `name` for reading and writing; `None` when it does not exist.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FolderFile>>>;
    /// Opens `name` empty, making it when it does not exist. Durable after `sync` of the folder.
    fn create(&self, name: &str) -> io::Result<Arc<dyn FolderFile>>;
    /// Removes `name`; no error when it does not exist.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Names of the files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Makes creations and removals durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file in a [`Folder`].
pub trait FolderFile: Send + Sync {
    /// Reads at most `buffer.len()` bytes at `offset`; 0 at and beyond the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, extending the file with a hole if needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends the file to `len` bytes; new bytes read as zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Offset of the first byte at or after `offset` that is not in a hole; `None` when there is
    /// none. May name bytes that are zero.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// Makes everything written durable.
    fn sync(&self) -> io::Result<()>;
}

/// Fills `buffer` from `offset`; bytes beyond the file's end are zero.
pub(crate) fn read_padded(
    file: &dyn FolderFile,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(done)
}

/// A folder of the local file system. It must exist.
#[derive(Clone, Debug)]
pub struct DiskFolder {
    path: PathBuf,
}

impl DiskFolder {
    /// Names a folder; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> DiskFolder {
        DiskFolder { path: path.into() }
    }
}

impl Folder for DiskFolder {
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn FolderFile>>> {
        match OpenOptions::new().read(true).write(true).open(self.path.join(name)) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn FolderFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Arc::new(options.open(self.path.join(name))?))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is not one of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl FolderFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        // Moves the file's cursor, which nobody uses: all other access is positional.
        match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}
