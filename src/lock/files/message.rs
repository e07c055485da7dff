//! What client and server of file locks say to each other, as an entry of a register.

use super::{FileAnswer, FileLock, LockKind, Owner, Span};
use crate::base::{InodeNo, LockName, Mode, SlotId, Token};
use crate::format::cluster::inbox::FILE_LOCK_PATIENT;
use crate::format::cluster::{Entry, EntryKind};

/// From a client to the server of an inode's locks. Requests are known by their place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// What I said of this inode is void; what I have follows. `Token`: of the group, as I know it; the
    /// number: of the last grant of the cluster lock that I acted on.
    Begin(Token, u64),
    /// I have this.
    Held(FileLock),
    /// I wait for this.
    Waits(FileLock),
    /// That was all.
    End,
    /// Take, change or give up.
    Set { lock: FileLock, wait: bool },
    /// Give up; the program has been told that it is done. ([`Answer::Noted`])
    GiveUp(FileLock),
    /// Is anything in the way?
    Test(FileLock),
    /// The request of this number waits no more.
    Cancel(u64),
    /// All that I gave up before [`Answer::Check`] was read here has been said.
    Checked { asker: SlotId, request: u64 },
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The end of it. (`Found` names no owner here.)
    Done(FileAnswer),
    /// It waits; another answer follows.
    Waiting,
    /// It will be looked at when everybody has declared, or has been asked whether what is in its way stands still;
    /// another answer follows.
    Queued,
    /// The end of [`Ask::GiveUp`].
    Noted,
    /// None, but a question: what you have is in the way of that host's request of this number. Is there anything you
    /// gave up that you have not said? ([`Ask::Checked`])
    Check { asker: SlotId },
}

/// Either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Ask(InodeNo, Ask),
    /// `alone`: nobody else has to do with locks of this inode.
    Answer {
        ino: InodeNo,
        request: u64,
        answer: Answer,
        alone: bool,
    },
}

/// Bit of an entry's flags: flock.
const WHOLE: u8 = 0x80;
/// Of an answer: the client is alone.
const ALONE: u8 = 0x40;
/// Nobody waits for it: it may go with the next word.
const PATIENT: u8 = FILE_LOCK_PATIENT;
const CODE: u8 = 0x1f;

fn code_of(answer: Answer) -> u8 {
    match answer {
        Answer::Waiting => 16 | PATIENT,
        Answer::Done(FileAnswer::Granted) => 17,
        Answer::Done(FileAnswer::Denied) => 18,
        Answer::Done(FileAnswer::Deadlock) => 19,
        Answer::Done(FileAnswer::NoLocks) => 20,
        Answer::Done(FileAnswer::Found(..)) => 21,
        Answer::Done(FileAnswer::Free) => 22,
        Answer::Done(FileAnswer::Interrupted) => 23,
        Answer::Done(FileAnswer::Halted) => 24,
        Answer::Queued => 25 | PATIENT,
        Answer::Check { .. } => 26,
        Answer::Noted => 27 | PATIENT,
    }
}

impl Message {
    /// The inode it is about.
    pub fn inode(&self) -> InodeNo {
        match self {
            Message::Ask(ino, _) | Message::Answer { ino, .. } => *ino,
        }
    }

    /// Its form in a register.
    pub fn to_entry(self) -> Entry {
        let mut entry = Entry {
            lock: LockName::FileLocks(self.inode()),
            kind: EntryKind::FileLock,
            mode: Mode::N,
            held: Mode::N,
            cap: Mode::N,
            flags: 0,
            token: Token(0),
            number: 0,
            seq: 0,
        };
        let mut put = |code: u8, lock: &FileLock| {
            entry.flags = code | if lock.kind == LockKind::Whole { WHOLE } else { 0 };
            (entry.mode, entry.token) = (lock.mode, Token(lock.owner.id));
            (entry.number, entry.seq) = (lock.span.start, lock.span.end);
        };
        match self {
            Message::Ask(_, ask) => match ask {
                Ask::Begin(token, grant) => (entry.flags, entry.token, entry.number) = (0, token, grant),
                Ask::Held(lock) => put(1, &lock),
                Ask::Waits(lock) => put(2, &lock),
                Ask::End => entry.flags = 3,
                Ask::Set { lock, wait: false } => put(4, &lock),
                Ask::Set { lock, wait: true } => put(5, &lock),
                Ask::Test(lock) => put(6, &lock),
                Ask::GiveUp(lock) => put(9, &lock),
                Ask::Cancel(request) => (entry.flags, entry.token) = (7, Token(request)),
                Ask::Checked { asker, request } => {
                    (entry.flags, entry.token, entry.number) = (8, Token(request), asker.0.into());
                }
            },
            Message::Answer { request, answer, alone, .. } => {
                entry.flags = code_of(answer) | if alone { ALONE } else { 0 };
                entry.token = Token(request);
                match answer {
                    Answer::Done(FileAnswer::Found(mode, span, _)) => {
                        (entry.mode, entry.number, entry.seq) = (mode, span.start, span.end);
                    }
                    Answer::Check { asker } => entry.number = asker.0.into(),
                    _ => {}
                }
            }
        }
        entry
    }

    /// What an entry written by `from` says; `None` if no version of this code says that.
    pub fn from_entry(entry: &Entry, from: SlotId) -> Option<Message> {
        let LockName::FileLocks(ino) = entry.lock else { return None };
        let span = Span { start: entry.number, end: entry.seq };
        let kind = if entry.flags & WHOLE != 0 { LockKind::Whole } else { LockKind::Range };
        let owner = Owner { host: from, id: entry.token.0 };
        let lock = (span.start <= span.end && entry.mode != Mode::DW).then_some(FileLock {
            kind,
            owner,
            mode: entry.mode,
            span,
        });
        let answer = |answer| {
            let alone = entry.flags & ALONE != 0;
            Some(Message::Answer { ino, request: entry.token.0, answer, alone })
        };
        let done = |what| answer(Answer::Done(what));
        let asker = u16::try_from(entry.number).map(SlotId);
        let ask = match entry.flags & CODE {
            0 => Ask::Begin(entry.token, entry.number),
            1 => Ask::Held(lock?),
            2 => Ask::Waits(lock?),
            3 => Ask::End,
            4 => Ask::Set { lock: lock?, wait: false },
            5 => Ask::Set { lock: lock?, wait: true },
            6 => Ask::Test(lock?),
            7 => Ask::Cancel(entry.token.0),
            8 => Ask::Checked { asker: asker.ok()?, request: entry.token.0 },
            9 => Ask::GiveUp(lock?),
            16 => return answer(Answer::Waiting),
            17 => return done(FileAnswer::Granted),
            18 => return done(FileAnswer::Denied),
            19 => return done(FileAnswer::Deadlock),
            20 => return done(FileAnswer::NoLocks),
            21 => return done(FileAnswer::Found(entry.mode, span, None)),
            22 => return done(FileAnswer::Free),
            23 => return done(FileAnswer::Interrupted),
            24 => return done(FileAnswer::Halted),
            25 => return answer(Answer::Queued),
            26 => return answer(Answer::Check { asker: asker.ok()? }),
            27 => return answer(Answer::Noted),
            _ => return None,
        };
        Some(Message::Ask(ino, ask))
    }
}
