//! The words behind a command: what the simulator and the fuzzer are told to run.

use std::process::ExitCode;
use std::str::FromStr;

/// Words that are left to be read.
#[derive(Debug)]
pub struct Words<I> {
    left: I,
    /// The one that was read last.
    word: String,
}

impl<I: Iterator<Item = String>> Words<I> {
    pub fn new(words: I) -> Self {
        Self { left: words, word: String::new() }
    }

    /// The next option.
    pub fn option(&mut self) -> Option<&str> {
        self.word = self.left.next()?;
        Some(&self.word)
    }

    /// The value of the option that was read last.
    pub fn value(&mut self) -> Result<String, String> {
        self.left.next().ok_or_else(|| format!("{} wants a value", self.word))
    }

    /// The same, a number.
    pub fn number<N: FromStr>(&mut self) -> Result<N, String> {
        number(&self.value()?)
    }

    /// What is said of an option that nobody knows.
    pub fn unknown<T>(&self) -> Result<T, String> {
        Err(format!("{} is unknown", self.word))
    }
}

pub fn number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

/// Says what is wrong with the words, and which there are.
pub fn refuse(error: &str, usage: &str) -> ExitCode {
    eprintln!("{error}\n\n{usage}");
    ExitCode::from(2)
}
