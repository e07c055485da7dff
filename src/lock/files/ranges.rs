//! Who has which bytes locked in which mode: the locks of one kind on one inode.

use super::{Owner, Span};
use crate::base::{Mode, SlotId};
use std::collections::BTreeMap;

/// A locked range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    pub span: Span,
    pub mode: Mode,
}

/// The locks by owner; each one's are in order, do not overlap, and are merged where they can be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ranges {
    owners: BTreeMap<Owner, Vec<Piece>>,
    count: usize,
    /// Of those, exclusive ones.
    exclusive: usize,
}

impl Ranges {
    /// Pieces in all.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Owners of any.
    pub fn owners(&self) -> Vec<Owner> {
        self.owners.keys().copied().collect()
    }

    /// Has another owner than this one any?
    pub fn has_other(&self, owner: Owner) -> bool {
        self.owners.keys().any(|other| *other != owner)
    }

    /// What `owner` has.
    pub fn of(&self, owner: Owner) -> &[Piece] {
        self.owners.get(&owner).map_or(&[], |pieces| pieces)
    }

    /// Who has what.
    pub fn all(&self) -> impl Iterator<Item = (Owner, Piece)> + '_ {
        self.owners.iter().flat_map(|(owner, pieces)| pieces.iter().map(|p| (*owner, *p)))
    }

    /// Everything of `owner` within `span` becomes `mode` (`N`: is unlocked), whatever it was.
    pub fn set(&mut self, owner: Owner, mode: Mode, span: Span) {
        let pieces = self.owners.entry(owner).or_default();
        self.count -= pieces.len();
        self.exclusive -= exclusive(pieces);
        let mut merged = Piece { span, mode };
        let mut rest = Vec::with_capacity(pieces.len() + 2);
        for piece in pieces.drain(..) {
            if piece.mode == mode && piece.span.touches(span) {
                merged.span.start = merged.span.start.min(piece.span.start);
                merged.span.end = merged.span.end.max(piece.span.end);
            } else {
                rest.extend(without(piece, span).into_iter().flatten());
            }
        }
        if mode != Mode::N {
            let at = rest.partition_point(|p: &Piece| p.span.start < merged.span.start);
            rest.insert(at, merged);
        }
        self.count += rest.len();
        self.exclusive += exclusive(&rest);
        match rest.is_empty() {
            true => _ = self.owners.remove(&owner),
            false => *pieces = rest,
        }
    }

    /// How many owners are looked at to find what does not go with `mode`.
    pub fn cost(&self, mode: Mode) -> usize {
        if mode != Mode::S || self.exclusive > 0 { self.owners.len() } else { 0 }
    }

    /// Locks of others that do not go with `mode` on `span`: one of each owner.
    pub fn conflicts(
        &self,
        owner: Owner,
        mode: Mode,
        span: Span,
    ) -> impl Iterator<Item = (Owner, Piece)> + '_ {
        // Beside shared ones alone, a shared one has nothing to look for.
        let any = mode != Mode::S || self.exclusive > 0;
        let others = self.owners.iter().filter(move |(other, _)| any && **other != owner);
        others.filter_map(move |(other, pieces)| Some((*other, conflict(pieces, mode, span)?)))
    }

    /// Has `owner` something that does not go with another's `mode` on `span`?
    pub fn blocks(&self, owner: Owner, mode: Mode, span: Span) -> bool {
        conflict(self.of(owner), mode, span).is_some()
    }

    /// Forget all owners of a host.
    pub fn drop_host(&mut self, host: SlotId) {
        self.owners.retain(|owner, _| owner.host != host);
        self.count = self.owners.values().map(Vec::len).sum();
        self.exclusive = self.owners.values().map(|pieces| exclusive(pieces)).sum();
    }
}

/// The first of these pieces, which ascend and do not overlap, that does not go with `mode` on `span`.
fn conflict(pieces: &[Piece], mode: Mode, span: Span) -> Option<Piece> {
    let first = pieces.partition_point(|p| p.span.end < span.start);
    let met = pieces[first..].iter().take_while(|p| p.span.start <= span.end);
    met.copied().find(|p| !p.mode.compatible(mode))
}

fn exclusive(pieces: &[Piece]) -> usize {
    pieces.iter().filter(|p| p.mode == Mode::X).count()
}

/// What is left of a piece on both sides of `span`.
fn without(piece: Piece, span: Span) -> [Option<Piece>; 2] {
    if !piece.span.overlaps(span) {
        return [Some(piece), None];
    }
    let part = |start, end| Piece { span: Span { start, end }, ..piece };
    let left = (piece.span.start < span.start).then(|| part(piece.span.start, span.start - 1));
    let right = (piece.span.end > span.end).then(|| part(span.end + 1, piece.span.end));
    [left, right]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u64 = 24;

    fn owner(id: u64) -> Owner {
        Owner { host: SlotId((id % 2) as u16), id }
    }

    fn mode(n: u8) -> Mode {
        [Mode::N, Mode::S, Mode::X][usize::from(n)]
    }

    proptest! {
        /// Against one mode per byte and owner.
        #[test]
        fn as_bytes_would_have_it(
            steps in proptest::collection::vec((0u64..4, 0u8..3, 0..BYTES, 0..BYTES), 0..60)
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [[Mode::N; BYTES as usize]; 4];
            for (id, m, a, b) in steps {
                let (span, mode) = (Span { start: a.min(b), end: a.max(b) }, mode(m));
                let clash = |bytes: &[[Mode; BYTES as usize]; 4]| (0..4).filter(|other| *other != id as usize)
                    .filter(|other| (span.start..=span.end).any(|i| !bytes[*other][i as usize].compatible(mode)))
                    .map(|other| owner(other as u64)).collect::<std::collections::BTreeSet<_>>();
                let found: std::collections::BTreeSet<_> =
                    ranges.conflicts(owner(id), mode, span).map(|(o, _)| o).collect();
                prop_assert_eq!(found, clash(&bytes));
                ranges.set(owner(id), mode, span);
                (span.start..=span.end).for_each(|i| bytes[id as usize][i as usize] = mode);
                let mut count = 0;
                for id in 0..4u64 {
                    let pieces = ranges.of(owner(id));
                    count += pieces.len();
                    for pair in pieces.windows(2) {
                        prop_assert!(pair[0].span.end < pair[1].span.start);
                        prop_assert!(pair[0].mode != pair[1].mode || !pair[0].span.touches(pair[1].span));
                    }
                    for i in 0..BYTES {
                        let at = Span { start: i, end: i };
                        let has = pieces.iter().find(|p| p.span.overlaps(at)).map_or(Mode::N, |p| p.mode);
                        prop_assert_eq!(has, bytes[id as usize][i as usize]);
                    }
                }
                prop_assert_eq!(count, ranges.len());
            }
        }
    }

    #[test]
    fn the_last_byte_there_is() {
        let mut ranges = Ranges::default();
        let end = Span { start: u64::MAX, end: u64::MAX };
        ranges.set(owner(0), Mode::X, Span { start: 5, end: u64::MAX });
        ranges.set(owner(0), Mode::N, end);
        ranges.set(owner(0), Mode::S, end);
        ranges.set(owner(0), Mode::X, end);
        assert_eq!(ranges.of(owner(0)).len(), 1);
        assert!(ranges.conflicts(owner(1), Mode::S, Span::ALL).next().is_some());
        ranges.drop_host(SlotId(0));
        assert!(ranges.is_empty());
    }
}
