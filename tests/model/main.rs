//! The protocol machines of `src`, checked exhaustively within small bounds: every order of steps of
//! a few hosts, over a disk that answers overlapping reads with old or new, tears what is being
//! written, and lets writes land late or twice.
//!
//! The machines are the production ones. Each rule has a mutant: a wrapper that changes what goes
//! into a machine or comes out of it as if the rule were not there. A mutant that no property
//! catches fails the test: either the rule is not needed or the model does not see what it is for.
//! What is checked, and what is not, is listed in `docs/PROTOCOL.md`.

mod check;
mod files;
mod lease;
mod locks;
mod replay;
mod reservation;
mod tokens;
mod views;
