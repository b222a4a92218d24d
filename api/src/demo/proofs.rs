//! Proofs: what held, and of what did not hold, what was expected and what was found.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Serialize;

/// A proof that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// Which.
    pub proof: String,
    /// What should have been.
    pub expected: String,
    /// What was.
    pub found: String,
}

/// The proofs of one fork, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Proofs {
    held: BTreeMap<String, bool>,
    failed: Vec<Failed>,
}

/// A longer thing is shown up to here, in characters.
const SHOWN: usize = 200;

impl Proofs {
    /// Records whether `proof` holds; one that is made of several holds if all of them do.
    pub(super) fn check(&mut self, proof: &str, holds: bool, expected: impl Debug, found: impl Debug) {
        *self.held.entry(proof.to_owned()).or_insert(true) &= holds;
        if !holds {
            self.failed.push(Failed {
                proof: proof.to_owned(),
                expected: shown(&expected),
                found: shown(&found),
            });
        }
    }

    /// `proof` holds if the two are equal.
    pub(super) fn equal<T: Debug + PartialEq>(&mut self, proof: &str, expected: T, found: T) {
        self.check(proof, expected == found, &expected, &found);
    }

    /// `proof` holds if the two are not further apart than `tolerance`.
    pub(super) fn near(&mut self, proof: &str, expected: u64, found: u64, tolerance: u64) {
        let holds = expected.abs_diff(found) <= tolerance;
        self.check(
            proof,
            holds,
            format_args!("{expected} ± {tolerance} bytes"),
            format_args!("{found} bytes"),
        );
    }

    /// Which held, and those that did not.
    pub(super) fn into_parts(self) -> (BTreeMap<String, bool>, Vec<Failed>) {
        (self.held, self.failed)
    }
}

fn shown(thing: &impl Debug) -> String {
    let text = format!("{thing:?}");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_that_does_not_hold_is_enough() {
        let mut proofs = Proofs::default();
        proofs.equal("files", 1, 1);
        proofs.equal("files", 1, 2);
        proofs.equal("files", 3, 3);
        proofs.near("memory", 100, 103, 2);
        proofs.near("clock", 100, 102, 2);
        let (held, failed) = proofs.into_parts();
        assert_eq!(
            held,
            BTreeMap::from([
                ("clock".to_owned(), true),
                ("files".to_owned(), false),
                ("memory".to_owned(), false),
            ])
        );
        let failed: Vec<_> = failed
            .iter()
            .map(|f| (&*f.proof, &*f.expected, &*f.found))
            .collect();
        assert_eq!(
            failed,
            [("files", "1", "2"), ("memory", "100 ± 2 bytes", "103 bytes")]
        );
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(shown(&"ü".repeat(1000)).chars().count(), SHOWN + 1);
    }
}
