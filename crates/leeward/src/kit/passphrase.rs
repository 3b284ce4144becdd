//! Where the passphrase of a kit comes from: a terminal without echo, a file, standard input.
//! Never an argument, which every user of the machine can read.

use crate::store::{Failure, problem};
use leeward_model::Code;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
};

/// Fewest characters: below, a stolen kit falls to guessing in spite of its slow key derivation.
const CHARACTERS_MIN: usize = 12;
/// Longest passphrase in bytes.
const BYTES_MAX: u64 = 4096;

/// Where the passphrase is.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PassphraseOptions {
    /// File with the kit's passphrase, its first line; `-` is standard input. Without it the
    /// terminal is asked.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// A passphrase; overwritten when it is dropped.
pub(super) struct Passphrase(String);

impl Passphrase {
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Drop for Passphrase {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        bytes.fill(0);
        std::hint::black_box(&bytes);
    }
}

fn refuse(cause: &str) -> Failure {
    problem(Code::BAD_REQUEST, "the passphrase of the kit cannot be used", cause)
}

impl PassphraseOptions {
    /// Asks for the passphrase of a kit that there is.
    pub(super) fn ask(&self) -> Result<Passphrase, Failure> {
        match &self.passphrase_file {
            Some(file) => from_file(file),
            None => from_terminal("Passphrase of the kit: "),
        }
    }

    /// Asks for the passphrase of a new kit: twice, if a person types it.
    pub(super) fn ask_twice(&self) -> Result<Passphrase, Failure> {
        let passphrase = self.ask()?;
        if passphrase.0.chars().count() < CHARACTERS_MIN {
            return Err(refuse("it has fewer than 12 characters; take several words"));
        }
        if self.passphrase_file.is_none() && from_terminal("Once more: ")?.0 != passphrase.0 {
            return Err(refuse("the second one is another"));
        }
        Ok(passphrase)
    }
}

fn from_file(file: &Path) -> Result<Passphrase, Failure> {
    let fail = |error: std::io::Error| refuse(&format!("{}: {error}", file.display()));
    if file == Path::new("-") {
        return first_line(std::io::stdin().lock()).map_err(fail);
    }
    first_line(File::open(file).map_err(fail)?).map_err(fail)
}

fn first_line(reader: impl Read) -> std::io::Result<Passphrase> {
    let mut line = String::new();
    BufReader::new(reader.take(BYTES_MAX)).read_line(&mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(Passphrase(line))
}

fn from_terminal(prompt: &str) -> Result<Passphrase, Failure> {
    let none = || refuse("there is no terminal to ask at; give --passphrase-file FILE");
    let mut terminal =
        File::options().read(true).write(true).open("/dev/tty").map_err(|_| none())?;
    let before = tcgetattr(&terminal).map_err(|_| none())?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let fail = |error: std::io::Error| refuse(&error.to_string());
    terminal.write_all(prompt.as_bytes()).map_err(fail)?;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|error| fail(error.into()))?;
    let read = first_line(&terminal);
    let restored = tcsetattr(&terminal, OptionalActions::Flush, &before);
    let _ = terminal.write_all(b"\n");
    restored.map_err(|error| fail(error.into()))?;
    read.map_err(fail)
}

#[cfg(test)]
pub(super) fn test_passphrase(text: &str) -> Passphrase {
    Passphrase(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_counts_without_its_end() {
        for text in ["two words\nmore", "two words\r\n", "two words"] {
            assert_eq!(first_line(text.as_bytes()).unwrap().0, "two words");
        }
        assert_eq!(first_line(&b""[..]).unwrap().0, "");
    }
}
