//! Errors of write-back, and who has heard of them.

use crate::base::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Errors of write-back, for those who have the file open: each handle hears of them once by
/// fsync, and by the close of a descriptor if that comes first. What a close says counts for no fsync: a child that
/// inherited a descriptor closes it when it ends, and throws the answer away.
#[derive(Default)]
pub struct WriteErrors {
    newest: Option<Error>,
    count: u64,
    /// Has any handle heard of the newest?
    heard: bool,
}

/// Of how many errors a handle has heard, or need not hear.
pub struct Heard {
    synced: AtomicU64,
    closed: AtomicU64,
}

impl Heard {
    /// Of so many by both.
    pub fn new(errors: u64) -> Heard {
        Heard { synced: AtomicU64::new(errors), closed: AtomicU64::new(errors) }
    }
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

    /// Tell who closes a descriptor of a handle.
    ///
    /// # Errors
    /// The newest, if neither fsync nor a close has told this handle.
    pub fn tell_at_close(&self, heard: &Heard) -> Result<()> {
        let news = heard.closed.swap(self.count, Ordering::AcqRel) < self.count;
        self.newest.clone().filter(|_| news).map_or(Ok(()), Err)
    }

    /// Tell who syncs a handle; without one, whoever asks first.
    ///
    /// # Errors
    /// The newest, if it is news.
    pub fn tell(&mut self, heard: Option<&Heard>) -> Result<()> {
        let news = match heard {
            Some(heard) => {
                heard.closed.store(self.count, Ordering::Release);
                heard.synced.swap(self.count, Ordering::AcqRel) < self.count
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_takes_nothing_from_a_sync() {
        let mut errors = WriteErrors::default();
        let early = Heard::new(errors.before_open());
        assert!(errors.tell_at_close(&early).is_ok() && errors.tell(Some(&early)).is_ok());
        errors.note(Error::NoSpace);
        assert!(errors.tell_at_close(&early).is_err(), "a program that looks at close(2) is told");
        assert!(errors.tell_at_close(&early).is_ok(), "once");
        assert!(errors.has_news());
        let [late, other] = [0, 0].map(|_| Heard::new(errors.before_open()));
        assert!(errors.tell(Some(&early)).is_err() && errors.tell(Some(&early)).is_ok());
        assert!(errors.tell(Some(&late)).is_err(), "opened before anybody had synced");
        assert!(errors.tell_at_close(&late).is_ok(), "it was told by fsync");
        assert!(errors.tell_at_close(&other).is_err() && !errors.has_news());
    }
}
