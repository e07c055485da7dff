//! What mkfs prints.

use crate::Summary;
use shoal::base::{BLOCK_SIZE, BlockNo};
use std::fmt;

/// Bytes in the largest unit that is exact or has two digits to say.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) >= 1 {
        unit += 1;
    }
    let whole = 1u64 << (10 * unit);
    if bytes.is_multiple_of(whole) {
        return format!("{} {}", bytes / whole, UNITS[unit]);
    }
    format!("{:.1} {}", bytes as f64 / whole as f64, UNITS[unit])
}

fn blocks(n: u64) -> String {
    size(n * BLOCK_SIZE as u64)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (l, g) = (&self.layout, &self.layout.geometry);
        let r = g.regions();
        writeln!(f, "device      {}", self.device)?;
        writeln!(f, "uuid        {}", uuid::Uuid::from_bytes(self.identity.uuid))?;
        writeln!(f, "label       {}", if self.label.is_empty() { "(none)" } else { &self.label })?;
        writeln!(
            f,
            "size        {} ({} blocks of {BLOCK_SIZE} bytes)",
            blocks(g.total_blocks),
            g.total_blocks
        )?;
        writeln!(f, "cells       {} bytes apart, for up to {} slots", g.cell_pitch, g.max_slots)?;
        writeln!(
            f,
            "groups      {} of {}, from block {}",
            g.ag_count,
            blocks(g.ag_blocks),
            g.groups_start()
        )?;
        writeln!(f, "timing      {}", format!("{:?}", self.timing).to_lowercase())?;
        writeln!(f, "root inode  {}", l.root.ino)?;
        let regions = [
            ("heartbeat", r.heartbeat),
            ("ballots", r.ballots),
            ("ledgers", r.ledgers),
            ("inbox", r.inbox),
            ("overflow", r.overflow),
            ("lobby", r.lobby),
        ];
        for (name, at) in regions {
            writeln!(f, "{name:<11} block {at}")?;
        }
        for (i, slot) in l.slots.iter().enumerate() {
            let start: BlockNo = slot.journal_start;
            let ag = g.ag_of(start).map_or(0, |ag| ag.0);
            let length = blocks(slot.journal_blocks);
            writeln!(f, "slot {i:<6} journal {length} at block {start} (group {ag}), inode {}", slot.inode)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes() {
        for (bytes, text) in [(0, "0 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (16 << 40, "16 TiB")] {
            assert_eq!(super::size(bytes), text);
        }
    }
}
