//! Folders of the roles: their lock, their owner mark, and files that must be secret or whole.

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Writes a file of mode 0600 so that it is there whole or not at all, also after a power cut.
///
/// # Errors
/// Those of the file system.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_with_mode(path, bytes, 0o600)
}

/// As [`write_secret`], with mode 0644.
///
/// # Errors
/// Those of the file system.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_with_mode(path, bytes, 0o644)
}

fn write_whole_with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let result = (|| {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    })();
    if result.is_err() {
        // The error that matters is the first one; the temporary file is only litter.
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

/// Holds a folder for one process; the lock ends with the process, however it ends.
pub struct FolderLock {
    _file: OwnedFd,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has it.
    #[error("another process uses the folder {}", .0.display())]
    InUse(PathBuf),
    /// It was made for another role or site.
    #[error("the folder {} belongs to {owner}, not to {wanted}", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who asked.
        wanted: String,
    },
    /// The file system refused.
    #[error("could not use the folder {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FolderError {
    /// The operator's view.
    pub fn problem(&self) -> leeward_model::Problem {
        use leeward_model::Code;
        match self {
            FolderError::InUse(_) => Code::FOLDER_IN_USE.problem(self.to_string()),
            FolderError::Foreign { .. } => Code::STORE_FOREIGN.problem(self.to_string()),
            FolderError::Io { source, .. } => {
                Code::STORE_IO.because(self.to_string(), source.to_string())
            }
        }
    }
}

/// Takes `dir` for this process, making it when it is not there. `owner` says what the folder is
/// for (`config server`, `host`); a folder made for something else is refused unchanged.
///
/// # Errors
/// See [`FolderError`].
pub fn lock(dir: &Path, owner: &str) -> Result<FolderLock, FolderError> {
    let failed = |source: io::Error| FolderError::Io { path: dir.to_owned(), source };
    let mark = dir.join("leeward.role");
    match std::fs::read_to_string(&mark) {
        Ok(text) if text.trim() == owner => {}
        Ok(text) => {
            return Err(FolderError::Foreign {
                path: dir.to_owned(),
                owner: format!("a {}", text.trim()),
                wanted: format!("a {owner}"),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => refuse_strangers(dir, owner)?,
        Err(error) => return Err(failed(error)),
    }
    std::fs::create_dir_all(dir).map_err(failed)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir.join("leeward.lock"), flags, Mode::from_raw_mode(0o600))
        .map_err(|error| failed(error.into()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(FolderError::InUse(dir.to_owned())),
        Err(error) => return Err(failed(error.into())),
    }
    if !mark.exists() {
        write_whole(&mark, format!("{owner}\n").as_bytes()).map_err(failed)?;
    }
    Ok(FolderLock { _file: file })
}

/// The full path of a folder that a role has made.
///
/// # Errors
/// [`FolderError::Foreign`] when no role has; [`FolderError::Io`] when it is not there.
pub fn existing(dir: &Path) -> Result<PathBuf, FolderError> {
    let failed = |source: io::Error| FolderError::Io { path: dir.to_owned(), source };
    let full = dir.canonicalize().map_err(failed)?;
    if !full.join("leeward.role").exists() {
        return Err(FolderError::Foreign {
            path: full,
            owner: "something else: no role of Leeward made it".to_owned(),
            wanted: "a host".to_owned(),
        });
    }
    Ok(full)
}

/// A folder without our mark is taken only when it is empty (or holds what a start that was cut
/// off left): a slip in `--data` must not scatter files into somebody's home.
fn refuse_strangers(dir: &Path, owner: &str) -> Result<(), FolderError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(FolderError::Io { path: dir.to_owned(), source }),
    };
    let foreign = entries.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name != "leeward.lock" && !name.starts_with(".leeward.role") && name != "machines"
    });
    if foreign {
        return Err(FolderError::Foreign {
            path: dir.to_owned(),
            owner: "something else: it is not empty".to_owned(),
            wanted: format!("a {owner}"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_until_the_first_one_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path(), "host").unwrap();

        assert!(matches!(lock(dir.path(), "host"), Err(FolderError::InUse(_))));

        drop(first);
        assert!(lock(dir.path(), "host").is_ok());
    }

    #[test]
    fn a_folder_of_another_role_or_with_foreign_files_is_refused_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        drop(lock(dir.path(), "host").unwrap());
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("thesis.txt"), "dear").unwrap();

        let role = lock(dir.path(), "config server");
        let foreign = lock(other.path(), "host");

        assert!(matches!(role, Err(FolderError::Foreign { .. })));
        assert!(matches!(foreign, Err(FolderError::Foreign { .. })));
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
    }
}
