//! Errors of write-back, and who has heard of them.

use crate::base::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Errors of write-back, for those who have the file open: each handle hears of them once.
#[derive(Default)]
pub struct WriteErrors {
    newest: Option<Error>,
    count: u64,
    /// Has any handle heard of the newest?
    heard: bool,
}

impl WriteErrors {
    /// One more.
    pub fn note(&mut self, e: Error) {
        (self.newest, self.heard) = (Some(e), false);
        self.count += 1;
    }

    /// Is there one that nobody has heard of?
    pub fn has_news(&self) -> bool {
        self.count > 0 && !self.heard
    }

    /// How many a new handle need not hear of: all, except a newest one that nobody has heard of.
    pub fn before_open(&self) -> u64 {
        self.count - u64::from(self.has_news())
    }

    /// Tell a handle that has heard of the first `heard`; without one, whoever asks first.
    ///
    /// # Errors
    /// The newest, if it is news.
    pub fn tell(&mut self, heard: Option<&AtomicU64>) -> Result<()> {
        let news = match heard {
            Some(heard) => heard.swap(self.count, Ordering::AcqRel) < self.count,
            None => self.has_news(),
        };
        match &self.newest {
            Some(e) if news => {
                self.heard = true;
                Err(e.clone())
            }
            _ => Ok(()),
        }
    }
}
