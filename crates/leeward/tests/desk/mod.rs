//! A desk of somebody who works with `leeward store`: a folder of its own, and the program. What
//! lies on it is each test's own.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_leeward");

/// See the module.
pub struct Desk {
    folder: tempfile::TempDir,
    /// What stands before the words of every command.
    first: &'static [&'static str],
}

impl Desk {
    /// An empty one; `name` begins its folder's name, which is short because sockets lie there.
    pub fn empty(name: &str, first: &'static [&'static str]) -> Desk {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in("/tmp").unwrap();
        Desk { folder, first }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn store(&self) -> String {
        self.text("store")
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(self.first).args(words).env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(Stdio::null()).output().unwrap()
    }

    pub fn good(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what has to be refused; returns its words on standard error.
    pub fn refused(&self, words: &[&str], exit: i32, code: &str) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{words:?}: {said}");
        assert!(said.contains(code), "{words:?}: {said}");
        said
    }
}
