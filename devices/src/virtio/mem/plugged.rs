//! Which blocks are plugged.

use super::{BlockIndex, BlockRange};

/// What a range of blocks is, as a STATE request asks it (virtio 1.2, 5.15.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RangeState {
    /// All of it is plugged.
    Plugged = 0,
    /// None of it is plugged.
    Unplugged = 1,
    /// Some blocks are, some are not.
    Mixed = 2,
}

/// The record of plugged blocks: one bit each, and their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluggedBlocks {
    /// Block `n` is bit `n % 64` of word `n / 64`; bits past the last block are 0.
    words: Vec<u64>,
    blocks: u32,
    plugged: u32,
}

impl PluggedBlocks {
    /// `blocks` blocks, none of them plugged.
    pub fn none(blocks: u32) -> Self {
        Self {
            words: vec![0; Self::words_for(blocks)],
            blocks,
            plugged: 0,
        }
    }

    /// The record that `words` saved, or `None` if that is not the record of `blocks` blocks.
    pub fn from_words(blocks: u32, words: &[u64]) -> Option<Self> {
        if words.len() != Self::words_for(blocks) {
            return None;
        }
        let used_in_last = blocks % 64;
        if used_in_last != 0 && words.last()? >> used_in_last != 0 {
            return None;
        }
        let plugged = words.iter().map(|word| word.count_ones()).sum();
        Some(Self {
            words: words.to_vec(),
            blocks,
            plugged,
        })
    }

    /// The record as it is saved: block `n` is bit `n % 64` of word `n / 64`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many blocks are plugged.
    pub fn count(&self) -> u32 {
        self.plugged
    }

    /// Whether block `index` is plugged; a block past the last is not.
    pub fn contains(&self, index: BlockIndex) -> bool {
        let (word, bit) = Self::place(index);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// What `range` is.
    pub fn state(&self, range: BlockRange) -> RangeState {
        let (mut plugged, mut unplugged) = (false, false);
        for index in range.blocks() {
            let bit = self.contains(index);
            plugged |= bit;
            unplugged |= !bit;
        }
        match (plugged, unplugged) {
            (true, false) => RangeState::Plugged,
            (true, true) => RangeState::Mixed,
            (false, _) => RangeState::Unplugged,
        }
    }

    /// Records all of `range` as plugged or as unplugged.
    pub(super) fn set(&mut self, range: BlockRange, plugged: bool) {
        for index in range.blocks().filter(|index| index.0 < self.blocks) {
            let (place, bit) = Self::place(index);
            let Some(word) = self.words.get_mut(place) else {
                continue;
            };
            match (*word & bit != 0, plugged) {
                (false, true) => self.plugged += 1,
                (true, false) => self.plugged -= 1,
                _ => continue,
            }
            *word ^= bit;
        }
    }

    /// The maximal runs of plugged blocks, in order.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..self.blocks).find(|&n| self.contains(BlockIndex(n)))?;
            next = (first..self.blocks)
                .find(|&n| !self.contains(BlockIndex(n)))
                .unwrap_or(self.blocks);
            BlockRange::new(BlockIndex(first), next - first)
        })
    }

    fn words_for(blocks: u32) -> usize {
        blocks.div_ceil(64) as usize
    }

    fn place(index: BlockIndex) -> (usize, u64) {
        ((index.0 / 64) as usize, 1 << (index.0 % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u32, count: u32) -> BlockRange {
        BlockRange::new(BlockIndex(first), count).unwrap()
    }

    #[test]
    fn runs_are_maximal_and_in_order() {
        let mut plugged = PluggedBlocks::none(130);
        assert_eq!(plugged.runs().count(), 0);
        plugged.set(range(0, 3), true);
        plugged.set(range(3, 2), true);
        plugged.set(range(60, 10), true);
        plugged.set(range(129, 1), true);
        assert_eq!(
            plugged.runs().collect::<Vec<_>>(),
            [range(0, 5), range(60, 10), range(129, 1)]
        );
        assert_eq!(plugged.count(), 16);
        plugged.set(range(62, 2), false);
        assert_eq!(plugged.runs().count(), 4);
        assert_eq!(plugged.count(), 14);
    }

    #[test]
    fn a_range_is_plugged_unplugged_or_mixed() {
        let mut plugged = PluggedBlocks::none(70);
        plugged.set(range(62, 4), true);
        assert_eq!(plugged.state(range(62, 4)), RangeState::Plugged);
        assert_eq!(plugged.state(range(61, 2)), RangeState::Mixed);
        assert_eq!(plugged.state(range(66, 4)), RangeState::Unplugged);
    }

    #[test]
    fn a_saved_record_of_another_length_or_with_stray_bits_is_refused() {
        assert!(PluggedBlocks::from_words(70, &[u64::MAX, 0x3f]).is_some_and(|p| p.count() == 70));
        assert!(PluggedBlocks::from_words(64, &[u64::MAX]).is_some());
        assert_eq!(PluggedBlocks::from_words(70, &[0, 0x40]), None);
        assert_eq!(PluggedBlocks::from_words(70, &[0]), None);
        assert_eq!(PluggedBlocks::from_words(70, &[0, 0, 0]), None);
        assert_eq!(PluggedBlocks::from_words(70, &[]), None);
    }
}
