//! How much is computed at once. Tables are worked on where leases are renewed, so what programs can make
//! as large as they like is done in parts.

/// Steps of a call, some 20 ms at worst: each is a look at what an owner has, or at one who waits.
const CALL: usize = 400_000;
/// Of a search for a circle of waits.
const SEARCH: usize = 100_000;

/// Steps that are left.
#[derive(Clone, Copy, Debug)]
pub struct Steps(usize);

impl Steps {
    /// Those of one call.
    pub fn of_call() -> Steps {
        Steps(CALL)
    }

    /// Those of one search.
    pub fn of_search() -> Steps {
        Steps(SEARCH)
    }

    /// Take some. The last may be more than there were.
    pub fn take(&mut self, count: usize) {
        self.0 = self.0.saturating_sub(count);
    }

    /// What was taken of a search's.
    pub fn searched(self) -> usize {
        SEARCH - self.0
    }

    /// Is there none left?
    pub fn are_over(self) -> bool {
        self.0 == 0
    }
}
